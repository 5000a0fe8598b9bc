/**
 * A copy of the saved session, fetched whenever the picture rests, for a server that no longer has it. Of an element
 * with `remember` it is kept for the page that comes after a reload, too.
 */

import { copyOf, dropCopy, keepCopy } from "./kept.js";

const AFTER_MS = 1500; // of rest
const PATIENCE_MS = 2000; // with a browser that does not say what it has kept

export class SessionCopy {
  /** @type {Blob | null} */ file = null;
  #timer = 0;
  #picture = 0; // counts what has been forgotten: what is on its way then is no copy of the present picture
  #kept = ""; // the session under whose id it is kept for a reload

  /** @param {import("./drag-canvas.js").DragCanvas} element */
  constructor(element) {
    this.element = element;
  }

  /** The element shows another server's picture now; that one's is kept, should it come back to it. */
  forget() {
    this.#picture += 1;
    this.file = null;
    this.#kept = "";
  }

  /** There is another picture now: nobody comes back to the former one, also not by a reload. */
  drop() {
    if (this.#kept) void dropCopy(this.#kept);
    this.forget();
  }

  /** What a page before this one has kept. @param {string} session  its id, "" if there is none */
  async recall(session) {
    if (this.file || !session || !this.#lasting) return;
    const picture = this.#picture;
    const file = await Promise.race([copyOf(session), late()]);
    if (!file || this.file || picture !== this.#picture) return;
    this.file = file;
    this.#kept = session;
  }

  /** The picture has this id now: the server gives another one when it opens a copy. @param {string} session */
  named(session) {
    if (this.file && this.#kept !== session) this.#store(session);
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
    if (!file || picture !== this.#picture || of !== element.session) return;
    this.file = file;
    this.#store(of.session);
  }

  /** @param {string} session */
  #store(session) {
    if (!this.#lasting || !this.file) return;
    void keepCopy(session, this.file, this.#kept === session ? "" : this.#kept);
    this.#kept = session;
  }

  get #lasting() {
    return this.element.hasAttribute("remember");
  }
}

/** @returns {Promise<null>} */
function late() {
  return new Promise((resolve) => {
    window.setTimeout(() => resolve(null), PATIENCE_MS);
  });
}
