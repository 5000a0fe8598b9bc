/** Which of a server's sessions was shown here: known as long as the element, with `remember` as long as the tab. */

export class Remembered {
  /** @type {{base: string, session: string} | null} */ #last = null;

  /** @param {HTMLElement} element */
  constructor(element) {
    this.element = element;
  }

  /** @param {string} base  of the server @param {string} session */
  note(base, session) {
    this.#last = { base, session };
    if (this.element.hasAttribute("remember")) sessionStorage.setItem(`drag-canvas:${base}`, session);
  }

  /** The id to resume, "" if there is none. @param {string} base */
  session(base) {
    if (this.#last?.base === base) return this.#last.session;
    return this.element.hasAttribute("remember") ? (sessionStorage.getItem(`drag-canvas:${base}`) ?? "") : "";
  }
}
