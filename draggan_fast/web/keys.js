/** The keyboard: everything that a pointer can do to the points and the mask, without one. */

import { ARROWS, FAR, MaskKeys } from "./keys-mask.js";

/** @typedef {import("./viewport.js").Point} Point */
/** @typedef {import("./points.js").Selection} Selection */

const SETTLE_AFTER_MS = 500; // of no further key
const SEND_AFTER_MS = 200;
const PAN = 1 / 8; // of the element's shorter side, at once
const PAN_FAR = 1 / 2; // with Shift

export class Keyboard {
  /** Where Enter places a point, in picture pixels. @type {Point | null} */ #cursor = null;
  #timer = 0;
  #unsent = false; // a handle has been moved here, but not yet at the server

  /**
   * @param {import("./drag-canvas.js").DragCanvas} element
   * @param {import("./modes.js").Host} host
   * @param {() => void} changed  something is to be drawn anew
   */
  constructor(element, host, changed) {
    this.element = element;
    this.host = host;
    this.changed = changed;
    this.brush = new MaskKeys(element, host);
  }

  /** What the arrow keys move, if it is no point: in picture pixels. @returns {Point | null} */
  get cursor() {
    return this.element.mode === "mask" ? this.brush.cursor : this.#cursor;
  }

  /** The focus came by the keyboard. */
  enter() {
    if (this.element.mode === "mask") this.brush.enter();
    this.changed();
  }

  /** @param {KeyboardEvent} event @returns {boolean} whether the key was meant for the picture */
  handle(event) {
    const composed = event.getModifierState("AltGraph"); // [ and ] on many keyboards; Windows says Control and Alt too
    if (event.altKey && !composed) return false;
    const { element } = this;
    const key = event.key.length === 1 ? event.key.toLowerCase() : event.key;
    if ((event.ctrlKey || event.metaKey) && !composed) {
      if (key === "z") void (event.shiftKey ? element.redo() : element.undo());
      else if (key === "y") void element.redo();
      else if (key in ARROWS) return this.#pan(ARROWS[key], event.shiftKey);
      else return false;
      return true;
    }
    if (element.mode === "mask") {
      const meant = this.brush.handle(key, event);
      if (meant) this.changed();
      return meant || this.#view(key);
    }
    if (key in ARROWS) {
      const [dx, dy] = ARROWS[key];
      const far = event.shiftKey ? FAR : 1;
      this.#nudge(dx * far, dy * far);
      return true;
    }
    switch (key) {
      case "Tab":
        return this.#selectNext(event.shiftKey ? -1 : 1);
      case " ":
        void element.toggle();
        return true;
      case "Enter":
        this.#place();
        return true;
      case "Delete":
      case "Backspace":
        this.#remove();
        return true;
      case "Escape":
        return this.#escape();
      default:
        return this.#view(key);
    }
  }

  leave() {
    this.#cursor = this.brush.cursor = null;
    this.changed();
  }

  /** @param {string} key @returns {boolean} */
  #view(key) {
    if (key === "0") this.element.resetZoom();
    else if (key === "+" || key === "=") this.element.zoomBy(1.25);
    else if (key === "-") this.element.zoomBy(0.8);
    else return false;
    return true;
  }

  /**
   * Moves the view, as far as there is more of the picture.
   * @param {Point} direction @param {boolean} far
   * @returns {boolean} false if all of it is seen: the key is the browser's
   */
  #pan([dx, dy], far) {
    const { element } = this;
    const { viewport, announce } = this.host;
    if (viewport.zoom === 1) return false;
    const { clientWidth: width, clientHeight: height } = element;
    const step = Math.min(width, height) * (far ? PAN_FAR : PAN);
    element.panBy(-dx * step, -dy * step);
    const [x, y] = viewport.toPicture([width / 2, height / 2]);
    announce(`The middle of the view is at ${Math.round(x)}, ${Math.round(y)}.`);
    return true;
  }

  /** Moves the selected point, or the cursor. @param {number} dx @param {number} dy */
  #nudge(dx, dy) {
    const { points, viewport, driver, running, announce } = this.host;
    const { selected } = points;
    const [x, y] = points.selectedPoint ?? this.#where();
    const to = viewport.inside([x + dx, y + dy]);
    if (!selected) {
      this.#cursor = to;
      this.changed();
      return;
    }
    points.move(selected, to);
    announce(`${named(selected)} at ${Math.round(to[0])}, ${Math.round(to[1])}.`);
    const live = this.element.mode === "live";
    window.clearTimeout(this.#timer);
    this.#unsent ||= selected.kind === "handle";
    if (!this.#unsent && (live || running)) {
      if (live) driver.follow();
      driver.moveTargets();
      this.#timer = window.setTimeout(() => this.host.driver.settle(), SETTLE_AFTER_MS);
    } else {
      this.#timer = window.setTimeout(() => this.#send(), SEND_AFTER_MS);
    }
    this.changed();
  }

  #send() {
    this.#unsent = false;
    void this.host.driver.setPoints();
  }

  /** @param {1 | -1} direction @returns {boolean} false past the last point: the focus may go on */
  #selectNext(direction) {
    const { points, announce } = this.host;
    const found = points.cycle(direction);
    if (points.selected) announce(`${named(points.selected)} selected.`);
    this.#cursor = null;
    this.changed();
    return found;
  }

  /** A handle at the cursor, then its target. */
  #place() {
    const { points, announce } = this.host;
    const { mode } = this.element;
    if (mode === "mask" || points.selected) return;
    const at = this.#where();
    if (mode === "points" && !points.pending) {
      points.pending = this.#cursor = at;
      announce("Handle placed. Move the cursor and press Enter to place its target.");
      this.changed();
      return;
    }
    if (mode === "live") points.set([at], [at]);
    else if (points.pending) points.add(points.pending, at);
    points.pending = this.#cursor = null;
    points.selected = { kind: "target", index: points.count - 1 };
    announce(`Point ${points.count} placed. Arrow keys move its target.`);
    this.#send();
    this.changed();
  }

  #remove() {
    const { points, announce } = this.host;
    if (points.pending) {
      points.pending = null;
    } else if (points.selected) {
      points.remove(points.selected.index);
      this.#send();
      announce("Point removed.");
    }
    this.changed();
  }

  /** @returns {boolean} whether there was anything to leave */
  #escape() {
    const { points } = this.host;
    const any = points.pending !== null || points.selected !== null || this.#cursor !== null;
    points.pending = points.selected = this.#cursor = null;
    this.changed();
    return any;
  }

  /** The cursor, or else the middle of the picture. @returns {Point} */
  #where() {
    const { width, height } = this.host.viewport.picture;
    return this.#cursor ?? [Math.floor(width / 2), Math.floor(height / 2)];
  }
}

/** @param {Selection} selection */
function named({ kind, index }) {
  return `${kind === "handle" ? "Handle" : "Target"} ${index + 1}`;
}
