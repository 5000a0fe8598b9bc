/** Which model the pictures are of, where there are several, and of which class, where a model has classes. */

import { Connection } from "./connection.js";
import { make } from "./dom.js";

const LOAD_MS = 3000; // the first picture does not wait longer for what is served

/** @typedef {{name: string, classes: number, settings: Record<string, number>}} ServedModel  as in /api/models */

export class ModelChoice {
  /** @type {ServedModel[]} */ models = [];
  #loads = 0; // counts them: the answer to an earlier one is none any more
  #labelled = false; // the element's label was set here

  /**
   * @param {HTMLElement} place
   * @param {import("./drag-canvas.js").DragCanvas} canvas
   * @param {(choice: {model: string, label: number | null}) => void} choose
   * @param {string} first  the class to begin with, where there are classes
   */
  constructor(place, canvas, choose, first) {
    this.first = first;
    this.canvas = canvas;
    this.choose = choose;
    this.select = make("select", { id: "model", change: () => this.#chosen() });
    this.label = make("input", {
      id: "label",
      type: "number",
      inputmode: "numeric",
      min: 0,
      step: 1,
      required: true,
      change: () => this.#chosen(),
    });
    const row = (/** @type {string} */ name, /** @type {HTMLElement} */ field) =>
      make("div", { class: "field", hidden: true }, make("label", { for: field.id }, name), field);
    this.modelRow = row("Model", this.select);
    this.labelRow = row("Class", this.label);
    place.append(this.modelRow, this.labelRow);
    canvas.addEventListener("session", (/** @type {any} */ event) => this.#show(event.detail));
    canvas.addEventListener("error", () => canvas.session && this.#show(canvas.session)); // it was not taken
  }

  /**
   * Asks the server what it serves, also before there is a connection. What begins without a picture begins with a
   * class, if it needs one.
   */
  async load() {
    const load = (this.#loads += 1);
    const { base } = this.canvas;
    const connection = new Connection(base, this.canvas.getAttribute("token") ?? "");
    /** @type {ServedModel[]} */ let models;
    try {
      const blob = await connection.fetch("api/models", AbortSignal.timeout(LOAD_MS));
      ({ models } = JSON.parse(await blob.text()));
    } catch {
      return; // a token is missing, or the server is gone or slow: the connection tells, and each welcome asks again
    }
    if (load !== this.#loads || base !== this.canvas.base) return;
    this.models = models;
    this.select.replaceChildren(...this.models.map(({ name }) => make("option", { value: name }, name)));
    this.modelRow.hidden = this.models.length < 2;
    const { session } = this.canvas;
    if (session) this.#show(session);
    if (models[0].classes) this.#begin();
    else if (this.#labelled) await this.#beginUnlabelled();
  }

  /** Pictures of the first model need a class. */
  #begin() {
    const { session, welcome, copy, isConnected } = this.canvas;
    // subtle: of a connected element a new label begins a picture, which must not take the place of one to come back
    const returns = copy || welcome?.resumed || (session && welcome?.models.includes(session.model));
    if (isConnected && returns) return;
    this.#labelled ||= !this.canvas.hasAttribute("label");
    // What the address asks for may be no class: then the first, or nothing here would ever show a picture.
    const most = this.models[0].classes - 1;
    const known = /^\d{1,9}$/.test(this.first) && Number(this.first) <= most;
    if (!known) this.canvas.announce(`There is no class ${this.first}: give one from 0 to ${most}.`);
    if (this.#labelled) this.canvas.setAttribute("label", known ? this.first : "0");
  }

  /** Another server's pictures had classes, the ones of this have none. */
  async #beginUnlabelled() {
    const { canvas } = this;
    this.#labelled = false;
    canvas.removeAttribute("label");
    if (!canvas.connection?.isOpen || canvas.ready || canvas.copy || canvas.welcome?.resumed) return;
    if (!(await canvas.retry())) await canvas.retry(); // the first may be the one that had the label
  }

  /** @param {string} name @returns {ServedModel | undefined} */
  find(name) {
    return this.models.find((model) => model.name === name);
  }

  /** @param {{model: string, label?: number | null}} session */
  #show({ model, label }) {
    const { classes = 0 } = this.find(model) ?? {};
    this.select.value = model;
    this.labelRow.hidden = !classes;
    this.label.max = String(Math.max(classes - 1, 0));
    this.label.value = String(label ?? 0);
    this.label.title = `0 … ${this.label.max}`;
  }

  #chosen() {
    const model = this.find(this.select.value);
    if (!model) return;
    if (model.classes && !this.labelRow.hidden && !this.label.reportValidity()) return;
    const most = model.classes - 1;
    this.choose({ model: model.name, label: model.classes ? Math.min(Number(this.label.value) || 0, most) : null });
  }
}
