/** What a drag feels like: measured where it is felt, in the page. Times are performance.now() milliseconds. */

const KEPT = 300;

/** The last values of one quantity. */
export class Samples {
  /** @type {number[]} */ #values = [];

  /** @param {number} value */
  add(value) {
    if (!Number.isFinite(value)) return;
    this.#values.push(value);
    if (this.#values.length > KEPT) this.#values.shift();
  }

  clear() {
    this.#values = [];
  }

  get values() {
    return [...this.#values];
  }

  /** The value below which a share of them lies, by nearest rank; NaN without any. @param {number} share  0…1 */
  percentile(share) {
    if (!this.#values.length) return NaN;
    const sorted = [...this.#values].sort((a, b) => a - b);
    return sorted[Math.max(Math.ceil(share * sorted.length) - 1, 0)];
  }
}

/**
 * Follows pointer moves to the animation frame that shows them.
 *
 * A move is shown by the first painted frame whose stamp is the move's or a later one: a frame that reflects a newer
 * target overtakes the older ones.
 */
export class Latency {
  pointerToPaint = new Samples();
  /** Of the server: the steps of a frame, its rendering, its encoding. */
  step = new Samples();
  render = new Samples();
  encode = new Samples();
  /** Both ways, from sending the targets to receiving their frame, without what the server took. */
  network = new Samples();
  /** From receiving a frame until it is drawn. */
  paint = new Samples();
  dropped = 0;
  painted = 0;
  /** @type {{stamp: number, at: number}[]} */ #moves = [];
  /** @type {Map<number, number>} */ #sent = new Map();
  /** @type {{at: number, step: number}[]} */ #paints = [];

  /** A pointer's move, which the `targets` message of this stamp carries. @param {number} stamp @param {number} at */
  moved(stamp, at) {
    this.#moves.push({ stamp, at });
  }

  /** @param {number} stamp @param {number} at */
  sent(stamp, at) {
    this.#sent.set(stamp, at);
  }

  /** Nothing is on its way any more: the handle has arrived, the drag has ended or the connection has. */
  settle() {
    this.#moves = [];
    this.#sent.clear();
  }

  /**
   * @param {import("./frame.js").Frame & {received: number}} frame
   * @param {number} now  when it was drawn
   * @returns {number[]} milliseconds from each pointer move that this frame is the first to show
   */
  drawn(frame, now) {
    const sent = this.#sent.get(frame.stamp);
    if (sent !== undefined) {
      // What is not the server's, both ways: it says how long the stamp has been with it.
      this.network.add(Math.max(frame.received - sent - frame.times.sinceStamp, 0));
    }
    for (const stamp of this.#sent.keys()) if (stamp <= frame.stamp) this.#sent.delete(stamp);
    if (frame.running) {
      this.paint.add(now - frame.received);
      for (const stage of /** @type {const} */ (["step", "render", "encode"])) this[stage].add(frame.times[stage]);
    }
    this.painted += 1;
    this.#paints.push({ at: now, step: frame.step });
    while (this.#paints[0].at < now - 1000) this.#paints.shift();
    const shown = this.#moves.filter((move) => move.stamp <= frame.stamp).map((move) => now - move.at);
    this.#moves = this.#moves.filter((move) => move.stamp > frame.stamp);
    for (const value of shown) this.pointerToPaint.add(value);
    return shown;
  }

  /** Frames painted, and steps that they showed, in the last second. @param {number} now */
  rates(now) {
    const paints = this.#paints.filter(({ at }) => at > now - 1000);
    const steps = paints.length ? paints[paints.length - 1].step - paints[0].step : 0;
    return { frames: paints.length, steps: Math.max(steps, 0) };
  }

  reset() {
    this.settle();
    const { pointerToPaint, step, render, encode, network, paint } = this;
    for (const samples of [pointerToPaint, step, render, encode, network, paint]) samples.clear();
    this.dropped = this.painted = 0;
    this.#paints = [];
  }
}
