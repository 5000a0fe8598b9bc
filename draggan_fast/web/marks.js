/** What lies over the picture in the element: points, brush, cursor, the veil over what must stay. When it is drawn. */

import { drawBrush, drawCursor, drawPoints, drawVeil, Layer, markSize, Patch } from "./overlay.js";

const WITH_FRAME_MS = 60; // frames that come faster than that take the marks along
const MARGIN = 18; // CSS pixels that a mark reaches beyond its point, about: the cursor's arms are 14 long

/** @typedef {import("./viewport.js").Point} Point */

export class Marks {
  /** Where the pointer is, in CSS pixels of the element. @type {Point | null} */ hover = null;
  #redrawing = 0;
  #waiting = 0;
  #overlay;
  #veil;

  /**
   * @param {import("./drag-canvas.js").DragCanvas} element
   * @param {{overlay: HTMLCanvasElement, veil: HTMLCanvasElement}} view
   * @param {() => Point | null} cursor  the keyboard's, in picture pixels
   */
  constructor(element, { overlay, veil }, cursor) {
    this.element = element;
    this.cursor = cursor;
    this.#overlay = new Patch(overlay);
    this.#veil = new Layer(veil);
  }

  resize() {
    const { clientWidth, clientHeight } = this.element;
    const ratio = window.devicePixelRatio || 1;
    for (const layer of [this.#overlay, this.#veil]) layer.setSize(clientWidth, clientHeight, ratio);
  }

  get #size() {
    return markSize(Math.min(this.element.clientWidth, this.element.clientHeight));
  }

  drawVeil() {
    const { mask, viewport } = this.element;
    this.#veil.canvas.hidden = !mask.present; // a layer less to compose in every frame
    if (mask.present) drawVeil(this.#veil, mask, viewport, this.#size);
  }

  /** In the next animation frame. */
  redraw() {
    if (!this.#redrawing) this.#redrawing = requestAnimationFrame(() => this.draw());
  }

  /** With the next picture, which comes soon while the marks are pulled: every drawing of its own is a page to compose. */
  redrawWithFrame() {
    if (!this.#redrawing && !this.#waiting) this.#waiting = window.setTimeout(() => this.draw(), WITH_FRAME_MS);
  }

  draw() {
    cancelAnimationFrame(this.#redrawing);
    window.clearTimeout(this.#waiting);
    this.#redrawing = this.#waiting = 0;
    const { element } = this;
    const { brush, viewport } = element;
    if (!element.session) {
      this.#overlay.around([], 0);
      return;
    }
    const project = (/** @type {Point} */ point) => viewport.toScreen(point);
    const cursor = this.cursor();
    if (element.mode === "mask") {
      const at = cursor ? project(cursor) : this.hover;
      const radius = brush.radius * viewport.scale;
      const context = this.#overlay.around(at ? [at] : [], radius + MARGIN * this.#size);
      if (at) drawBrush(context, at, radius, brush.erase, cursor !== null, this.#size);
      return;
    }
    const { handles, targets, pending } = element.points;
    const marked = [...handles, ...targets, ...(pending ? [pending] : []), ...(cursor ? [cursor] : [])].map(project);
    const context = this.#overlay.around(marked, MARGIN * this.#size);
    drawPoints(context, element.points, project, this.#size);
    if (cursor) drawCursor(context, project(cursor), this.#size);
  }
}
