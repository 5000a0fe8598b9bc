/**
 * <drag-canvas src seed model token mode remember>: a generated picture that is edited by pulling at it.
 *
 * docs/embedding.md, "The element", is its manual.
 */

import { Connection, UPLOAD_MASK, UPLOAD_SESSION } from "./connection.js";
import { SessionCopy } from "./copy.js";
import { buildView } from "./drag-canvas-view.js";
import { Driver } from "./driver.js";
import { Gestures } from "./gestures.js";
import { Keyboard } from "./keys.js";
import { Latency } from "./latency.js";
import { Mask } from "./mask.js";
import { LiveMode, MaskMode, PointMode } from "./modes.js";
import { drawBrush, drawCursor, drawPoints, drawVeil, Layer, markSize } from "./overlay.js";
import { Painter } from "./painter.js";
import { Points } from "./points.js";
import { Viewport } from "./viewport.js";

const SMALL = 256; // pixels: up to here a picture is shown enlarged, and costs little to send as it is
const VIEW_SMALL = { fps: 60, quality: 95, preview: "never" };
const VIEW_LARGE = { fps: 60, quality: 90, preview: "auto" };
const RUNNING = new Set(["running", "waiting"]);
const FILES = { picture: "picture.png", webp: "timeline.webp", mp4: "timeline.mp4", session: "session.safetensors" };

/** @typedef {import("./viewport.js").Point} Point */

export class DragCanvas extends HTMLElement {
  static observedAttributes = ["src", "seed", "model", "token", "mode"];

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
  /** @type {Point | null} */ #hover = null;
  #redrawing = 0;

