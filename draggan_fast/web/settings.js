/** Sliders, each with marks where the published program and this model have their defaults. */

import { make } from "./dom.js";

/**
 * @typedef {object} Slider
 * @property {string} name  as in the protocol
 * @property {string} label
 * @property {string} hint
 * @property {number} least
 * @property {number} most
 * @property {number} [step]  without, the scale is logarithmic
 */

/** @type {Slider[]} */
export const DRAG_SLIDERS = [
  {
    name: "lr",
    label: "Step size",
    hint: "How far the picture goes in one step",
    least: 0.0002,
    most: 0.1,
  },
  {
    name: "r1",
    label: "Pull radius",
    hint: "r1: how much around a handle is pulled, pixels at 512",
    least: 1,
    most: 16,
    step: 1,
  },
  {
    name: "r2",
    label: "Tracking radius",
    hint: "r2: how far around it a handle is looked for, pixels at 512",
    least: 2,
    most: 48,
    step: 1,
  },
  {
    name: "lambda_mask",
    label: "Mask weight",
    hint: "How strongly the fixed part is held",
    least: 0,
    most: 100,
    step: 1,
  },
];

/** @type {Slider} */
export const TRUNCATION = {
  name: "truncation_psi",
  label: "Truncation",
  hint: "Low: near the average picture. High: rarer ones. A change begins the picture anew",
  least: 0,
  most: 1.2,
  step: 0.05,
};

const LOG_STEPS = 200;

export class SliderRow {
  /**
   * @param {Slider} slider
   * @param {(value: number) => void} changed  when the user lets go
   *
   * It shows no position and takes none until it has been given a value.
   */
  constructor(slider, changed) {
    this.slider = slider;
    this.output = make("output", { class: "number" }, "–");
    this.input = make("input", {
      type: "range",
      min: slider.step ? slider.least : 0,
      max: slider.step ? slider.most : LOG_STEPS,
      step: slider.step ?? 1,
      id: `slider-${slider.name}`,
      disabled: true,
      input: () => this.#show(this.value),
      change: () => changed(this.value),
    });
    this.marks = make("div", { class: "marks" });
    this.element = make(
      "div",
      { class: "slider unset", title: slider.hint },
      make("label", { for: `slider-${slider.name}` }, slider.label),
      this.output,
      this.input,
      this.marks,
    );
    this.changed = changed;
  }

  get value() {
    const at = Number(this.input.value);
    const { least, most, step } = this.slider;
    return step ? at : Number((least * (most / least) ** (at / LOG_STEPS)).toPrecision(2));
  }

  /** @param {number} value */
  set value(value) {
    this.input.disabled = false;
    this.element.classList.remove("unset");
    for (const mark of this.marks.querySelectorAll("button")) mark.disabled = false;
    this.input.value = String(this.slider.step ? value : Math.round(this.#share(value) * LOG_STEPS));
    this.#show(value);
  }

  /**
   * Names the values to come back to; equal ones share a mark.
   * @param {Record<string, number>} defaults  name → value
   */
  mark(defaults) {
    /** @type {Map<number, string[]>} */ const named = new Map();
    for (const [name, value] of Object.entries(defaults)) named.set(value, [...(named.get(value) ?? []), name]);
    this.marks.replaceChildren(
      ...[...named].flatMap(([value, names]) => {
        const mark = make(
          "button",
          {
            type: "button",
            class: "mark",
            title: `Set to ${value}`,
            disabled: this.input.disabled,
            click: () => {
              this.value = value;
              this.changed(value);
            },
          },
          names.includes("published") ? "published" : names[0],
        );
        const tick = make("span", { class: "tick" });
        for (const element of [mark, tick]) element.style.setProperty("--at", String(this.#share(value)));
        return [tick, mark];
      }),
    );
  }

  /** Where on the track a value lies. @param {number} value @returns {number} 0…1 */
  #share(value) {
    const { least, most, step } = this.slider;
    const share = step ? (value - least) / (most - least) : Math.log(value / least) / Math.log(most / least);
    return Math.min(Math.max(share, 0), 1);
  }

  /** @param {number} value */
  #show(value) {
    const text = String(Number(value.toPrecision(3)));
    this.output.value = text;
    this.input.setAttribute("aria-valuetext", text);
    this.element.style.setProperty("--at", String(this.#share(value)));
  }
}

/** The sliders of the drag, bound to the session's settings. */
export class DragSettings {
  /** @type {Record<string, number>} */ #published = {};
  /** As the server has them. @type {Record<string, number>} */ #present = {};

  /** @param {HTMLElement} place @param {import("./drag-canvas.js").DragCanvas} canvas */
  constructor(place, canvas) {
    this.canvas = canvas;
    this.rows = DRAG_SLIDERS.map((slider) => new SliderRow(slider, (value) => this.#change(slider.name, value)));
    place.append(...this.rows.map((row) => row.element));
    canvas.addEventListener("welcome", (/** @type {any} */ event) => {
      this.#published = event.detail.published;
      this.mark(event.detail.settings);
    });
    canvas.addEventListener("session", (/** @type {any} */ event) => {
      this.#present = { ...event.detail.settings };
      for (const row of this.rows) row.value = this.#present[row.slider.name];
    });
  }

  /** @param {Record<string, number>} settings  the defaults of the picture's model */
  mark(settings) {
    for (const row of this.rows) {
      const { name } = row.slider;
      row.mark({ published: this.#published[name], "this model": settings[name] });
    }
  }

  /** @param {string} name @param {number} value */
  async #change(name, value) {
    if (await this.canvas.configure({ [name]: value })) this.#present[name] = value;
    else this.#row(name).value = this.#present[name]; // it was refused: not what is shown
  }

  /** @param {string} name @returns {SliderRow} */
  #row(name) {
    return /** @type {SliderRow} */ (this.rows.find((row) => row.slider.name === name));
  }
}
