/** What happens to the points, in messages: sets them, moves targets (coalesced, stamped), starts and settles. */

const SEND_EVERY_MS = 14; // the protocol takes 200 messages a second, acknowledgements included
const STRAY = 24; // pixels at 512: farther than tracking moves a handle in the steps of one frame

/** @typedef {import("./viewport.js").Point} Point */

export class Driver {
  /** Whether the server waits for targets: a live drag. */
  live = false;
  #stamp = 0;
  #lastSent = 0;
  #scheduled = 0;
  #settingPoints = 0;
  #unanswered = 0;

  /**
   * @param {import("./connection.js").Connection} connection
   * @param {import("./points.js").Points} points
   * @param {import("./latency.js").Latency} latency
   * @param {(error: Error) => void} failed  a request was refused
   */
  constructor(connection, points, latency, failed) {
    this.connection = connection;
    this.points = points;
    this.latency = latency;
    this.failed = failed;
  }

  /** Tells the server the points as they are here; the drag is paused by it. */
  setPoints() {
    this.live = false;
    this.#settingPoints += 1;
    const { handles, targets } = this.points;
    return this.#ask("points", { handles: handles.map(rounded), targets: targets.map(rounded) }).finally(() => {
      this.#settingPoints -= 1;
    });
  }

  /** Runs and, after arrival, waits for the targets to move on. */
  follow() {
    if (this.live) return;
    this.live = true;
    void this.#ask("start", { live: true });
  }

  /** Runs until every handle has arrived. */
  settle() {
    this.#flush();
    this.live = false;
    return this.#ask("start");
  }

  pause() {
    this.live = false;
    return this.#ask("pause");
  }

  /** The targets have moved. @param {number} at  performance.now() of the pointer's move */
  moveTargets(at = performance.now()) {
    this.latency.moved(this.#stamp + 1, at);
    if (this.#scheduled) return;
    if (at - this.#lastSent >= SEND_EVERY_MS) this.#send();
    else this.#scheduled = requestAnimationFrame(() => this.#send());
  }

  /** A frame's handles, unless it was made before the present points were known. @param {Point[]} handles */
  track(handles, height = 512) {
    const { points } = this;
    if (this.#settingPoints || handles.length !== points.count) return;
    const reach = Math.max((STRAY * height) / 512, 4);
    const near = handles.every(([x, y], index) => {
      const [oldX, oldY] = points.handles[index];
      return Math.hypot(x - oldX, y - oldY) <= reach;
    });
    if (near) points.handles = handles;
  }

  /** Whether the server has answered everything: its word on the points is then as new as ours. */
  get settled() {
    return this.#unanswered === 0 && this.#scheduled === 0;
  }

  /** The connection is gone, and with it whatever was on its way. */
  reset() {
    this.live = false;
    cancelAnimationFrame(this.#scheduled);
    this.#scheduled = 0;
    this.latency.settle();
  }

  #flush() {
    if (!this.#scheduled) return;
    cancelAnimationFrame(this.#scheduled);
    this.#send();
  }

  #send() {
    this.#scheduled = 0;
    this.#stamp += 1;
    this.#lastSent = performance.now();
    this.latency.sent(this.#stamp, this.#lastSent);
    this.connection.send("targets", { targets: this.points.targets.map(rounded), stamp: this.#stamp });
  }

  /** @param {string} type @param {object} [fields] @returns {Promise<boolean>} whether the server did it */
  async #ask(type, fields) {
    this.#unanswered += 1;
    try {
      await this.connection.request(type, fields);
      return true;
    } catch (error) {
      this.live = false;
      this.failed(/** @type {Error} */ (error));
      return false;
    } finally {
      this.#unanswered -= 1;
    }
  }
}

/** A hundredth of a pixel is finer than any pointer. @param {Point} point @returns {Point} */
function rounded([x, y]) {
  return [Math.round(x * 100) / 100, Math.round(y * 100) / 100];
}
