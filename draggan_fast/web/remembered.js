/** Which of a server's sessions was shown here: known as long as the element, with `remember` as long as the tab. */

import { keepWord, word } from "./kept.js";

/** The names that connected elements of this page go by. @type {Set<string>} */ const taken = new Set();

export class Remembered {
  /** @type {{base: string, session: string} | null} */ #last = null;
  #name = "";

  /** @param {HTMLElement} element */
  constructor(element) {
    this.element = element;
  }

  /** The element is in the page: it goes by a name that no other one there has, in the order in which they came. */
  arrive() {
    const own = this.element.getAttribute("remember") || this.element.id;
    let name = own && `#${own}`;
    for (let number = 2; taken.has(name); number += 1) name = `${own && `#${own}`}:${number}`;
    taken.add(name);
    this.#name = name;
  }

  /** Its name is free for another. */
  leave() {
    taken.delete(this.#name);
  }

  /** @param {string} base  of the server @param {string} session */
  note(base, session) {
    this.#last = { base, session };
    if (this.element.hasAttribute("remember")) keepWord(this.#key(base), session);
  }

  /** The id to resume, "" if there is none. @param {string} base */
  session(base) {
    if (this.#last?.base === base) return this.#last.session;
    return this.element.hasAttribute("remember") ? word(this.#key(base)) : "";
  }

  /** @param {string} base */
  #key(base) {
    return `drag-canvas:${base}${this.#name}`;
  }
}
