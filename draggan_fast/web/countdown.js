/** A line that counts the seconds down to the next attempt. */

import { make } from "./dom.js";

const REFRESH_MS = 250;
const NOW = "Trying again";

export class Countdown {
  /** @type {HTMLElement | null} */ #line = null;
  #timer = 0;

  /**
   * @param {number} at  performance.now() of the attempt
   * @param {() => void} [act]  makes the attempt, if nobody else does
   * @returns {HTMLElement} the line; one at a time counts
   */
  until(at, act) {
    this.stop();
    // Not read out every second: the card is, once, and the button is there.
    const line = make("p", { class: "number", "aria-live": "off" });
    const tell = () => {
      const seconds = Math.ceil((at - performance.now()) / 1000);
      line.textContent = seconds > 0 ? `Trying again in ${seconds} s` : NOW;
      if (seconds > 0) return;
      this.stop();
      act?.();
    };
    this.#line = line;
    this.#timer = window.setInterval(tell, REFRESH_MS);
    line.textContent = `Trying again in ${Math.max(Math.ceil((at - performance.now()) / 1000), 1)} s`;
    return line;
  }

  /** The attempt is being made. */
  now() {
    const line = this.#line;
    this.stop();
    if (line) line.textContent = NOW;
  }

  stop() {
    window.clearInterval(this.#timer);
    this.#line = null;
  }
}