  constructor() {
    super();
    this.#view = buildView(this);
    this.#overlay = new Layer(this.#view.overlay);
    this.#veil = new Layer(this.#view.veil);
    this.#painter = new Painter(
      this.#view.picture,
      (frame) => this.#painted(frame),
      (frame) => this.#dropped(frame),
    );
    const mode = () => this.#modes[this.mode];
    this.#gestures = new Gestures(this.#view.stage, this.viewport, {
      press: (at, event) => this.#pressed(() => mode().press(at, event)),
      move: (at) => this.#gesture(() => mode().move(at)),
      release: () => this.#gesture(() => mode().release()),
      cancel: () => this.#gesture(() => mode().cancel()),
      hover: (at) => this.#hovered(at),
      viewed: () => this.#viewed(),
    });
    this.#view.stage.addEventListener("keydown", (event) => {
      if (this.session && this.#keyboard.handle(event)) event.preventDefault();
    });
    this.#view.stage.addEventListener("blur", () => this.#keyboard.leave());
    this.#resizes = new ResizeObserver(() => this.#resized());
  }

  #view; #overlay; #veil; #painter; #gestures; #resizes;
  #host = this.#makeHost();
  #modes = { live: new LiveMode(this.#host), points: new PointMode(this.#host), mask: new MaskMode(this.#host) };
  #copy = new SessionCopy(this);
  #keyboard = new Keyboard(this, this.#host, () => this.#redraw());

  // --- the element in its page ---------------------------------------------------------------------------------------

  connectedCallback() {
    this.#modeChanged();
    this.#resizes.observe(this);
    this.reconnect();
  }

  disconnectedCallback() {
    this.#resizes.disconnect();
    this.#copy.forget();
    this.#disconnect();
  }

  /** @param {string} name @param {string | null} old @param {string | null} value */
  attributeChangedCallback(name, old, value) {
    if (old === value || !this.isConnected) return;
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

  /** Whether the server has answered everything that was asked of the points. */
  get settled() {
    return this.#driver?.settled ?? true;
  }

  /** Connects (again), with the present attributes. */
  reconnect() {
    this.#disconnect();
    const connection = new Connection(this.base, this.getAttribute("token") ?? "", this.#remembered());
    this.connection = connection;
    this.#driver = new Driver(connection, this.points, this.latency, (error) => this.#problem(error));
    const on = (/** @type {string} */ type, /** @type {(detail: any) => void} */ handle) =>
      connection.addEventListener(type, (event) => handle(/** @type {CustomEvent} */ (event).detail));
    on("welcome", (message) => this.#welcomed(message));
    on("session", (message) => this.#sessionChanged(message));
    on("status", (message) => this.#statusChanged(message));
    on("frame", (frame) => this.#painter.show(frame));
    on("stats", (message) => this.#tell("stats", message));
    on("problem", (error) => this.#problem(error));
    on("state", (state) => {
      if (state.state !== "open") this.#driver?.reset();
      this.#tell("connection", state);
    });
    connection.connect();
  }

  #disconnect() {
    this.connection?.close();
    this.#driver?.reset();
    this.#painter.clear();
    this.connection = null;
  }

  // --- what a caller asks for; each resolves to whether the server did it, a refusal comes as an `error` event -------

  /** A new picture. @param {{seed?: number, truncationPsi?: number, model?: string, label?: number}} [options] */
  create(options = {}) {
    const seed = options.seed ?? Number(this.getAttribute("seed") ?? 0);
    this.truncationPsi = options.truncationPsi ?? this.truncationPsi;
    const model = options.model ?? this.getAttribute("model");
    this.#copy.forget();
    return this.#request("create", {
      seed,
      truncation_psi: this.truncationPsi,
      ...(model && { model }),
      ...(options.label !== undefined && { label: options.label }),
    });
  }

  /** @param {Point[]} handles @param {Point[]} targets */
  setPoints(handles, targets) {
    this.points.clear();
    this.points.set(handles, targets);
    this.#redraw();
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

  clearMask() {
    this.mask.clear();
    this.#drawVeil();
    return this.#request("mask", { clear: true });
  }

  /** @param {Blob} png  of the picture's size: light may move, dark must stay */
  async loadMask(png) {
    const done = await this.#answered(this.connection?.upload(UPLOAD_MASK, png));
    if (done) await this.#showMask(btoa(String.fromCharCode(...new Uint8Array(await png.arrayBuffer()))));
    return done;
  }

  /** Opens a saved session in place of this picture. @param {Blob} file */
  open(file) {
    return this.#answered(this.connection?.upload(UPLOAD_SESSION, file));
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
    this.welcome = message;
    this.#tell("welcome", message);
    this.connection?.send("view", { ...VIEW_SMALL, ...this.view });
    if (message.resumed) return;
    const copy = this.#copy.file;
    if (copy && (await this.open(copy))) {
      this.#tell("restored", {});
    } else {
      await this.create(this.session ? { seed: this.session.seed ?? undefined } : {});
    }
  }

  /** @param {any} message */
  #sessionChanged(message) {
    const other = message.session !== this.session?.session;
    this.session = message;
    this.truncationPsi = message.truncation_psi ?? this.truncationPsi;
    if (other) this.latency.reset();
    this.#remember(message.session);
    const { width, height } = message;
    this.viewport.setPicture(width, height);
    this.#painter.setSize(width, height);
    if (Math.max(width, height) > SMALL) this.connection?.send("view", { ...VIEW_LARGE, ...this.view });
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
      this.#redraw();
    }
    if (message.message) this.announce(message.message);
    this.#tell("status", message);
    if (message.state === "done" && before !== "done") {
      this.announce(`Done after ${message.step} steps.`);
      this.#tell("done", message);
    }
    if (!this.running) this.#copy.keep();
  }

  /** @param {any} frame */
  #painted(frame) {
    this.#view.picture.classList.add("shown");
    this.connection?.send("ack", { frame: frame.frame });
    const held = this.#gestures.pressing && this.mode === "points";
    if (!held) this.#driver?.track(frame.handles, this.viewport.picture.height);
    this.#drawOverlay();
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

  /** What the modes work on: always the present driver, mode and state. @returns {import("./modes.js").Host} */
  #makeHost() {
    const element = this;
    return {
      points: this.points,
      mask: this.mask,
      viewport: this.viewport,
      brush: this.brush,
      get driver() {
        return /** @type {Driver} */ (element.#driver);
      },
      get running() {
        return element.running;
      },
      get mostPoints() {
        return element.welcome?.limits.points ?? 64;
      },
      announce: (message) => this.announce(message),
      sendMask: () => this.#sendMask(),
    };
  }

  async #sendMask() {
    const stroke = this.mask.end();
    this.#drawVeil();
    if (!stroke || (await this.#request("mask", stroke))) return;
    this.mask.revert();
    this.#drawVeil();
  }

  /** @param {string | null} png  base64 */
  async #showMask(png) {
    await this.mask.load(png);
    this.#drawVeil();
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
    if (!this.connection?.isOpen || !this.session) return;
    this.#keyboard.cursor = null;
    this.#view.stage.classList.add("pulling");
    act();
    this.#redraw();
  }

  /** @param {() => void} act */
  #gesture(act) {
    act();
    this.#view.stage.classList.toggle("pulling", this.#gestures.pressing);
    if (this.mask.painting) this.#drawVeil();
    this.#redraw();
  }

  /** @param {Point | null} at */
  #hovered(at) {
    this.#hover = at;
    if (this.mode === "mask") this.#redraw();
    else if (at && !this.#gestures.pressing) {
      const over = this.points.hit(at, 14, (point) => this.viewport.toScreen(point)) !== null;
      this.#view.stage.classList.toggle("grab", over);
    }
  }

  #modeChanged() {
    this.points.pending = null;
    this.#view.stage.classList.toggle("brush", this.mode === "mask");
    this.#view.veil.classList.toggle("clear", this.mode === "mask");
    this.#redraw();
    this.#tell("modechange", { mode: this.mode });
  }

  #resized() {
    const ratio = window.devicePixelRatio || 1;
    for (const layer of [this.#overlay, this.#veil]) layer.setSize(this.clientWidth, this.clientHeight, ratio);
    this.viewport.setBox(this.clientWidth, this.clientHeight);
    this.#viewed();
  }

  #viewed() {
    this.#painter.place(this.viewport.rectangle);
    this.#drawVeil();
    this.#redraw();
    this.#tell("viewchange", { zoom: this.viewport.zoom });
  }

  #drawVeil() {
    this.#view.veil.hidden = !this.mask.present; // a layer less to compose in every frame
    if (this.mask.present) drawVeil(this.#veil, this.mask, this.viewport);
  }

  #redraw() {
    if (!this.#redrawing) this.#redrawing = requestAnimationFrame(() => this.#drawOverlay());
  }

  #drawOverlay() {
    this.#redrawing = 0;
    const context = this.#overlay.begin();
    if (!this.session) return;
    const project = (/** @type {Point} */ point) => this.viewport.toScreen(point);
    if (this.mode === "mask") {
      if (this.#hover) drawBrush(context, this.#hover, this.brush.radius * this.viewport.scale, this.brush.erase);
      return;
    }
    drawPoints(context, this.points, project, markSize(Math.min(this.clientWidth, this.clientHeight)));
    if (this.#keyboard.cursor) drawCursor(context, project(this.#keyboard.cursor));
  }

  #remembered() {
    return this.hasAttribute("remember") ? (sessionStorage.getItem(`drag-canvas:${this.base}`) ?? "") : "";
  }

  /** @param {string} session */
  #remember(session) {
    if (this.hasAttribute("remember")) sessionStorage.setItem(`drag-canvas:${this.base}`, session);
  }

  /** @param {string} type @param {unknown} detail */
  #tell(type, detail) {
    this.dispatchEvent(new CustomEvent(type, { detail }));
  }
}

if (!customElements.get("drag-canvas")) customElements.define("drag-canvas", DragCanvas);
