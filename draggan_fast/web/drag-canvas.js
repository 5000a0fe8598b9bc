/**
 * <drag-canvas src seed model label token mode remember>: a generated picture that is edited by pulling at it.
 *
 * docs/embedding.md, "The element", is its manual.
 */

import { Beginning, creation } from "./beginning.js";
import { Connection, UPLOAD_MASK } from "./connection.js";
import { SessionCopy } from "./copy.js";
import { buildView } from "./drag-canvas-view.js";
import { Driver } from "./driver.js";
import { Gestures } from "./gestures.js";
import { Keyboard } from "./keys.js";
import { Latency } from "./latency.js";
import { Mask } from "./mask.js";
import { Marks } from "./marks.js";
import { hostOf, LiveMode, MaskMode, PointMode } from "./modes.js";
import { Painter } from "./painter.js";
import { Points } from "./points.js";
import { Remembered } from "./remembered.js";
import { Viewport } from "./viewport.js";

const SMALL = 256; // pixels: up to here a picture is shown enlarged, and costs little to send as it is
const VIEW_SMALL = { fps: 60, format: "jpeg", quality: 95, preview: "auto" };
const VIEW_LARGE = { fps: 60, format: "jpeg", quality: 90, preview: "auto" };
const HERE = new Set(["localhost", "127.0.0.1", "[::1]"]); // bytes cost nothing there, decoding does
const BRUSH = { least: 1 / 128, most: 40 / 128 }; // its radius, as a share of the picture's height
const RUNNING = new Set(["running", "waiting"]);
const FILES = { picture: "picture.png", webp: "timeline.webp", mp4: "timeline.mp4", session: "session.safetensors" };

/** @typedef {import("./viewport.js").Point} Point */

export class DragCanvas extends HTMLElement {
  static observedAttributes = ["src", "seed", "model", "label", "token", "mode"];

  points = new Points();
  mask = new Mask();
  viewport = new Viewport();
  latency = new Latency();
  /** The brush of mask mode, its radius in pixels of the picture. */
  brush = { radius: 10, erase: false };
  truncationPsi = 0.7;
  /** What shall be sent otherwise than usual: the protocol's `view`. @type {Record<string, string | number>} */
  view = {};

  /** The server's last messages. @type {any} */ welcome = null;
  /** @type {any} */ session = null;
  /** @type {any} */ status = null;
  /** What was painted last. @type {import("./frame.js").Frame | null} */ frame = null;
  /** @type {Connection | null} */ connection = null;

  /** @type {Driver | null} */ #driver = null;
  #remembered = new Remembered(this);
  #viewAs = ""; // what this connection was told of it
  #present = false; // the server has this picture, and this connection sees it
  #recalled = Promise.resolve(); // what an earlier page has kept of it

