/**
 * The movable region as the page shows it: brush strokes are painted here at once and sent when the brush is lifted.
 * The server paints the same pixels.
 */

import { cover } from "./strokes.js";

const SIDE = 512; // pixels of the longer side of what is shown, about, if the picture has no more: round edges
const MOST_POINTS = 4000; // of one stroke; the protocol allows 5000

/** @typedef {import("./viewport.js").Point} Point */
/** @typedef {{points: Point[], radius: number, movable: boolean}} Stroke  in pixels of the picture */
/** @typedef {{present: boolean, pixels: Uint8Array<ArrayBuffer>}} Before  what a stroke was painted on */
/** @typedef {{message: {strokes: Stroke[], base: string}, before: Before}} Sent */

export class Mask {
  /** Opaque where the picture may change: what is shown, its edges drawn round between the pixels. */
  canvas = document.createElement("canvas");
  /** Whether there is one at all; without, all of the picture may change. */
  present = false;
  #factor = 1;
  #size = { width: 1, height: 1 };
  #pixels = new Uint8Array(1); // of the picture: 1 where it may change
  /** @type {Stroke | null} */ #stroke = null;
  /** @type {Before | null} */ #before = null;
  /** @type {Sent[]} */ #sent = []; // strokes that the server has not answered yet, the oldest first
  #loads = 0;

  constructor() {
    this.context = /** @type {CanvasRenderingContext2D} */ (this.canvas.getContext("2d", { willReadFrequently: true }));
  }

  /** @param {number} width @param {number} height  of the picture; the mask is cleared */
  setSize(width, height) {
    this.#size = { width, height };
    this.#pixels = new Uint8Array(width * height);
    // subtle: odd, so that the centre of a pixel is that of a fine one, which shows just what the pixel is
    this.#factor = 2 * Math.floor(SIDE / Math.max(width, height) / 2) + 1;
    this.canvas.width = width * this.#factor;
    this.canvas.height = height * this.#factor;
    this.present = false;
    this.#forget();
  }

  clear() {
    this.#pixels.fill(0);
    this.context.clearRect(0, 0, this.canvas.width, this.canvas.height);
    this.present = false;
    this.#forget();
  }

