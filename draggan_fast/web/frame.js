/** Reads the binary frames of the live protocol (docs/protocol.md, "Frames"). */

const HEADER_BYTES = 48;
const POINT_BYTES = 12;
const FORMATS = { 1: "image/webp", 2: "image/jpeg", 3: "raw" };

/**
 * @typedef {object} Frame
 * @property {number} frame  its number, rising by 1 with every frame sent to this viewer
 * @property {number} step  steps made so far
 * @property {number} stamp  of the last `targets` message that the picture reflects, 0 if none
 * @property {boolean} preview  smaller than the picture: to be scaled up
 * @property {boolean} done
 * @property {boolean} running
 * @property {boolean} scrubbed  from the timeline
 * @property {number} width  of the sent picture, in pixels
 * @property {number} height
 * @property {{step: number, render: number, encode: number, wait: number, sinceStamp: number}} times  milliseconds
 * @property {number | null} loss
 * @property {[number, number][]} handles  [x, y] in pixels of the full picture
 * @property {number[]} distances  of each handle to its target, in pixels
 * @property {Blob | ImageData} picture  encoded, or its pixels
 */

/**
 * @param {ArrayBuffer} buffer
 * @returns {Frame}
 * @throws {RangeError} if it is not a frame of version 1
 */
export function parseFrame(buffer) {
  const view = new DataView(buffer);
  if (buffer.byteLength < HEADER_BYTES || view.getUint8(0) !== 0x44 || view.getUint8(1) !== 0x46) {
    throw new RangeError("A binary message from the server is not a frame.");
  }
  const type = FORMATS[view.getUint8(3)];
  if (view.getUint8(2) !== 1 || !type) {
    throw new RangeError("A frame from the server has a version or a format that this page does not know.");
  }
  const flags = view.getUint8(4);
  const count = view.getUint16(6, true);
  const start = HEADER_BYTES + count * POINT_BYTES;
  if (buffer.byteLength <= start) throw new RangeError("A frame from the server is cut off.");
  const [width, height] = [view.getUint16(20, true), view.getUint16(22, true)];
  const time = (/** @type {number} */ index) => view.getFloat32(24 + 4 * index, true);
  const loss = view.getFloat32(44, true);
  const handles = /** @type {[number, number][]} */ ([]);
  const distances = [];
  for (let offset = HEADER_BYTES; offset < start; offset += POINT_BYTES) {
    handles.push([view.getFloat32(offset, true), view.getFloat32(offset + 4, true)]);
    distances.push(view.getFloat32(offset + 8, true));
  }
  return {
    frame: view.getUint32(8, true),
    step: view.getUint32(12, true),
    stamp: view.getUint32(16, true),
    preview: (flags & 1) !== 0,
    done: (flags & 2) !== 0,
    running: (flags & 4) !== 0,
    scrubbed: (flags & 8) !== 0,
    width,
    height,
    times: { step: time(0), render: time(1), encode: time(2), wait: time(3), sinceStamp: time(4) },
    loss: Number.isNaN(loss) ? null : loss,
    handles,
    distances,
    picture: type === "raw" ? pixels(buffer, start, width, height) : new Blob([new Uint8Array(buffer, start)], { type }),
  };
}

/** @param {ArrayBuffer} buffer @param {number} start @param {number} width @param {number} height */
function pixels(buffer, start, width, height) {
  if (!width || !height || buffer.byteLength - start !== 4 * width * height) {
    throw new RangeError("A frame from the server has too few pixels or too many.");
  }
  return new ImageData(new Uint8ClampedArray(buffer, start), width, height);
}
