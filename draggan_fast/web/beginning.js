/** The picture of a connection that has none: the copy of what was here before, or a new one, until it is there. */

import { PASSING } from "./connection.js";

const BACK_OFF_MS = [2000, 4000, 8000, 15000, 30000];

/**
 * @typedef {object} Opening  of an `error` event: what could not be opened, and what comes next
 * @property {number} attempts  failed ones in a row
 * @property {number | null} retryAt  performance.now() of the next attempt; null: only `retry()` makes one
 * @property {Blob | null} copy  the saved session that waits to be opened
 */

export class Beginning {
  #timer = 0;
  #attempts = 0;
  /** The one that is under way. @type {{connection: object | null, done: Promise<boolean>} | null} */ #attempt = null;

  /**
   * @param {import("./drag-canvas.js").DragCanvas} element
   * @param {import("./copy.js").SessionCopy} copy  kept until the server has opened it or another picture
   * @param {(type: string, detail: object) => void} tell
   */
  constructor(element, copy, tell) {
    this.element = element;
    this.copy = copy;
    this.tell = tell;
  }

  /** No further attempts by itself: there is a picture, or no connection. */
  stop() {
    window.clearTimeout(this.#timer);
    this.#attempts = 0;
  }

  /**
   * Tries at once, and again later if the refusal is one that passes. What is being tried is not tried twice.
   * @returns {Promise<boolean>} whether this attempt succeeded
   */
  begin() {
    const { connection } = this.element;
    if (this.#attempt && this.#attempt.connection === connection) return this.#attempt.done;
    const attempt = { connection, done: this.#try() };
    this.#attempt = attempt;
    void attempt.done.finally(() => {
      if (this.#attempt === attempt) this.#attempt = null;
    });
    return attempt.done;
  }

  async #try() {
    window.clearTimeout(this.#timer);
    const { connection } = this.element;
    const { file } = this.copy;
    try {
      await (file ? connection?.openSession(file) : connection?.request("create", this.#anew()));
    } catch (caught) {
      const error = /** @type {import("./connection.js").ServerError} */ (caught);
      // Without a connection the next welcome begins here again, with the same copy.
      if (connection === this.element.connection && error.code !== "gone") this.#refused(error, file);
      return false;
    }
    this.stop();
    if (file) this.tell("restored", {});
    return connection !== null;
  }

  /** @param {import("./connection.js").ServerError} error @param {Blob | null} copy */
  #refused({ code, message }, copy) {
    const passes = PASSING.has(code);
    const delay = BACK_OFF_MS[Math.min(this.#attempts, BACK_OFF_MS.length - 1)] * (0.75 + Math.random() / 2);
    this.#attempts += 1;
    if (passes) this.#timer = window.setTimeout(() => this.begin(), delay);
    /** @type {Opening} */
    const opening = { attempts: this.#attempts, retryAt: passes ? performance.now() + delay : null, copy };
    this.element.announce(message);
    this.tell("error", { code, message, opening });
  }

  /** The fields of `create`: what was shown here, if the server still has its model. */
  #anew() {
    const { element } = this;
    const { session, welcome } = element;
    if (!session || !welcome.models.includes(session.model)) return creation(element, {});
    const { seed, model, label } = session;
    return creation(element, { seed: seed ?? undefined, model, label });
  }
}

/**
 * The fields of `create`; what the options leave open is as the element's attributes say.
 * @param {import("./drag-canvas.js").DragCanvas} element
 * @param {{seed?: number, truncationPsi?: number, model?: string, label?: number | null}} options
 */
export function creation(element, options) {
  const seed = options.seed ?? Number(element.getAttribute("seed") ?? 0);
  element.truncationPsi = options.truncationPsi ?? element.truncationPsi;
  const model = options.model ?? element.getAttribute("model");
  const own = element.getAttribute("label");
  const label = options.label === undefined && own ? Number(own) : options.label;
  return {
    seed,
    truncation_psi: element.truncationPsi,
    ...(model && { model }),
    ...(label !== undefined && label !== null && { label }),
  };
}
