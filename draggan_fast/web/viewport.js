/** Where the picture lies in the element: fitted, zoomed, panned. Pure geometry in CSS pixels. */

const MAX_ZOOM = 16;

/** @typedef {[number, number]} Point */

export class Viewport {
  #box = { width: 1, height: 1 };
  #picture = { width: 1, height: 1 };
  zoom = 1;
  #pan = { x: 0, y: 0 }; // of the picture's centre from the box's

  /** @param {number} width @param {number} height  of the element, in CSS pixels */
  setBox(width, height) {
    this.#box = { width: Math.max(width, 1), height: Math.max(height, 1) };
    this.#clamp();
  }

  /** @param {number} width @param {number} height  of the picture, in its pixels */
  setPicture(width, height) {
    if (width === this.#picture.width && height === this.#picture.height) return;
    this.#picture = { width, height };
    this.reset();
  }

  get picture() {
    return this.#picture;
  }

  /** CSS pixels of one pixel of the picture. */
  get scale() {
    const { width, height } = this.#picture;
    return Math.min(this.#box.width / width, this.#box.height / height) * this.zoom;
  }

  /** The picture's rectangle in the element: left, top, width, height. */
  get rectangle() {
    const width = this.#picture.width * this.scale;
    const height = this.#picture.height * this.scale;
    const left = (this.#box.width - width) / 2 + this.#pan.x;
    const top = (this.#box.height - height) / 2 + this.#pan.y;
    return { left, top, width, height };
  }

  /** Integer coordinates of the picture are pixel centres. @param {Point} point @returns {Point} */
  toScreen([x, y]) {
    const { left, top } = this.rectangle;
    return [left + (x + 0.5) * this.scale, top + (y + 0.5) * this.scale];
  }

  /** @param {Point} point @returns {Point} */
  toPicture([x, y]) {
    const { left, top } = this.rectangle;
    return [(x - left) / this.scale - 0.5, (y - top) / this.scale - 0.5];
  }

  /** The nearest point inside the picture. @param {Point} point @returns {Point} */
  inside([x, y]) {
    const clamp = (/** @type {number} */ value, /** @type {number} */ size) => Math.min(Math.max(value, 0), size - 1);
    return [clamp(x, this.#picture.width), clamp(y, this.#picture.height)];
  }

  /** Whether a point of the element lies on the picture. @param {Point} point */
  contains([x, y]) {
    const { left, top, width, height } = this.rectangle;
    return x >= left && y >= top && x < left + width && y < top + height;
  }

  /** Zooms so that what is under `at` stays there. @param {Point} at @param {number} factor */
  zoomAt([x, y], factor) {
    const before = this.toPicture([x, y]);
    this.zoom = Math.min(Math.max(this.zoom * factor, 1), MAX_ZOOM);
    const [nowX, nowY] = this.toScreen(before);
    this.panBy(x - nowX, y - nowY);
  }

  /** @param {number} dx @param {number} dy */
  panBy(dx, dy) {
    this.#pan = { x: this.#pan.x + dx, y: this.#pan.y + dy };
    this.#clamp();
  }

  reset() {
    this.zoom = 1;
    this.#pan = { x: 0, y: 0 };
  }

  /** No empty margin is shown that panning could fill. */
  #clamp() {
    const { width, height } = this.rectangle;
    const room = { x: Math.max(width - this.#box.width, 0) / 2, y: Math.max(height - this.#box.height, 0) / 2 };
    this.#pan.x = Math.min(Math.max(this.#pan.x, -room.x), room.x);
    this.#pan.y = Math.min(Math.max(this.#pan.y, -room.y), room.y);
  }
}
