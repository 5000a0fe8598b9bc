/** Which pixels a brush covers. The server's live_strokes.py paints the same ones. */

const LEAST_RADIUS = Math.sqrt(0.5); // pixels: as far as a point can be from the nearest centre of a pixel
const TIE = 1e-6; // pixels: a centre that lies on the edge is inside, however its distance was rounded

/** @typedef {import("./viewport.js").Point} Point */

/**
 * The pixels whose centres are within the radius of a line, and at least the nearest one of each end, row by row.
 * @param {Point} from @param {Point} to  in pixels of the picture, integers are centres
 * @param {number} radius
 * @param {{width: number, height: number}} size  of the picture
 * @param {(y: number, begin: number, end: number) => void} row  end: the first pixel that is not covered any more
 */
export function cover(from, to, radius, { width, height }, row) {
  const reach = Math.max(radius, LEAST_RADIUS) + TIE;
  const top = Math.max(Math.ceil(Math.min(from[1], to[1]) - reach), 0);
  const bottom = Math.min(Math.floor(Math.max(from[1], to[1]) + reach) + 1, height);
  for (let y = top; y < bottom; y += 1) {
    const [left, right] = span(from, to, reach, y);
    const begin = Math.min(Math.max(Math.ceil(left), 0), width);
    const end = Math.min(Math.max(Math.floor(right) + 1, 0), width);
    if (end > begin) row(y, begin, end);
  }
}

/**
 * Where a row enters and leaves what is within reach of a line: the discs around both ends, the rectangle between.
 * @param {Point} from @param {Point} to @param {number} reach @param {number} y
 * @returns {[number, number]} left > right if it never does
 */
function span([ax, ay], [bx, by], reach, y) {
  let [left, right] = [Infinity, -Infinity];
  const widen = (/** @type {number} */ low, /** @type {number} */ high) => {
    if (!(low <= high)) return; // also NaN
    left = Math.min(left, low);
    right = Math.max(right, high);
  };
  for (const [x, centre] of [[ax, ay], [bx, by]]) {
    const half = Math.sqrt(reach * reach - (y - centre) ** 2); // NaN beyond the disc
    widen(x - half, x + half);
  }
  const [dx, dy, v] = [bx - ax, by - ay, y - ay];
  const length = Math.sqrt(dx * dx + dy * dy);
  if (length === 0) return [left, right];
  const [ux, uy] = [dx / length, dy / length];
  const along = between(-v * uy, length - v * uy, ux);
  const across = between(v * ux - reach, v * ux + reach, uy);
  widen(ax + Math.max(along[0], across[0]), ax + Math.min(along[1], across[1]));
  return [left, right];
}

/**
 * The u with low ≤ u · slope ≤ high; with slope 0 that is any or none.
 * @param {number} low @param {number} high @param {number} slope
 * @returns {[number, number]}
 */
function between(low, high, slope) {
  if (slope === 0) return low <= 0 && high >= 0 ? [-Infinity, Infinity] : [Infinity, -Infinity];
  const [one, other] = [low / slope, high / slope];
  return [Math.min(one, other), Math.max(one, other)];
}
