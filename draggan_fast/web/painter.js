/**
 * Puts the newest picture on a canvas, once per animation frame. A picture that is overtaken while it is decoded or
 * while it waits for its animation frame is dropped.
 *
 * The canvas holds the picture enlarged smoothly to a fixed size; zooming and panning only move the canvas.
 */

const ENLARGED = 512; // pixels: beyond this the compositor's own smoothing is good enough, and free

/** @typedef {import("./frame.js").Frame} Frame */

export class Painter {
  /** @type {Frame | null} */ #decoding = null;
  /** @type {Frame | null} */ #next = null;
  /** @type {{frame: Frame, bitmap: ImageBitmap} | null} */ #ready = null;
  #scheduled = 0;

  /**
   * @param {HTMLCanvasElement} canvas
   * @param {(frame: Frame) => void} painted  called in the animation frame in which it was drawn
   * @param {(frame: Frame) => void} dropped  called for each frame that never will be
   */
  constructor(canvas, painted, dropped) {
    this.canvas = canvas;
    this.context = /** @type {CanvasRenderingContext2D} */ (canvas.getContext("2d", { alpha: false }));
    this.painted = painted;
    this.dropped = dropped;
  }

  /** @param {number} width @param {number} height  of the full picture, in its pixels */
  setSize(width, height) {
    const factor = Math.max(1, Math.ceil(ENLARGED / Math.max(width, height)));
    if (this.canvas.width === width * factor && this.canvas.height === height * factor) return;
    this.canvas.width = width * factor;
    this.canvas.height = height * factor;
  }

  /** @param {{left: number, top: number, width: number}} rectangle  where the picture shall be, in CSS pixels */
  place({ left, top, width }) {
    // subtle: through the CSSOM, a style attribute would be against the Content-Security-Policy
    this.canvas.style.transform = `translate(${left}px, ${top}px) scale(${width / this.canvas.width})`;
  }

  /** @param {Frame} frame */
  show(frame) {
    if (this.#decoding) {
      if (this.#next) this.dropped(this.#next);
      this.#next = frame;
    } else {
      this.#decode(frame);
    }
  }

  /** Forgets what has not been drawn yet: it belongs to a picture that is gone. */
  clear() {
    if (this.#next) this.dropped(this.#next);
    if (this.#ready) this.#discard(this.#ready);
    this.#decoding = this.#next = this.#ready = null;
  }

  /** @param {Frame} frame */
  async #decode(frame) {
    this.#decoding = frame;
    /** @type {ImageBitmap | null} */ let bitmap = null;
    try {
      bitmap = await createImageBitmap(frame.picture);
    } catch {
      // a damaged picture: the last good one stays
    }
    if (this.#decoding !== frame) {
      bitmap?.close();
      this.dropped(frame);
      return;
    }
    this.#decoding = null;
    if (bitmap) this.#arrived(frame, bitmap);
    else this.dropped(frame);
    const next = this.#next;
    this.#next = null;
    if (next) this.#decode(next);
  }

  /** @param {Frame} frame @param {ImageBitmap} bitmap */
  #arrived(frame, bitmap) {
    if (this.#ready) this.#discard(this.#ready);
    this.#ready = { frame, bitmap };
    if (!this.#scheduled) this.#scheduled = requestAnimationFrame(() => this.#paint());
  }

  /** @param {{frame: Frame, bitmap: ImageBitmap}} ready */
  #discard({ frame, bitmap }) {
    bitmap.close();
    this.dropped(frame);
  }

  #paint() {
    this.#scheduled = 0;
    if (!this.#ready) return;
    const { frame, bitmap } = this.#ready;
    this.#ready = null;
    const { canvas, context } = this;
    context.imageSmoothingEnabled = canvas.width !== bitmap.width;
    context.imageSmoothingQuality = "high";
    context.drawImage(bitmap, 0, 0, canvas.width, canvas.height);
    bitmap.close();
    this.painted(frame);
  }
}
