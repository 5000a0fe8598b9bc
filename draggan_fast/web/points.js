/** Handles and targets as the page knows them, and which of them is selected. No drawing, no messages. */

/** @typedef {import("./viewport.js").Point} Point */
/** @typedef {{kind: "handle" | "target", index: number}} Selection */

export class Points {
  /** @type {Point[]} */ handles = [];
  /** @type {Point[]} */ targets = [];
  /** A handle that still waits for its target. @type {Point | null} */ pending = null;
  /** @type {Selection | null} */ selected = null;

  get count() {
    return this.handles.length;
  }

  /** @param {Point[]} handles @param {Point[]} targets */
  set(handles, targets) {
    this.handles = handles.map(copy);
    this.targets = targets.map(copy);
    if (this.selected && this.selected.index >= this.count) this.selected = null;
  }

  /** @param {Point} handle @param {Point} target @returns {number} its index */
  add(handle, target) {
    this.handles.push(copy(handle));
    this.targets.push(copy(target));
    return this.count - 1;
  }

  /** @param {number} index */
  remove(index) {
    this.handles.splice(index, 1);
    this.targets.splice(index, 1);
    this.selected = this.count ? { kind: "target", index: Math.min(index, this.count - 1) } : null;
  }

  clear() {
    this.set([], []);
    this.pending = null;
  }

  /** Where the selected point is. @returns {Point | null} */
  get selectedPoint() {
    return this.selected && (this.selected.kind === "handle" ? this.handles : this.targets)[this.selected.index];
  }

  /** @param {Selection} what @param {Point} point */
  move(what, point) {
    (what.kind === "handle" ? this.handles : this.targets)[what.index] = copy(point);
  }

  /**
   * The point under the pointer: the nearest within `radius`, targets before handles at the same place.
   * @param {Point} at @param {number} radius  in the unit of `at`
   * @param {(point: Point) => Point} project  from picture pixels into that unit
   * @returns {Selection | null}
   */
  hit(at, radius, project) {
    /** @type {Selection | null} */ let found = null;
    let nearest = radius;
    for (const kind of /** @type {const} */ (["target", "handle"])) {
      (kind === "target" ? this.targets : this.handles).forEach((point, index) => {
        const [x, y] = project(point);
        const away = Math.hypot(x - at[0], y - at[1]);
        if (away < nearest) {
          nearest = away;
          found = { kind, index };
        }
      });
    }
    return found;
  }

  /**
   * Selects the next (or previous) point: handle 1, target 1, handle 2, …
   * @param {1 | -1} direction
   * @returns {boolean} false past either end: nothing is selected any more
   */
  cycle(direction) {
    const length = 2 * this.count;
    const now = this.selected ? 2 * this.selected.index + (this.selected.kind === "target" ? 1 : 0) : null;
    const next = now === null ? (direction > 0 ? 0 : length - 1) : now + direction;
    this.selected =
      next >= 0 && next < length ? { kind: next % 2 ? "target" : "handle", index: Math.floor(next / 2) } : null;
    return this.selected !== null;
  }
}

/** @param {Point} point @returns {Point} */
function copy([x, y]) {
  return [x, y];
}
