/** The keyboard in mask mode: arrow keys move the brush, Enter and Space dab, [ and ] change its size, X its kind. */

/** @typedef {import("./viewport.js").Point} Point */

export const ARROWS = /** @type {Record<string, Point>} */ ({
  ArrowLeft: [-1, 0],
  ArrowRight: [1, 0],
  ArrowUp: [0, -1],
  ArrowDown: [0, 1],
});
export const FAR = 10; // steps at once, with Shift
const REACH = 128; // steps from one side of the picture to the other, without Shift: the brush's unit of size too
const FAR_SIZE = 5; // units of size at once, with Shift

export class MaskKeys {
  /** The brush, while the keyboard moves it, in picture pixels. @type {Point | null} */ cursor = null;
  /** Where it was last. @type {Point | null} */ #last = null;
  #unanswered = 0; // dabs

  /**
   * @param {import("./drag-canvas.js").DragCanvas} element
   * @param {import("./modes.js").Host} host
   */
  constructor(element, host) {
    this.element = element;
    this.host = host;
  }

  /** Shows the brush where it was, or in the middle. */
  enter() {
    const { picture, inside } = this.#picture;
    this.#last ??= [Math.floor(picture.width / 2), Math.floor(picture.height / 2)];
    this.cursor = this.#last = inside(this.#last); // another picture may be smaller
  }

  /**
   * @param {string} key  letters in lower case
   * @param {KeyboardEvent} event
   * @returns {boolean} whether it was for the brush
   */
  handle(key, event) {
    if (key in ARROWS) {
      const [dx, dy] = ARROWS[key];
      this.#move(dx, dy, event.shiftKey);
    } else if (key === "Enter" || key === " ") {
      this.#dab(event.repeat);
    } else if (key === "x") {
      this.element.setBrush({ erase: !this.element.brush.erase });
    } else if (key === "[" || event.code === "BracketLeft") {
      this.#resize(-1, event.shiftKey);
    } else if (key === "]" || event.code === "BracketRight") {
      this.#resize(1, event.shiftKey);
    } else if (key === "Escape" && this.cursor) {
      this.cursor = null;
    } else {
      return false;
    }
    return true;
  }

  /** @param {number} dx @param {number} dy @param {boolean} far */
  #move(dx, dy, far) {
    const { picture, inside } = this.#picture;
    if (!this.cursor) this.enter();
    const [x, y] = /** @type {Point} */ (this.cursor);
    const step = Math.max(picture.height / REACH, 1) * (far ? FAR : 1);
    this.cursor = this.#last = inside([x + dx * step, y + dy * step]);
    const { mask, announce } = this.host;
    announce(`Brush at ${place(this.cursor)}: ${mask.movableAt(this.cursor) ? "may move" : "must stay"}.`);
  }

  /** @param {boolean} repeated  the key is held down: no more of them than the server answers */
  #dab(repeated) {
    const { mask, brush, announce, sendMask } = this.host;
    if (mask.painting || (repeated && this.#unanswered)) return; // painting: the pointer is
    if (!this.cursor) this.enter();
    const at = /** @type {Point} */ (this.cursor);
    mask.begin(at, brush.radius, !brush.erase);
    this.#unanswered += 1;
    void sendMask().finally(() => {
      this.#unanswered -= 1;
    });
    announce(`${brush.erase ? "Erased, must stay" : "Painted, may move"}: ${place(at)}.`);
  }

  /** @param {1 | -1} direction @param {boolean} far */
  #resize(direction, far) {
    const unit = this.#picture.picture.height / REACH;
    this.element.setBrush({ radius: this.element.brush.radius + direction * unit * (far ? FAR_SIZE : 1) });
  }

  get #picture() {
    const { viewport } = this.host;
    return { picture: viewport.picture, inside: (/** @type {Point} */ point) => viewport.inside(point) };
  }
}

/** @param {Point} point */
function place([x, y]) {
  return `${Math.round(x)}, ${Math.round(y)}`;
}
