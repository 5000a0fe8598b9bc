/**
 * What pressing on the picture does. Each mode has press, move, release and cancel; they change the points or the mask
 * and tell the driver.
 */

/** @typedef {import("./viewport.js").Point} Point */
/** @typedef {import("./points.js").Selection} Selection */

const REACH = { mouse: 14, pen: 16, touch: 28 }; // CSS pixels around a point that count as a hit
const PULL = 6; // CSS pixels after which a press in point mode pulls a target out of its handle

/**
 * @typedef {object} Host  what a mode works on
 * @property {import("./points.js").Points} points
 * @property {import("./mask.js").Mask} mask
 * @property {import("./viewport.js").Viewport} viewport
 * @property {import("./driver.js").Driver} driver
 * @property {{radius: number, erase: boolean}} brush
 * @property {boolean} running
 * @property {number} mostPoints
 * @property {(message: string) => void} announce
 * @property {() => Promise<void>} sendMask
 */

/**
 * Of this element: always its present driver, state and limits.
 * @param {import("./drag-canvas.js").DragCanvas} element
 * @param {() => import("./driver.js").Driver} driver
 * @param {() => Promise<void>} sendMask
 * @returns {Host}
 */
export function hostOf(element, driver, sendMask) {
  const { points, mask, viewport, brush } = element;
  return {
    points,
    mask,
    viewport,
    brush,
    get driver() {
      return driver();
    },
    get running() {
      return element.running;
    },
    get mostPoints() {
      return element.welcome?.limits.points ?? 64;
    },
    announce: (message) => element.announce(message),
    sendMask,
  };
}

/** @param {Host} host @param {Point} at @param {PointerEvent} event */
function hit(host, at, event) {
  const reach = REACH[/** @type {keyof typeof REACH} */ (event.pointerType)] ?? REACH.mouse;
  return host.points.hit(at, reach, (point) => host.viewport.toScreen(point));
}

/** Press and pull: the picture follows while the button is down, and settles after. */
export class LiveMode {
  /** @type {number | null} */ #index = null;
  /** @type {Point} */ #offset = [0, 0];

  /** @param {Host} host */
  constructor(host) {
    this.host = host;
  }

  /** With Shift the present points stay and hold the picture. @param {Point} at @param {PointerEvent} event */
  press(at, event) {
    const { points, driver, viewport, mostPoints } = this.host;
    const here = viewport.inside(viewport.toPicture(at));
    const found = hit(this.host, at, event);
    if (found) {
      const from = found.kind === "handle" ? points.handles[found.index] : points.targets[found.index];
      this.#index = found.index;
      this.#offset = [from[0] - here[0], from[1] - here[1]];
    } else {
      const held = event.shiftKey ? points.handles.slice(0, mostPoints - 1) : [];
      points.set([...held, here], [...held, here]);
      this.#index = held.length;
      this.#offset = [0, 0];
      driver.setPoints();
    }
    points.pending = null;
    points.selected = { kind: "target", index: this.#index };
    driver.follow();
  }

  /** @param {Point} at */
  move(at) {
    if (this.#index === null) return;
    const { points, driver, viewport } = this.host;
    const [x, y] = viewport.toPicture(at);
    points.move({ kind: "target", index: this.#index }, viewport.inside([x + this.#offset[0], y + this.#offset[1]]));
    driver.moveTargets();
  }

  release() {
    if (this.#index === null) return;
    this.#index = null;
    this.host.driver.settle();
  }

  cancel() {
    if (this.#index === null) return;
    this.#index = null;
    this.host.driver.pause();
  }
}

/** Pairs are placed first: press the handle, press the target or pull it out of the handle. All can be pulled later. */
export class PointMode {
  /** @type {Selection | null} */ #held = null;
  /** @type {Point} */ #offset = [0, 0];
  /** @type {Point | null} */ #pressed = null;
  #changed = false;

  /** @param {Host} host */
  constructor(host) {
    this.host = host;
  }

  /** @param {Point} at @param {PointerEvent} event */
  press(at, event) {
    const { points, viewport, driver, running, mostPoints, announce } = this.host;
    const here = viewport.inside(viewport.toPicture(at));
    this.#changed = false;
    const found = points.pending ? null : hit(this.host, at, event);
    if (found) {
      if (found.kind === "handle" && running) driver.pause();
      points.selected = this.#held = found;
      const from = /** @type {Point} */ (points.selectedPoint);
      this.#offset = [from[0] - here[0], from[1] - here[1]];
    } else if (points.pending) {
      this.#pair(points.pending, here);
    } else if (points.count >= mostPoints) {
      announce(`There are ${mostPoints} points: no more are possible.`);
    } else {
      points.pending = here;
      this.#pressed = at;
      announce("Handle placed. Now place its target.");
    }
  }

  /** @param {Point} at */
  move(at) {
    const { points, viewport, driver, running } = this.host;
    const [x, y] = viewport.toPicture(at);
    if (this.#held) {
      points.move(this.#held, viewport.inside([x + this.#offset[0], y + this.#offset[1]]));
      // A pair that the server does not know yet goes there as a whole, on release.
      if (this.#held.kind === "target" && running && !this.#changed) driver.moveTargets();
      else this.#changed = true;
    } else if (points.pending && this.#pressed) {
      const pulled = Math.hypot(at[0] - this.#pressed[0], at[1] - this.#pressed[1]);
      if (pulled > PULL) this.#pair(points.pending, viewport.inside([x, y]));
    }
  }

  release() {
    this.#held = this.#pressed = null;
    if (this.#changed) this.host.driver.setPoints();
    this.#changed = false;
  }

  cancel() {
    if (this.#pressed) this.host.points.pending = null;
    this.release();
  }

  /** @param {Point} handle @param {Point} target */
  #pair(handle, target) {
    const { points, announce } = this.host;
    const index = points.add(handle, target);
    points.pending = this.#pressed = null;
    points.selected = this.#held = { kind: "target", index };
    this.#offset = [0, 0];
    this.#changed = true;
    announce(`Point ${index + 1} has its target.`);
  }
}

/** Paints what may move, or with the eraser what must stay. */
export class MaskMode {
  /** @param {Host} host */
  constructor(host) {
    this.host = host;
  }

  /** @param {Point} at @param {PointerEvent} event  the right end of a pen erases */
  press(at, event) {
    const { mask, viewport, brush } = this.host;
    const erase = brush.erase || (event.buttons & 32) !== 0;
    mask.begin(viewport.toPicture(at), brush.radius, !erase);
  }

  /** @param {Point} at */
  move(at) {
    this.host.mask.extend(this.host.viewport.toPicture(at));
  }

  release() {
    void this.host.sendMask();
  }

  cancel() {
    this.host.mask.revert();
  }
}
