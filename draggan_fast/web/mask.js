/** The movable region as the page shows it: brush strokes are drawn here at once and sent when the brush is lifted. */

const SIDE = 512; // pixels at least of the longer side: round edges on small pictures
const MOST_POINTS = 4000; // of one stroke; the protocol allows 5000

/** @typedef {import("./viewport.js").Point} Point */
/** @typedef {{points: Point[], radius: number, movable: boolean}} Stroke  in pixels of the picture */

export class Mask {
  /** Opaque where the picture may change. */
  canvas = document.createElement("canvas");
  /** Whether there is one at all; without, all of the picture may change. */
  present = false;
  #factor = 1;
  #size = { width: 1, height: 1 };
  /** @type {Stroke | null} */ #stroke = null;
  /** @type {{present: boolean, image: ImageData} | null} */ #before = null;

  constructor() {
    this.context = /** @type {CanvasRenderingContext2D} */ (this.canvas.getContext("2d", { willReadFrequently: true }));
  }

  /** @param {number} width @param {number} height  of the picture; the mask is cleared */
  setSize(width, height) {
    this.#size = { width, height };
    this.#factor = Math.max(1, Math.ceil(SIDE / Math.max(width, height)));
    this.canvas.width = width * this.#factor;
    this.canvas.height = height * this.#factor;
    this.present = false;
  }

  clear() {
    this.context.clearRect(0, 0, this.canvas.width, this.canvas.height);
    this.present = false;
    this.#stroke = this.#before = null;
  }

  get painting() {
    return this.#stroke !== null;
  }

  /** Whether this point of the picture may move. @param {Point} at */
  movableAt([x, y]) {
    const at = (/** @type {number} */ value) => Math.floor((value + 0.5) * this.#factor);
    return !this.present || this.context.getImageData(at(x), at(y), 1, 1).data[3] >= 128;
  }

  /**
   * The first stroke decides what the rest is: fixed around a movable one, movable around a fixed one.
   * @param {Point} at @param {number} radius  in pixels of the picture
   * @param {boolean} movable
   */
  begin(at, radius, movable) {
    const { canvas, context } = this;
    this.#before = { present: this.present, image: context.getImageData(0, 0, canvas.width, canvas.height) };
    if (!this.present) {
      context.globalCompositeOperation = "source-over";
      if (movable) context.clearRect(0, 0, canvas.width, canvas.height);
      else context.fillRect(0, 0, canvas.width, canvas.height);
    }
    this.present = true;
    this.#stroke = { points: [at], radius, movable };
    this.#draw([at, at]);
  }

  /** @param {Point} at */
  extend(at) {
    const stroke = this.#stroke;
    if (!stroke || stroke.points.length >= MOST_POINTS) return;
    const last = stroke.points[stroke.points.length - 1];
    if (Math.hypot(at[0] - last[0], at[1] - last[1]) < Math.max(stroke.radius / 8, 0.5)) return;
    stroke.points.push(at);
    this.#draw([last, at]);
  }

  /** The `mask` message of the stroke that ends. @returns {{strokes: Stroke[], base: string} | null} */
  end() {
    const stroke = this.#stroke;
    this.#stroke = null;
    if (!stroke || !this.#before) return null;
    const round = (/** @type {number} */ value) => Math.round(value * 100) / 100;
    const points = stroke.points.map(([x, y]) => /** @type {Point} */ ([round(x), round(y)]));
    const base = this.#before.present ? "present" : stroke.movable ? "fixed" : "movable";
    return { strokes: [{ points, radius: round(stroke.radius), movable: stroke.movable }], base };
  }

  /** Takes the last stroke back: it was cancelled, or the server refused it. */
  revert() {
    this.#stroke = null;
    if (!this.#before) return;
    this.context.putImageData(this.#before.image, 0, 0);
    this.present = this.#before.present;
    this.#before = null;
  }

  /** @param {string | null} png  base64; light may move */
  async load(png) {
    if (!png) return this.clear();
    const bytes = Uint8Array.from(atob(png), (character) => character.charCodeAt(0));
    const bitmap = await createImageBitmap(new Blob([bytes], { type: "image/png" }));
    const { canvas, context } = this;
    context.globalCompositeOperation = "copy";
    context.imageSmoothingEnabled = false;
    context.drawImage(bitmap, 0, 0, canvas.width, canvas.height);
    context.globalCompositeOperation = "source-over";
    bitmap.close();
    const image = context.getImageData(0, 0, canvas.width, canvas.height);
    for (let offset = 0; offset < image.data.length; offset += 4) {
      image.data[offset + 3] = image.data[offset] >= 128 ? 255 : 0;
    }
    context.putImageData(image, 0, 0);
    this.#stroke = this.#before = null;
    this.present = true;
    return undefined;
  }

  /** White where the picture may change, black elsewhere, of the picture's size. @returns {Promise<Blob>} */
  toPNG() {
    const { width, height } = this.#size;
    const canvas = document.createElement("canvas");
    canvas.width = width;
    canvas.height = height;
    const context = /** @type {CanvasRenderingContext2D} */ (canvas.getContext("2d"));
    context.drawImage(this.canvas, 0, 0, width, height);
    const image = context.getImageData(0, 0, width, height);
    for (let offset = 0; offset < image.data.length; offset += 4) {
      const value = !this.present || image.data[offset + 3] >= 128 ? 255 : 0;
      image.data.set([value, value, value, 255], offset);
    }
    context.putImageData(image, 0, 0);
    return new Promise((resolve, reject) => {
      canvas.toBlob((blob) => (blob ? resolve(blob) : reject(new Error("The mask could not be encoded."))));
    });
  }

  /** @param {[Point, Point]} line */
  #draw([from, to]) {
    const { context } = this;
    const stroke = /** @type {Stroke} */ (this.#stroke);
    const at = (/** @type {number} */ value) => (value + 0.5) * this.#factor;
    context.globalCompositeOperation = stroke.movable ? "source-over" : "destination-out";
    context.lineCap = "round";
    context.lineWidth = 2 * stroke.radius * this.#factor;
    context.beginPath();
    context.moveTo(at(from[0]), at(from[1]));
    context.lineTo(at(to[0]), at(to[1]));
    context.stroke();
    context.beginPath(); // a line to where it began draws nothing
    context.arc(at(to[0]), at(to[1]), stroke.radius * this.#factor, 0, 2 * Math.PI);
    context.fill();
    context.globalCompositeOperation = "source-over";
  }
}
