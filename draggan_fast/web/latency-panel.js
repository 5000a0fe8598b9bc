/** Shows what a drag feels like, and where the time goes. */

import { make, milliseconds } from "./dom.js";

const REFRESH_MS = 500;
const STAGES = /** @type {const} */ ([
  ["step", "Step"],
  ["render", "Render"],
  ["encode", "Encode"],
  ["network", "Network"],
  ["paint", "Paint"],
]);

export class LatencyPanel {
  /** @type {any} */ #stats = null;
  #timer = 0;

  /** @param {HTMLElement} place @param {import("./drag-canvas.js").DragCanvas} canvas */
  constructor(place, canvas) {
    this.canvas = canvas;
    /** @type {Record<string, any>} */ this.cells = {};
    const cell = (/** @type {string} */ name, /** @type {string} */ tag = "td") => {
      this.cells[name] = make(tag, { class: "number" }, "–");
      return this.cells[name];
    };
    const head = (/** @type {string} */ name, /** @type {string} */ label) =>
      make("div", {}, cell(name, "dd"), make("dt", {}, label));
    const fact = (/** @type {string} */ name, /** @type {string} */ label) =>
      make("div", {}, make("dt", {}, label), cell(name, "dd"));
    this.bar = make("div", { class: "stages none", "aria-hidden": "true" });
    for (const [name] of STAGES) this.bar.append(make("span", { class: name }));
    place.append(
      make(
        "dl",
        { class: "headline" },
        head("steps", "steps/s"),
        head("frames", "frames/s"),
        head("felt", "ms to paint"),
      ),
      this.bar,
      make(
        "table",
        {},
        make("thead", {}, make("tr", {}, make("th", {}, "ms"), make("th", {}, "p50"), make("th", {}, "p95"))),
        make(
          "tbody",
          {},
          ...STAGES.map(([name, label]) =>
            make("tr", {}, make("th", { scope: "row", class: name }, label), cell(`${name}-p50`), cell(`${name}-p95`)),
          ),
          make(
            "tr",
            { class: "sum" },
            make("th", { scope: "row" }, "Pointer → paint"),
            cell("felt-p50"),
            cell("felt-p95"),
          ),
        ),
      ),
      make(
        "dl",
        { class: "facts" },
        fact("dropped", "Dropped"),
        fact("round-trip", "Round trip"),
        fact("engine", "Engine"),
        fact("precision", "Precision"),
        fact("memory", "Memory"),
        fact("sessions", "Sessions"),
      ),
    );
    canvas.addEventListener("stats", (/** @type {any} */ event) => {
      this.#stats = event.detail;
      this.#soon();
    });
    canvas.addEventListener("frame", () => this.#soon());
    canvas.addEventListener("status", () => this.#soon());
    canvas.addEventListener("session", (/** @type {any} */ event) => {
      this.#set("engine", event.detail.engine);
      this.#set("precision", event.detail.precision);
      this.#soon();
    });
  }

  #soon() {
    if (!this.#timer) this.#timer = window.setTimeout(() => this.#show(), REFRESH_MS);
  }

  #show() {
    this.#timer = 0;
    const { latency, connection } = this.canvas;
    const stats = this.#stats;
    const rates = latency.rates(performance.now());
    const felt = latency.pointerToPaint;
    this.#set("steps", rates.steps);
    this.#set("frames", rates.frames);
    this.#set("felt", milliseconds(felt.percentile(0.5)));
    this.#set("felt-p50", milliseconds(felt.percentile(0.5)));
    this.#set("felt-p95", milliseconds(felt.percentile(0.95)));
    let sum = 0;
    for (const [name] of STAGES) {
      this.#set(`${name}-p50`, milliseconds(latency[name].percentile(0.5)));
      this.#set(`${name}-p95`, milliseconds(latency[name].percentile(0.95)));
      sum += latency[name].percentile(0.5) || 0;
    }
    STAGES.forEach(([name], index) => {
      const share = sum ? (latency[name].percentile(0.5) || 0) / sum : 1 / STAGES.length;
      /** @type {HTMLElement} */ (this.bar.children[index]).style.setProperty("--share", String(share));
    });
    this.bar.classList.toggle("none", sum === 0);
    this.#set("dropped", latency.dropped + (stats?.dropped ?? 0));
    this.#set("round-trip", `${milliseconds(connection?.roundTrip ?? NaN)} ms`);
    if (stats) {
      this.#set("memory", `${Math.round(stats.memory_mb)} MB`);
      this.#set("sessions", stats.sessions);
    }
    if (rates.frames) this.#soon(); // once more, down to rest
  }

  /** @param {string} name @param {string | number} text */
  #set(name, text) {
    this.cells[name].textContent = String(text);
  }
}
