/** Pointers into gestures: one presses, moves, releases; two fingers, the wheel or the middle button move the view. */

const TOUCH_SLOP = 4; // CSS pixels that a finger may tremble before it pulls: a second one may make it a pinch
const WHEEL_STEP = 0.0016;
const BUTTONS = new Set([0, 1, 5]); // main, middle, a pen's eraser

/** @typedef {import("./viewport.js").Point} Point */

/**
 * @typedef {object} Actions  all points in CSS pixels of the element
 * @property {(at: Point, event: PointerEvent) => void} press
 * @property {(at: Point, event: PointerEvent) => void} move
 * @property {(at: Point) => void} release
 * @property {() => void} cancel  the press was none: a pinch, or the system took the pointer away
 * @property {(at: Point | null) => void} hover
 * @property {() => void} viewed  the viewport has changed
 */

export class Gestures {
  /** @type {Map<number, Point>} */ #pointers = new Map();
  /** @type {"none" | "maybe" | "press" | "pan" | "pinch"} */ #gesture = "none";
  /** @type {Point} */ #start = [0, 0];

  /**
   * @param {HTMLElement} element
   * @param {import("./viewport.js").Viewport} viewport
   * @param {Actions} actions
   */
  constructor(element, viewport, actions) {
    this.element = element;
    this.viewport = viewport;
    this.actions = actions;
    element.addEventListener("pointerdown", (event) => this.#down(event));
    element.addEventListener("pointermove", (event) => this.#move(event));
    element.addEventListener("pointerup", (event) => this.#up(event));
    element.addEventListener("pointercancel", (event) => this.#lost(event));
    element.addEventListener("lostpointercapture", (event) => this.#lost(event));
    element.addEventListener("pointerleave", () => this.actions.hover(null));
    element.addEventListener("wheel", (event) => this.#wheel(event), { passive: false });
  }

  /** Whether a press is going on. */
  get pressing() {
    return this.#gesture === "press";
  }

  /** @param {MouseEvent} event @returns {Point} */
  #at(event) {
    const box = this.element.getBoundingClientRect();
    return [event.clientX - box.left, event.clientY - box.top];
  }

  /** @param {PointerEvent} event */
  #down(event) {
    const at = this.#at(event);
    if (!BUTTONS.has(event.button) || this.#pointers.size >= 2) return;
    if (this.#pointers.size === 1 && event.pointerType !== "touch") return;
    this.element.setPointerCapture(event.pointerId);
    this.#pointers.set(event.pointerId, at);
    if (this.#pointers.size === 2) {
      if (this.#gesture === "press") this.actions.cancel();
      this.#gesture = "pinch";
    } else if (event.button === 1) {
      event.preventDefault(); // no autoscroll
      this.#gesture = "pan";
    } else if (!this.viewport.contains(at)) {
      this.#gesture = "none";
    } else if (event.pointerType === "touch") {
      this.#start = at;
      this.#gesture = "maybe";
    } else {
      this.#gesture = "press";
      this.actions.press(at, event);
    }
  }

  /** @param {PointerEvent} event */
  #move(event) {
    const at = this.#at(event);
    const last = this.#pointers.get(event.pointerId);
    if (event.pointerType !== "touch") this.actions.hover(at);
    if (!last) return;
    if (this.#gesture === "maybe" && Math.hypot(at[0] - this.#start[0], at[1] - this.#start[1]) > TOUCH_SLOP) {
      this.#gesture = "press";
      this.actions.press(this.#start, event);
    }
    const before = this.#gesture === "pinch" ? this.#fingers() : null;
    this.#pointers.set(event.pointerId, at);
    if (this.#gesture === "press") {
      this.actions.move(at, event);
    } else if (this.#gesture === "pan") {
      this.viewport.panBy(at[0] - last[0], at[1] - last[1]);
      this.actions.viewed();
    } else if (before) {
      const after = this.#fingers();
      this.viewport.panBy(after.centre[0] - before.centre[0], after.centre[1] - before.centre[1]);
      this.viewport.zoomAt(after.centre, after.spread / before.spread);
      this.actions.viewed();
    }
  }

  /** @param {PointerEvent} event */
  #up(event) {
    if (!this.#pointers.delete(event.pointerId)) return;
    const at = this.#at(event);
    if (this.#gesture === "maybe") {
      this.actions.press(this.#start, event);
      this.actions.release(this.#start);
    } else if (this.#gesture === "press") {
      this.actions.release(at);
    }
    this.#gesture = "none"; // what is left of a pinch is no press
  }

  /** @param {PointerEvent} event */
  #lost(event) {
    if (!this.#pointers.delete(event.pointerId)) return;
    if (this.#gesture === "press") this.actions.cancel();
    this.#gesture = "none";
  }

  #fingers() {
    const [a, b] = [...this.#pointers.values()];
    return {
      centre: /** @type {Point} */ ([(a[0] + b[0]) / 2, (a[1] + b[1]) / 2]),
      spread: Math.max(Math.hypot(a[0] - b[0], a[1] - b[1]), 1),
    };
  }

  /** @param {WheelEvent} event */
  #wheel(event) {
    const pixels = event.deltaY * (event.deltaMode === 1 ? 16 : event.deltaMode === 2 ? 400 : 1);
    if (this.viewport.zoom === 1 && pixels > 0 && !event.ctrlKey) return; // nothing to zoom out of: the page may scroll
    event.preventDefault();
    const strength = event.ctrlKey ? 6 : 1; // a pinch on a track pad comes in small numbers
    this.viewport.zoomAt(this.#at(event), Math.exp(-pixels * WHEEL_STEP * strength));
    this.actions.viewed();
  }
}
