/** Draws what lies over the picture: handles (red), targets (blue), arrows, brush, the veil over what must stay. */

const HANDLE = "#e5383b";
const TARGET = "#2563eb";
const CASING = "rgba(16, 18, 22, 0.55)";
const RADIUS = 7; // CSS pixels
const SELECTED_RADIUS = 9;
const HEAD = 9;

/** @typedef {import("./viewport.js").Point} Point */

/** How much larger than usual marks are on a picture of this many CSS pixels. @param {number} side */
export function markSize(side) {
  return Math.min(Math.max(side / 720, 1), 2.5);
}

/** A canvas over the whole element, sharp on any screen. */
export class Layer {
  /** @param {HTMLCanvasElement} canvas */
  constructor(canvas) {
    this.canvas = canvas;
    this.context = /** @type {CanvasRenderingContext2D} */ (canvas.getContext("2d"));
  }

  /** @param {number} width @param {number} height  CSS pixels @param {number} ratio  device pixels per CSS pixel */
  setSize(width, height, ratio) {
    this.canvas.width = Math.max(Math.round(width * ratio), 1);
    this.canvas.height = Math.max(Math.round(height * ratio), 1);
    this.ratio = ratio;
  }

  /** The cleared context, in CSS pixels. */
  begin() {
    const { canvas, context } = this;
    context.setTransform(1, 0, 0, 1, 0, 0);
    context.clearRect(0, 0, canvas.width, canvas.height);
    context.setTransform(this.ratio || 1, 0, 0, this.ratio || 1, 0, 0);
    return context;
  }
}

const STEP = 64; // CSS pixels between the sizes and places that a patch takes: other sizes mean another canvas

/** A canvas over that part of the element only which is drawn on: all of it would be composed with every frame. */
export class Patch extends Layer {
  #box = { left: NaN, top: NaN, width: NaN, height: NaN }; // as the canvas has it: nothing is known yet

  /** @param {number} width @param {number} height  CSS pixels of the element @param {number} ratio */
  setSize(width, height, ratio) {
    this.limits = [width, height];
    this.ratio = ratio;
    this.#box = { left: NaN, top: NaN, width: NaN, height: NaN };
  }

  /**
   * The cleared context, in CSS pixels of the element, with room around these points; without any it is emptied.
   * @param {Point[]} points @param {number} margin
   */
  around(points, margin) {
    const [width, height] = this.limits ?? [0, 0];
    const step = Math.round(STEP * (this.ratio || 1)) / (this.ratio || 1); // whole pixels of the screen: sharp
    const ends = (/** @type {number} */ axis, /** @type {number} */ most) => {
      const values = points.map((point) => point[axis]);
      const from = Math.max(Math.floor((Math.min(...values) - margin) / step) * step, 0);
      const to = Math.min(Math.ceil((Math.max(...values) + margin) / step), Math.ceil(most / step)) * step;
      return points.length && to > from ? [from, to - from] : [0, 1];
    };
    const [[left, wide], [top, high]] = [ends(0, width), ends(1, height)];
    this.#fit(left, top, wide, high);
    const context = this.begin();
    context.translate(-left, -top);
    return context;
  }

  /** @param {number} left @param {number} top @param {number} width @param {number} height */
  #fit(left, top, width, height) {
    const { canvas } = this;
    const box = this.#box;
    if (box.width !== width || box.height !== height) {
      super.setSize(width, height, this.ratio || 1);
      canvas.style.width = `${width}px`;
      canvas.style.height = `${height}px`;
    }
    if (box.left !== left || box.top !== top) canvas.style.transform = `translate(${left}px, ${top}px)`;
    this.#box = { left, top, width, height };
  }
}

/**
 * @param {CanvasRenderingContext2D} context  in CSS pixels
 * @param {import("./points.js").Points} points
 * @param {(point: Point) => Point} project  from picture pixels to CSS pixels
 * @param {number} size  of the marks, 1 = as usual
 */
export function drawPoints(context, points, project, size) {
  const scaled = (/** @type {Point} */ point) => /** @type {Point} */ (project(point).map((value) => value / size));
  context.save();
  context.scale(size, size);
  const handles = points.handles.map(scaled);
  const targets = points.targets.map(scaled);
  const chosen = points.selected;
  const radius = (/** @type {string} */ kind, /** @type {number} */ index) =>
    chosen && chosen.kind === kind && chosen.index === index ? SELECTED_RADIUS : RADIUS;
  handles.forEach((handle, index) => drawArrow(context, handle, targets[index]));
  targets.forEach((target, index) => drawTarget(context, target, radius("target", index)));
  handles.forEach((handle, index) => drawHandle(context, handle, radius("handle", index)));
  if (points.pending) drawHandle(context, scaled(points.pending), SELECTED_RADIUS);
  context.restore();
}

