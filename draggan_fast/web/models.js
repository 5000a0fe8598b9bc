/** Which model the pictures are of, where there are several, and of which class, where a model has classes. */

import { make } from "./dom.js";

/** @typedef {{name: string, classes: number, settings: Record<string, number>}} ServedModel  as in /api/models */

export class ModelChoice {
  /** @type {ServedModel[]} */ models = [];

  /**
   * @param {HTMLElement} place
   * @param {import("./drag-canvas.js").DragCanvas} canvas
   * @param {(choice: {model: string, label: number | null}) => void} choose
   */
  constructor(place, canvas, choose) {
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
   * Asks the server what it serves. What begins without a picture begins with a class, if it needs one.
   * @returns {Promise<boolean>} false: it would not say (a token is missing, or it is gone)
   */
  async load() {
    try {
      const blob = await this.canvas.fetch("api/models");
      this.models = JSON.parse(await blob.text()).models;
    } catch {
      return false; // the connection tells
    }
    this.select.replaceChildren(...this.models.map(({ name }) => make("option", { value: name }, name)));
    this.modelRow.hidden = this.models.length < 2;
    const { session, welcome, copy, isConnected } = this.canvas;
    // subtle: of a connected element a new label begins a picture, which must not take the place of one to come back
    const free = !isConnected || !(session || copy || welcome?.resumed);
    if (this.models[0].classes && free) this.canvas.setAttribute("label", "0");
    if (session) this.#show(session);
    return true;
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