  /** There is another mask: what was painted and what is being loaded belongs to the former one. */
  #forget() {
    this.#loads += 1;
    this.#stroke = this.#before = null;
    this.#sent = [];
  }

  get painting() {
    return this.#stroke !== null;
  }

  /** Whether this point of the picture may move. @param {Point} at */
  movableAt([x, y]) {
    return !this.present || this.#pixels[Math.round(y) * this.#size.width + Math.round(x)] === 1;
  }

  /**
   * The first stroke decides what the rest is: fixed around a movable one, movable around a fixed one.
   * @param {Point} at @param {number} radius  in pixels of the picture
   * @param {boolean} movable
   */
  begin(at, radius, movable) {
    this.#before = this.#snapshot();
    if (!this.present) {
      this.#pixels.fill(movable ? 0 : 1);
      this.#show();
    }
    this.present = true;
    const first = rounded(at);
    this.#stroke = { points: [first], radius: hundredths(radius), movable };
    this.#paint(this.#stroke, first, first);
  }

  /** @param {Point} at */
  extend(at) {
    const stroke = this.#stroke;
    if (!stroke || stroke.points.length >= MOST_POINTS) return;
    const last = stroke.points[stroke.points.length - 1];
    if (Math.hypot(at[0] - last[0], at[1] - last[1]) < Math.max(stroke.radius / 8, 0.5)) return;
    const next = rounded(at);
    stroke.points.push(next);
    this.#paint(stroke, last, next);
  }

  /** The stroke that ends: to be sent as a `mask` message, then `accept`ed or `refuse`d. @returns {Sent | null} */
  end() {
    const [stroke, before] = [this.#stroke, this.#before];
    this.#stroke = this.#before = null;
    if (!stroke || !before) return null;
    const base = before.present ? "present" : stroke.movable ? "fixed" : "movable";
    const sent = { message: { strokes: [stroke], base }, before };
    this.#sent.push(sent);
    return sent;
  }

  /** The server has the stroke. @param {Sent} sent */
  accept(sent) {
    this.#sent = this.#sent.filter((other) => other !== sent);
  }

  /** The server has not: it is taken back, and those painted after it are painted anew. @param {Sent} sent */
  refuse(sent) {
    const at = this.#sent.indexOf(sent);
    if (at < 0) return; // another mask has come since
    const later = this.#sent.slice(at + 1);
    this.#sent.length = at;
    this.#goBack(sent.before);
    for (const other of later) {
      other.before = this.#snapshot();
      this.#sent.push(other);
      this.#repaint(other.message.strokes[0], other.message.base);
    }
    if (this.#stroke) {
      this.#before = this.#snapshot();
      this.#repaint(this.#stroke, this.#stroke.movable ? "fixed" : "movable");
    }
    this.#show();
  }

  /** Takes back the stroke that is being painted: it was cancelled. */
  revert() {
    const before = this.#before;
    this.#stroke = this.#before = null;
    if (!before) return;
    this.#goBack(before);
    this.#show();
  }

  /** @returns {Before} */
  #snapshot() {
    return { present: this.present, pixels: this.#pixels.slice() };
  }

  /** @param {Before} before */
  #goBack(before) {
    this.#pixels = before.pixels.slice();
    this.present = before.present;
  }

  /** As the server does it. @param {Stroke} stroke @param {string} base */
  #repaint(stroke, base) {
    if (!this.present) this.#pixels.fill(base === "fixed" ? 0 : 1);
    this.present = true;
    const { points } = stroke;
    points.forEach((point, index) => this.#paint(stroke, points[Math.max(index - 1, 0)], point));
  }

  /** @param {string | null} png  base64, of the picture's size; light may move */
  async load(png) {
    if (!png) return this.clear();
    const bytes = Uint8Array.from(atob(png), (character) => character.charCodeAt(0));
    this.#forget();
    const load = this.#loads;
    const bitmap = await createImageBitmap(new Blob([bytes], { type: "image/png" }));
    if (load !== this.#loads) return undefined; // overtaken
    const context = this.#blank();
    context.drawImage(bitmap, 0, 0);
    bitmap.close();
    const { data } = context.getImageData(0, 0, this.#size.width, this.#size.height);
    this.#pixels = Uint8Array.from(this.#pixels, (_, index) => (data[4 * index] >= 128 ? 1 : 0));
    this.present = true;
    this.#show();
    return undefined;
  }

  /** White where the picture may change, black elsewhere, of the picture's size. @returns {Promise<Blob>} */
  toPNG() {
    const context = this.#blank();
    const image = context.createImageData(this.#size.width, this.#size.height);
    this.#pixels.forEach((movable, index) => {
      const value = !this.present || movable ? 255 : 0;
      image.data.set([value, value, value, 255], 4 * index);
    });
    context.putImageData(image, 0, 0);
    return new Promise((resolve, reject) => {
      context.canvas.toBlob((blob) => (blob ? resolve(blob) : reject(new Error("The mask could not be encoded."))));
    });
  }

  /** A context of the picture's size. */
  #blank() {
    const canvas = document.createElement("canvas");
    Object.assign(canvas, this.#size);
    return /** @type {CanvasRenderingContext2D} */ (canvas.getContext("2d"));
  }

  /** @param {Stroke} stroke @param {Point} from @param {Point} to */
  #paint({ radius, movable }, from, to) {
    const { width, height } = this.#size;
    const box = { left: width, top: height, right: 0, bottom: 0 };
    cover(from, to, radius, this.#size, (y, begin, end) => {
      this.#pixels.fill(movable ? 1 : 0, y * width + begin, y * width + end);
      box.left = Math.min(box.left, begin);
      box.right = Math.max(box.right, end);
      box.top = Math.min(box.top, y);
      box.bottom = Math.max(box.bottom, y + 1);
    });
    if (box.right > box.left) this.#show(box);
  }

  /**
   * Draws these pixels, opaque where more may move than not of what lies around, weighted by quadratic splines: the
   * staircase between pixels becomes round, and yet each is seen at its centre as it is, also one alone.
   * @param {{left: number, top: number, right: number, bottom: number}} [box]  in pixels of the picture, else all
   */
  #show(box) {
    const { width, height } = this.#size;
    const factor = this.#factor;
    // A pixel has weight as far as the far edges of those beside it.
    const [left, right] = box ? [Math.max(box.left - 1, 0), Math.min(box.right + 1, width)] : [0, width];
    const [top, bottom] = box ? [Math.max(box.top - 1, 0), Math.min(box.bottom + 1, height)] : [0, height];
    const image = this.context.createImageData((right - left) * factor, (bottom - top) * factor);
    const fine = weights(factor);
    const around = new Uint8Array(9);
    for (let y = top; y < bottom; y += 1) {
      for (let x = left; x < right; x += 1) {
        const movable = this.#lookAround(x, y, around);
        if (movable === 0) continue;
        let at = 4 * ((y - top) * factor * image.width + (x - left) * factor) + 3; // alpha
        for (const high of fine) {
          fine.forEach((wide, index) => {
            // Of edges only: the sum is the same everywhere inside.
            if (movable === 9 || share(around, high, wide) >= 0.5) image.data[at + 4 * index] = 255;
          });
          at += 4 * image.width;
        }
      }
    }
    this.context.putImageData(image, left * factor, top * factor);
  }

  /**
   * @param {number} x @param {number} y
   * @param {Uint8Array} around  takes this pixel and those beside it, row by row; the picture's edge goes on outside
   * @returns {number} how many of them may move
   */
  #lookAround(x, y, around) {
    const { width, height } = this.#size;
    let movable = 0;
    for (let place = 0; place < 9; place += 1) {
      const row = Math.min(Math.max(y + Math.floor(place / 3) - 1, 0), height - 1);
      const column = Math.min(Math.max(x + (place % 3) - 1, 0), width - 1);
      movable += around[place] = this.#pixels[row * width + column];
    }
    return movable;
  }
}

/** @typedef {[number, number, number]} Weights  of the pixel before, this one, the next */

/** For each of the fine pixels of a pixel, along one side. @param {number} factor @returns {Weights[]} */
function weights(factor) {
  return Array.from({ length: factor }, (_, index) => {
    const off = (index + 0.5) / factor - 0.5; // of the pixel's centre
    return [(0.5 - off) ** 2 / 2, 0.75 - off * off, (0.5 + off) ** 2 / 2];
  });
}

/** How much of the surroundings may move. @param {Uint8Array} around @param {Weights} high @param {Weights} wide */
function share(around, high, wide) {
  let sum = 0;
  for (let place = 0; place < 9; place += 1) sum += around[place] * high[Math.floor(place / 3)] * wide[place % 3];
  return sum;
}

/** As it is sent: finer than any pointer. @param {number} value */
function hundredths(value) {
  return Math.round(value * 100) / 100;
}

/** @param {Point} point @returns {Point} */
function rounded([x, y]) {
  return [hundredths(x), hundredths(y)];
}