/** @param {CanvasRenderingContext2D} context @param {Point} from @param {Point} to */
function drawArrow(context, from, to) {
  const length = Math.hypot(to[0] - from[0], to[1] - from[1]);
  if (length < RADIUS + HEAD) return;
  const [ux, uy] = [(to[0] - from[0]) / length, (to[1] - from[1]) / length];
  const tip = /** @type {Point} */ ([to[0] - ux * (RADIUS + 2), to[1] - uy * (RADIUS + 2)]);
  context.lineCap = context.lineJoin = "round";
  for (const [width, colour] of /** @type {[number, string][]} */ ([[5, CASING], [2.5, "#ffffff"]])) {
    context.lineWidth = width;
    context.strokeStyle = colour;
    context.beginPath();
    context.moveTo(from[0], from[1]);
    context.lineTo(tip[0], tip[1]);
    context.moveTo(tip[0] - ux * HEAD + uy * HEAD * 0.6, tip[1] - uy * HEAD - ux * HEAD * 0.6);
    context.lineTo(tip[0], tip[1]);
    context.lineTo(tip[0] - ux * HEAD - uy * HEAD * 0.6, tip[1] - uy * HEAD + ux * HEAD * 0.6);
    context.stroke();
  }
}

/** A filled disc. @param {CanvasRenderingContext2D} context @param {Point} at @param {number} radius */
function drawHandle(context, at, radius) {
  ring(context, at, radius + 1, 3.5, CASING);
  disc(context, at, radius, HANDLE);
  ring(context, at, radius, 2, "#ffffff");
}

/**
 * A ring with a point: what is under it stays visible.
 * @param {CanvasRenderingContext2D} context @param {Point} at @param {number} radius
 */
function drawTarget(context, at, radius) {
  ring(context, at, radius, 7, "#ffffff");
  ring(context, at, radius + 3.5, 1, CASING);
  ring(context, at, radius, 4, TARGET);
  disc(context, at, 2, TARGET);
}

/** @param {CanvasRenderingContext2D} context @param {Point} at @param {number} radius @param {string} colour */
function disc(context, [x, y], radius, colour) {
  context.fillStyle = colour;
  context.beginPath();
  context.arc(x, y, radius, 0, 2 * Math.PI);
  context.fill();
}

/**
 * @param {CanvasRenderingContext2D} context @param {Point} at
 * @param {number} radius @param {number} width @param {string} colour
 */
function ring(context, [x, y], radius, width, colour) {
  context.lineWidth = width;
  context.strokeStyle = colour;
  context.beginPath();
  context.arc(x, y, radius, 0, 2 * Math.PI);
  context.stroke();
}

/**
 * The brush, under the pointer or moved by the keyboard: then with its middle marked.
 * @param {CanvasRenderingContext2D} context @param {Point} at @param {number} radius @param {boolean} erasing
 * @param {boolean} centred @param {number} size  of the marks, 1 = as usual
 */
export function drawBrush(context, at, radius, erasing, centred, size) {
  ring(context, at, radius, 3.5 * size, CASING);
  context.setLineDash(erasing ? [6 * size, 5 * size] : []);
  ring(context, at, radius, 1.5 * size, "#ffffff");
  context.setLineDash([]);
  if (!centred) return;
  disc(context, at, 4 * size, CASING);
  disc(context, at, 2.5 * size, "#ffffff");
}

/**
 * Where Enter would place a point.
 * @param {CanvasRenderingContext2D} context @param {Point} at @param {number} size  of the marks, 1 = as usual
 */
export function drawCursor(context, [x, y], size) {
  context.lineCap = "round";
  for (const [width, colour] of /** @type {[number, string][]} */ ([[5, CASING], [2, "#ffffff"]])) {
    context.lineWidth = width * size;
    context.strokeStyle = colour;
    context.beginPath();
    for (const [dx, dy] of [[1, 0], [-1, 0], [0, 1], [0, -1]]) {
      context.moveTo(x + 5 * size * dx, y + 5 * size * dy);
      context.lineTo(x + 14 * size * dx, y + 14 * size * dy);
    }
    context.stroke();
  }
}

/** @type {HTMLCanvasElement | null} */ let hatching = null;

/** Diagonal lines on a dimmed ground. */
function hatch() {
  if (hatching) return hatching;
  hatching = document.createElement("canvas");
  hatching.width = hatching.height = 20;
  const context = /** @type {CanvasRenderingContext2D} */ (hatching.getContext("2d"));
  context.fillStyle = "rgba(15, 17, 21, 0.5)";
  context.fillRect(0, 0, 20, 20);
  context.strokeStyle = "rgba(255, 255, 255, 0.28)";
  context.lineWidth = 2;
  context.beginPath();
  for (const shift of [-20, -10, 0, 10, 20]) {
    context.moveTo(shift - 2, 22);
    context.lineTo(shift + 22, -2);
  }
  context.stroke();
  return hatching;
}

/**
 * Dims and hatches what must stay.
 * @param {Layer} layer @param {import("./mask.js").Mask} mask @param {import("./viewport.js").Viewport} viewport
 * @param {number} size  of the hatching, 1 = as usual
 */
export function drawVeil(layer, mask, viewport, size) {
  const context = layer.begin();
  const { left, top, width, height } = viewport.rectangle;
  const pattern = /** @type {CanvasPattern} */ (context.createPattern(hatch(), "repeat"));
  pattern.setTransform(new DOMMatrix().scale(size));
  context.fillStyle = pattern;
  context.fillRect(left, top, width, height);
  context.globalCompositeOperation = "destination-out";
  context.imageSmoothingQuality = "high";
  context.drawImage(mask.canvas, left, top, width, height);
  context.globalCompositeOperation = "source-over";
}