  constructor() {
    super();
    this.#view = buildView(this);
    this.#marks = new Marks(this, this.#view, () => this.#keyboard.cursor);
    this.#painter = new Painter(
      this.#view.picture,
      (frame) => this.#painted(frame),
      (frame) => this.#dropped(frame),
    );
    const mode = () => this.#modes[this.mode];
    this.#gestures = new Gestures(this.#view.stage, this.viewport, {
      press: (at, event) => this.#pressed(() => mode().press(at, event)),
      move: (at) => this.#gesture(() => mode().move(at), this.mode === "live" && this.running),
      release: () => this.#gesture(() => mode().release()),
      cancel: () => this.#gesture(() => mode().cancel()),
      hover: (at) => this.#hovered(at),
      viewed: () => this.#viewed(),
    });
    this.#view.stage.addEventListener("keydown", (event) => {
      if (this.ready && this.#keyboard.handle(event)) event.preventDefault();
    });
    this.#view.stage.addEventListener("focus", () => {
      if (this.ready && this.#view.stage.matches(":focus-visible")) this.#keyboard.enter();
    });
    this.#view.stage.addEventListener("blur", () => this.#keyboard.leave());
    this.#resizes = new ResizeObserver(() => this.#resized());
  }

  #view; #marks; #painter; #gestures; #resizes;
  #host = hostOf(this, () => /** @type {Driver} */ (this.#driver), () => this.#sendMask());
  #modes = { live: new LiveMode(this.#host), points: new PointMode(this.#host), mask: new MaskMode(this.#host) };
  #copy = new SessionCopy(this);
  #beginning = new Beginning(this, this.#copy, (type, detail) => this.#tell(type, detail));
  #keyboard = new Keyboard(this, this.#host, () => this.#marks.redraw());

  // --- the element in its page ---------------------------------------------------------------------------------------

  connectedCallback() {
    this.#modeChanged();
    this.#resizes.observe(this);
    this.#remembered.arrive();
    this.reconnect();
  }

  disconnectedCallback() {
    this.#resizes.disconnect();
    this.#remembered.leave();
    this.#disconnect();
  }

  /** @param {string} name @param {string | null} old @param {string | null} value */
  attributeChangedCallback(name, old, value) {
    if (old === value) return;
    if (name === "src") this.#copy.forget(); // another server's picture
    if (!this.connection) return; // subtle: when an element in a page is upgraded, this comes before connectedCallback
    if (name === "mode") this.#modeChanged();
    else if (name === "src" || name === "token") this.reconnect();
    else if (value !== null && this.connection?.isOpen) void this.create();
  }

  /** "live", "points" or "mask". @returns {"live" | "points" | "mask"} */
  get mode() {
    const mode = this.getAttribute("mode");
    return mode === "points" || mode === "mask" ? mode : "live";
  }

  set mode(value) {
    this.setAttribute("mode", value);
  }

  /** URL of the server's root; by default where this module came from. */
  get base() {
    const src = this.getAttribute("src");
    const base = src === null ? new URL("../", import.meta.url) : new URL(src, document.baseURI);
    return base.href.endsWith("/") ? base.href : `${base.href}/`;
  }

  /** Whether steps are being made, or would be if a target moved. */
  get running() {
    return RUNNING.has(this.status?.state);
  }

  /** Whether there is a connection, and a picture at its other end. */
  get ready() {
    return this.#present && (this.connection?.isOpen ?? false);
  }

  /** The saved session of what was seen last at rest. It outlives the server's own. @returns {Blob | null} */
  get copy() {
    return this.#copy.file;
  }

  /** Whether the server has answered everything that was asked of the points. */
  get settled() {
    return this.#driver?.settled ?? true;
  }

  /** Connects (again), with the present attributes; to the same picture, if it is the same server. */
  reconnect() {
    const { base } = this;
    this.#disconnect();
    const session = this.#remembered.session(base);
    const connection = new Connection(base, this.getAttribute("token") ?? "", session);
    this.connection = connection;
    this.#recalled = this.#copy.recall(session);
    this.#driver = new Driver(connection, this.points, this.latency, (error) => this.#problem(error));
    const on = (/** @type {string} */ type, /** @type {(detail: any) => void} */ handle) =>
      connection.addEventListener(type, (event) => handle(/** @type {CustomEvent} */ (event).detail));
    on("welcome", (message) => void this.#welcomed(message));
    on("session", (message) => this.#sessionChanged(message));
    on("status", (message) => this.#statusChanged(message));
    on("frame", (frame) => this.#painter.show(frame));
    on("stats", (message) => this.#tell("stats", message));
    on("problem", (error) => this.#problem(error));
    on("state", (state) => {
      this.#present = false;
      this.#beginning.stop();
      if (state.state !== "open") this.#driver?.reset();
      this.#tell("connection", state);
    });
    connection.connect();
  }

  #disconnect() {
    this.#beginning.stop();
    this.connection?.close();
    this.#driver?.reset();
    this.#painter.clear();
    this.connection = null;
  }

  // --- what a caller asks for; each resolves to whether the server did it, a refusal comes as an `error` event -------

  /**
   * A new picture. The copy of the present one is kept until it is there.
   * @param {{seed?: number, truncationPsi?: number, model?: string, label?: number | null}} [options]
   */
  async create(options = {}) {
    const done = await this.#request("create", creation(this, options));
    if (done) this.#another();
    return done;
  }

  /** Asks again, at once, for the picture that the server refused to open. @returns {Promise<boolean>} */
  retry() {
    return this.#beginning.begin();
  }

  /** @param {Point[]} handles @param {Point[]} targets */
  setPoints(handles, targets) {
    this.points.clear();
    this.points.set(handles, targets);
    this.#marks.redraw();
    return this.#driver?.setPoints();
  }

  clearPoints() {
    return this.setPoints([], []);
  }

  /** Runs until every handle has arrived. */
  start() {
    if (!this.points.count) {
      this.announce("Place a handle and its target first.");
      return Promise.resolve(false);
    }
    return this.#driver?.settle();
  }

  pause() {
    return this.#driver?.pause();
  }

  toggle() {
    return this.running ? this.pause() : this.start();
  }

  /** @param {number} count */
  step(count = 1) {
    return this.#request("step", { count });
  }

  undo() {
    return this.#request("undo");
  }

  redo() {
    return this.#request("redo");
  }

  reset() {
    return this.#request("reset");
  }

  /** @param {number} index  0 … status.timeline − 1 */
  scrub(index) {
    return this.#request("scrub", { index });
  }

  /** @param {Record<string, number | string>} settings  any of the protocol's `settings` */
  configure(settings) {
    return this.#request("settings", settings);
  }

  /** @param {{radius?: number, erase?: boolean}} brush  radius in pixels, held to 1/128 … 40/128 of the picture */
  setBrush({ radius = this.brush.radius, erase = this.brush.erase }) {
    const { height } = this.viewport.picture;
    this.brush.radius = Math.min(Math.max(radius, BRUSH.least * height), BRUSH.most * height);
    this.brush.erase = erase;
    const does = erase ? "erases: what must stay" : "paints what may move";
    this.announce(`The brush ${does}. Radius ${Math.round(this.brush.radius)} pixels.`);
    this.#marks.redraw();
    this.#tell("brushchange", { ...this.brush });
  }

  clearMask() {
    this.mask.clear();
    this.#marks.drawVeil();
    return this.#request("mask", { clear: true });
  }

  /** @param {Blob} png  of the picture's size: light may move, dark must stay */
  async loadMask(png) {
    const done = await this.#answered(this.connection?.upload(UPLOAD_MASK, png));
    if (done) await this.#showMask(btoa(String.fromCharCode(...new Uint8Array(await png.arrayBuffer()))));
    return done;
  }

  /** Opens a saved session in place of this picture. @param {Blob} file */
  async open(file) {
    const done = await this.#answered(this.connection?.openSession(file));
    if (done) this.#another();
    return done;
  }

  /** @param {"picture" | "webp" | "mp4" | "session"} what @returns {Promise<Blob>} rejected with a ServerError */
  download(what) {
    return this.fetch(`api/sessions/${this.session.session}/${FILES[what]}`);
  }

  /** A file of the server. @param {string} path @param {AbortSignal} [signal] @returns {Promise<Blob>} */
  fetch(path, signal) {
    return /** @type {Connection} */ (this.connection).fetch(path, signal);
  }

  // --- the view ------------------------------------------------------------------------------------------------------

  /** About the middle of the element. @param {number} factor */
  zoomBy(factor) {
    this.viewport.zoomAt([this.clientWidth / 2, this.clientHeight / 2], factor);
    this.#viewed();
  }

  /** @param {number} dx @param {number} dy  CSS pixels that the picture moves, as far as there is more of it */
  panBy(dx, dy) {
    this.viewport.panBy(dx, dy);
    this.#viewed();
  }

  resetZoom() {
    this.viewport.reset();
    this.#viewed();
  }

  /** Tells users of a screen reader. @param {string} text */
  announce(text) {
    this.#view.live.textContent = text;
  }

  // --- what the server says ------------------------------------------------------------------------------------------

  /** @param {any} message */
  async #welcomed(message) {
    const { connection } = this;
    const resuming = connection?.session;
    // subtle: what is said next, `session` above all, is not to come before this
    if (!message.resumed && resuming && !this.#copy.file) {
      await this.#recalled;
      if (connection !== this.connection || !connection.isOpen) return;
    }
    this.welcome = message;
    this.#tell("welcome", message);
    this.#viewAs = "";
    this.#look(0);
    if (message.resumed) return;
    // Nothing is lost with a picture that nobody has touched, or whose copy is here.
    if (resuming && !this.#copy.file && (!this.session || this.status?.step)) this.#tell("lost", {});
    void this.#beginning.begin();
  }

  /** Says what shall be sent, of a picture of this size. @param {number} side  in pixels */
  #look(side) {
    const { connection } = this;
    const usual = side > SMALL ? VIEW_LARGE : VIEW_SMALL;
    const near = connection && side <= SMALL && HERE.has(new URL(connection.base).hostname);
    const view = { ...usual, ...(near && { format: "raw" }), ...this.view };
    if (this.#viewAs === JSON.stringify(view)) return;
    this.#viewAs = JSON.stringify(view);
    connection?.send("view", view);
  }

  /** @param {any} message */
  #sessionChanged(message) {
    const other = message.session !== this.session?.session;
    this.session = message;
    this.#present = true;
    this.truncationPsi = message.truncation_psi ?? this.truncationPsi;
    if (other) this.latency.reset();
    this.#remembered.note(/** @type {Connection} */ (this.connection).base, message.session);
    const { width, height } = message;
    this.viewport.setPicture(width, height);
    this.#painter.setSize(width, height);
    this.#copy.named(message.session); // after `ok`: of a picture that is not the copy's there is none any more
    this.#look(Math.max(width, height));
    this.mask.setSize(width, height);
    this.points.set(message.handles, message.targets);
    this.points.pending = null;
    void this.#showMask(message.mask?.png ?? null);
    const name = message.seed === null || message.seed === undefined ? "a saved session" : `seed ${message.seed}`;
    this.#view.stage.setAttribute("aria-label", `Picture of ${message.model}, ${name}`);
    this.#resized();
    this.#tell("session", message);
  }

  /** @param {any} message */
  #statusChanged(message) {
    const before = this.status?.state;
    this.status = message;
    if (message.state !== "running") this.latency.settle();
    // While it runs the handles come with the frames, and the targets are what was last asked for here.
    if (!this.running && this.#driver?.settled && !this.#gestures.pressing) {
      this.#driver.live = false;
      this.points.set(message.handles, message.targets);
      this.#marks.redraw();
    }
    if (message.message) this.announce(message.message);
    this.#tell("status", message);
    if (message.state === "done" && before !== "done") {
      this.announce(`Done after ${message.step} steps.`);
      this.#tell("done", message);
    }
    if (!this.running) this.#copy.keep();
  }

  /** The server has opened another picture at the user's wish: no attempt at the former one any more. */
  #another() {
    this.#beginning.stop();
    this.#copy.drop();
  }

  /** @param {any} frame */
  #painted(frame) {
    this.#view.picture.classList.add("shown");
    this.connection?.send("ack", { frame: frame.frame });
    const held = this.#gestures.pressing && this.mode === "points";
    if (!held) this.#driver?.track(frame.handles, this.viewport.picture.height);
    this.#marks.draw();
    const latency = this.latency.drawn(frame, performance.now());
    this.frame = frame;
    this.#tell("frame", { ...frame, latency });
  }

  /** @param {any} frame */
  #dropped(frame) {
    this.latency.dropped += 1;
    this.connection?.send("ack", { frame: frame.frame });
  }

  /** @param {Error & {code?: string}} error */
  #problem(error) {
    this.announce(error.message);
    this.#tell("error", { code: error.code ?? "internal", message: error.message });
  }

  // --- small things --------------------------------------------------------------------------------------------------

  async #sendMask() {
    const sent = this.mask.end();
    this.#marks.drawVeil();
    if (!sent) return;
    if (await this.#request("mask", sent.message)) return this.mask.accept(sent);
    this.mask.refuse(sent);
    this.#marks.drawVeil();
  }

  /** @param {string | null} png  base64 */
  async #showMask(png) {
    await this.mask.load(png);
    this.#marks.drawVeil();
  }

  /** @param {string} type @param {object} [fields] @returns {Promise<boolean>} */
  #request(type, fields) {
    return this.#answered(this.connection?.request(type, fields));
  }

  /** @param {Promise<object> | undefined} request @returns {Promise<boolean>} */
  async #answered(request) {
    try {
      await request;
      return request !== undefined;
    } catch (error) {
      this.#problem(/** @type {Error} */ (error));
      return false;
    }
  }

  /** @param {() => void} act */
  #pressed(act) {
    if (!this.ready) return;
    this.#keyboard.leave();
    this.#view.stage.classList.add("pulling");
    act();
    this.#marks.redraw();
  }

  /** @param {() => void} act @param {boolean} framed  whether pictures come that show what it does */
  #gesture(act, framed = false) {
    act();
    this.#view.stage.classList.toggle("pulling", this.#gestures.pressing);
    if (this.mask.painting) this.#marks.drawVeil();
    if (framed) this.#marks.redrawWithFrame();
    else this.#marks.redraw();
  }

  /** @param {Point | null} at */
  #hovered(at) {
    this.#marks.hover = at;
    if (this.mode === "mask") {
      if (at) this.#keyboard.leave(); // one brush, not two
      this.#marks.redraw();
    } else if (at && !this.#gestures.pressing) {
      const over = this.points.hit(at, 14, (point) => this.viewport.toScreen(point)) !== null;
      this.#view.stage.classList.toggle("grab", over);
    }
  }

  #modeChanged() {
    this.points.pending = null;
    this.#keyboard.leave();
    this.#view.stage.classList.toggle("brush", this.mode === "mask");
    this.#view.veil.classList.toggle("clear", this.mode === "mask");
    this.#marks.redraw();
    this.#tell("modechange", { mode: this.mode });
  }

  #resized() {
    this.#marks.resize();
    this.viewport.setBox(this.clientWidth, this.clientHeight);
    this.#viewed();
  }

  #viewed() {
    this.#painter.place(this.viewport.rectangle);
    this.#marks.drawVeil();
    this.#marks.redraw();
    this.#tell("viewchange", { zoom: this.viewport.zoom });
  }

  /** @param {string} type @param {unknown} detail */
  #tell(type, detail) {
    this.dispatchEvent(new CustomEvent(type, { detail }));
  }
}

if (!customElements.get("drag-canvas")) customElements.define("drag-canvas", DragCanvas);
