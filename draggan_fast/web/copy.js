/** A copy of the saved session, fetched whenever the picture rests, for a server that no longer has it. */

const AFTER_MS = 1500; // of rest

export class SessionCopy {
  /** @type {Blob | null} */ file = null;
  #timer = 0;
  #picture = 0; // counts what has been forgotten: what is on its way then is no copy of the present picture

  /** @param {import("./drag-canvas.js").DragCanvas} element */
  constructor(element) {
    this.element = element;
  }

  /** There is another picture now. */
  forget() {
    this.#picture += 1;
    this.file = null;
  }

  /** Soon, if the picture still rests then. */
  keep() {
    window.clearTimeout(this.#timer);
    this.#timer = window.setTimeout(() => this.#fetch(), AFTER_MS);
  }

  async #fetch() {
    const { element } = this;
    if (!element.ready || element.running) return;
    const picture = this.#picture;
    const of = element.session;
    const file = await element.download("session").catch(() => null); // a convenience: the next rest tries again
    if (file && picture === this.#picture && of === element.session) this.file = file;
  }
}
