/** The kept states of the picture: a film strip to scrub in. */

import { make, showBlob } from "./dom.js";

const SIZE = 96; // pixels of a thumbnail
const LOAD_AFTER_MS = 300; // of rest

export class Timeline {
  #length = 0;
  /** @type {number | null} */ #wanted = null;
  #asking = false;
  #timer = 0;
  /** @type {AbortController | null} */ #loading = null;
  #stale = false; // the thumbnails are not those of the present states

  /** @param {HTMLElement} place @param {import("./drag-canvas.js").DragCanvas} canvas */
  constructor(place, canvas) {
    this.place = place;
    this.canvas = canvas;
    this.film = make("div", { class: "film", "aria-hidden": "true" });
    this.input = make("input", {
      type: "range",
      min: 0,
      max: 0,
      step: 1,
      value: 0,
      disabled: true,
      "aria-label": "Position in the timeline",
      input: () => this.#scrub(Number(this.input.value)),
    });
    this.empty = make("p", { class: "empty" }, "Every step you make is kept here");
    place.append(this.film, this.input, this.empty);
    canvas.addEventListener("status", (/** @type {any} */ event) => this.#show(event.detail));
    canvas.addEventListener("frame", (/** @type {any} */ event) => {
      if (event.detail.running) this.#outdate();
    });
    new ResizeObserver(() => {
      this.#outdate();
      this.#later();
    }).observe(place);
  }

  /** What the film shows is no longer so: it is dimmed, cell by cell, until the picture rests. */
  #outdate() {
    this.#stale = true;
    for (const cell of this.film.children) cell.classList.add("stale");
  }

  /** @param {any} status */
  #show(status) {
    this.#stale ||= status.timeline !== this.#length;
    this.#length = status.timeline;
    const any = status.timeline > 1;
    if (any) this.#cells(); // empty ones say what will be there
    else this.film.replaceChildren();
    if (this.#stale) this.#outdate();
    this.place.classList.toggle("any", any);
    this.input.disabled = !any;
    this.input.max = String(Math.max(status.timeline - 1, 0));
    if (!this.#asking && this.#wanted === null) this.#place(status.position);
    if (this.#stale) this.#later();
  }

  /** @param {number} position */
  #place(position) {
    this.input.value = String(position);
    this.input.setAttribute("aria-valuetext", `State ${position + 1} of ${this.#length}`);
    this.place.style.setProperty("--at", String(position / Math.max(this.#length - 1, 1)));
  }

  /** One request at a time, the latest wish next. @param {number} index */
  async #scrub(index) {
    this.#place(index);
    this.#wanted = index;
    if (this.#asking) return;
    this.#asking = true;
    if (this.canvas.running) await this.canvas.pause();
    while (this.#wanted !== null) {
      const wanted = this.#wanted;
      this.#wanted = null;
      if (!(await this.canvas.scrub(wanted))) break;
    }
    this.#wanted = null;
    this.#asking = false;
  }

  /** Thumbnails are made when the picture rests: they cost what frames cost. */
  #later() {
    this.#loading?.abort();
    window.clearTimeout(this.#timer);
    this.#timer = window.setTimeout(() => this.#load(), LOAD_AFTER_MS);
  }

  async #load() {
    const { canvas } = this;
    if (canvas.status?.state === "running" || this.#asking || !this.#stale || this.#length < 2) return;
    const loading = new AbortController();
    this.#loading = loading;
    const of = canvas.session.session;
    for (const [index, images] of this.#cells()) {
      try {
        const path = `api/sessions/${of}/timeline/${index}.webp?size=${SIZE}`;
        const blob = await canvas.fetch(path, loading.signal);
        for (const image of images) {
          showBlob(image, blob);
          image.parentElement?.classList.remove("stale");
        }
      } catch {
        return; // overtaken, or the server is gone: the next rest loads them
      }
    }
    this.#stale = false;
  }

  /** The film's square cells, by the state that they show; a short timeline repeats its own. */
  #cells() {
    const { film } = this;
    const count = Math.max(Math.round(film.clientWidth / Math.max(film.clientHeight, 1)), 2);
    while (film.childElementCount > count) film.lastElementChild?.remove();
    while (film.childElementCount < count) {
      const image = make("img", { alt: "", draggable: "false", width: SIZE, height: SIZE });
      film.append(make("span", { class: "cell" }, image));
    }
    /** @type {Map<number, HTMLImageElement[]>} */ const cells = new Map();
    film.querySelectorAll("img").forEach((image, place) => {
      const index = Math.round((place * (this.#length - 1)) / (count - 1));
      cells.set(index, [...(cells.get(index) ?? []), image]);
    });
    return cells;
  }
}
