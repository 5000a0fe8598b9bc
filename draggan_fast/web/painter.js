/**
 * Puts the newest picture on a canvas, once per animation frame. A picture that is overtaken while it is decoded or
 * while it waits for its animation frame is dropped. One that comes as pixels waits for nothing else.
 *
 * The canvas holds the picture enlarged smoothly to a fixed size; zooming and panning only move the canvas.
 */

// Pixels, at least: beyond this the compositor's own smoothing is good enough, and free. While the picture moves a
// quarter of the work has to do: without a graphics card it is taken from whoever computes the picture.
const ENLARGED = 512;
const MOVING = 256;

/** @typedef {import("./frame.js").Frame} Frame */

export class Painter {
  /** @type {Frame | null} */ #decoding = null;
  /** @type {Frame | null} */ #next = null;
  /** @type {{frame: Frame, bitmap: ImageBitmap | null} | null} */ #ready = null;
  #scheduled = 0;
  #size = [0, 0]; // of the full picture
  #place = { left: 0, top: 0, width: 1 };

  /**
   * @param {HTMLCanvasElement} canvas
   * @param {(frame: Frame) => void} painted  called in the animation frame in which it was drawn
   * @param {(frame: Frame) => void} dropped  called for each frame that never will be
   */
  constructor(canvas, painted, dropped) {
    this.canvas = canvas;
    this.context = /** @type {CanvasRenderingContext2D} */ (canvas.getContext("2d", { alpha: false }));
    this.pixels = /** @type {OffscreenCanvasRenderingContext2D} */ (new OffscreenCanvas(1, 1).getContext("2d"));
    this.painted = painted;
    this.dropped = dropped;
  }

  /** @param {number} width @param {number} height  of the full picture, in its pixels */
  setSize(width, height) {
    if (width === this.#size[0] && height === this.#size[1]) return; // what is shown stays, in whichever size
    this.#size = [width, height];
    this.#enlarge(ENLARGED);
  }

  /** @param {{left: number, top: number, width: number}} rectangle  where the picture shall be, in CSS pixels */
  place(rectangle) {
    this.#place = rectangle;
    const { left, top, width } = rectangle;
    // subtle: through the CSSOM, a style attribute would be against the Content-Security-Policy
    this.canvas.style.transform = `translate(${left}px, ${top}px) scale(${width / this.canvas.width})`;
  }

  /** Gives the canvas the picture's size, enlarged to at least so many pixels; another size empties it. */
  #enlarge(/** @type {number} */ least) {
    const [width, height] = this.#size;
    const factor = Math.max(1, Math.ceil(least / Math.max(width, height)));
    if (this.canvas.width === width * factor && this.canvas.height === height * factor) return;
    this.canvas.width = width * factor;
    this.canvas.height = height * factor;
    this.place(this.#place);
  }

  /** @param {Frame} frame */
  show(frame) {
    if (frame.picture instanceof ImageData) {
      if (this.#next) this.dropped(this.#next);
      this.#decoding = this.#next = null; // what is being decoded is dropped when it is done
      this.#arrived(frame, null);
    } else if (this.#decoding) {
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
      bitmap = await createImageBitmap(/** @type {Blob} */ (frame.picture));
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

  /** @param {Frame} frame @param {ImageBitmap | null} bitmap  none: the frame has the pixels */
  #arrived(frame, bitmap) {
    if (this.#ready) this.#discard(this.#ready);
    this.#ready = { frame, bitmap };
    if (!this.#scheduled) this.#scheduled = requestAnimationFrame(() => this.#paint());
  }

  /** @param {{frame: Frame, bitmap: ImageBitmap | null}} ready */
  #discard({ frame, bitmap }) {
    bitmap?.close();
    this.dropped(frame);
  }

  #paint() {
    this.#scheduled = 0;
    if (!this.#ready) return;
    const { frame, bitmap } = this.#ready;
    this.#ready = null;
    const { canvas, context } = this;
    this.#enlarge(frame.running ? MOVING : ENLARGED);
    const source = bitmap ?? this.#laidDown(/** @type {ImageData} */ (frame.picture));
    context.imageSmoothingEnabled = canvas.width !== source.width;
    context.imageSmoothingQuality = "high";
    context.drawImage(source, 0, 0, canvas.width, canvas.height);
    bitmap?.close();
    this.painted(frame);
  }

  /** Pixels on a canvas of their size, from which they can be drawn enlarged. @param {ImageData} picture */
  #laidDown(picture) {
    const { canvas } = this.pixels;
    if (canvas.width !== picture.width) canvas.width = picture.width;
    if (canvas.height !== picture.height) canvas.height = picture.height;
    this.pixels.putImageData(picture, 0, 0);
    return canvas;
  }
}
