/** What lies over the picture when there is something to say: loading, reconnecting, gone, full, out of memory. */

import { Countdown } from "./countdown.js";
import { byId, make } from "./dom.js";
import { save } from "./export.js";

const GONE_AFTER = 3; // failed attempts in a row
const TOAST_MS = 6000;
const MEMORY_BACK_OFF_MS = [5000, 10000, 20000]; // after which only the button goes on with the drag
const RESTORED = "The server no longer had your picture. It is back, from this page's copy.";
const LOST = "The server no longer has the picture that was open here. This is a new one.";
const SAFE = "Your picture is safe in this page.";

/** @type {Record<string, string>} */
const TITLES = {
  replaced: "Opened elsewhere",
  idle: "Asleep",
  limit: "All places are taken",
  rate: "The server is busy",
  memory: "Out of memory",
};

/** @typedef {import("./beginning.js").Opening} Opening */

export class Notices {
  #countdown = new Countdown();
  #toasting = 0;
  #failures = 0; // of memory, in a row
  #unopened = false; // a copy waits for the server to open it

  /**
   * @param {import("./drag-canvas.js").DragCanvas} canvas
   * @param {(token: string) => void} authorise
   */
  constructor(canvas, authorise) {
    this.canvas = canvas;
    this.authorise = authorise;
    this.notice = byId("notice");
    this.toastLine = byId("toast");
    canvas.addEventListener("connection", (/** @type {any} */ event) => this.#connection(event.detail));
    canvas.addEventListener("error", (/** @type {any} */ event) => this.#error(event.detail));
    canvas.addEventListener("session", () => {
      this.#unopened = false;
      this.hide();
    });
    canvas.addEventListener("status", (/** @type {any} */ event) => this.#status(event.detail.state));
    canvas.addEventListener("restored", () => this.toast(RESTORED));
    canvas.addEventListener("lost", () => this.toast(LOST));
    window.addEventListener("online", () => {
      if (canvas.connection?.state.state === "waiting") canvas.connection.connect();
    });
    window.addEventListener("beforeunload", (event) => {
      if (this.#unopened) event.preventDefault(); // the copy would go with the page
    });
    this.#show("loading", make("span", { class: "spinner" }), make("p", {}, "Loading the picture"));
  }

  hide() {
    this.#countdown.stop();
    this.notice.hidden = true;
    this.notice.replaceChildren();
  }

  /** One sentence, for a while. @param {string} text */
  toast(text) {
    window.clearTimeout(this.#toasting);
    this.toastLine.textContent = text;
    this.toastLine.hidden = false;
    this.#toasting = window.setTimeout(() => {
      this.toastLine.hidden = true;
    }, TOAST_MS);
  }

  /** @param {import("./connection.js").ConnectionState} state */
  #connection(state) {
    if (state.state === "refused") this.#refused(state.code ?? "", state.message ?? "");
    else if (state.state === "waiting") this.#reconnecting(state);
    else if (state.state === "connecting") this.#countdown.now();
  }

  /** @param {import("./connection.js").ConnectionState} state */
  #reconnecting({ attempts, retryAt = 0, code, message = "" }) {
    const again = this.#button("Try now", () => this.canvas.connection?.connect());
    if (code) {
      const line = this.#countdown.until(retryAt);
      this.#show(code, make("h2", {}, TITLES[code] ?? "The server refused"), make("p", {}, message), line, again);
    } else if (attempts > GONE_AFTER) {
      const what = make("p", {}, "Is draggan-fast serve still running?");
      const safe = this.canvas.copy ? [make("p", {}, SAFE)] : [];
      this.#show("gone", make("h2", {}, "The server is gone"), what, ...safe, this.#countdown.until(retryAt), again);
    } else {
      this.#countdown.stop();
      this.#show("reconnecting", make("span", { class: "spinner" }), make("p", {}, "Reconnecting"));
    }
  }

  /** No attempts by itself. @param {string} code @param {string} message */
  #refused(code, message) {
    if (code === "unauthorised") {
      this.#askToken();
      return;
    }
    this.#countdown.stop();
    const labels = /** @type {Record<string, string>} */ ({ replaced: "Use it here", idle: "Go on" });
    const label = labels[code] ?? "Try again";
    const again = this.#button(label, () => this.canvas.reconnect());
    this.#show(code, make("h2", {}, TITLES[code] ?? "The server refused"), make("p", {}, message), again);
  }

  /**
   * The server is there, but would not open a picture.
   * @param {string} code @param {string} message @param {Opening} opening
   */
  #unopenedPicture(code, message, { retryAt, copy }) {
    const { canvas } = this;
    this.#unopened = copy !== null;
    const line = retryAt === null ? [] : [this.#countdown.until(retryAt)];
    if (retryAt === null) this.#countdown.stop();
    const again = this.#button(retryAt === null ? "Try again" : "Try now", () => {
      this.#countdown.now();
      void canvas.retry();
    });
    const safe = copy ? [make("p", {}, SAFE)] : [];
    const others = copy
      ? [
          this.#button("Save it", () => save(copy, "picture.safetensors"), "plain"),
          this.#button("Begin anew", () => canvas.create({ model: canvas.welcome.model }), "plain"),
        ]
      : [];
    const title = TITLES[code] ?? (copy ? "Your picture could not be opened" : "There is no picture");
    const buttons = make("div", { class: "row" }, ...others, again);
    this.#show(code, make("h2", {}, title), make("p", {}, message), ...safe, ...line, buttons);
  }

  /** The picture is there, but the drag stopped: it goes on by itself a few times. @param {string} message */
  #outOfMemory(message) {
    const { canvas } = this;
    const delay = canvas.running ? MEMORY_BACK_OFF_MS[this.#failures] : undefined;
    const goOn = () => {
      this.hide();
      void (canvas.status?.handles.length ? canvas.start() : canvas.reconnect());
    };
    if (canvas.running) this.#failures += 1;
    const line = delay === undefined ? [] : [this.#countdown.until(performance.now() + delay, goOn)];
    if (delay === undefined) this.#countdown.stop();
    const close = this.#button("Not now", () => this.hide(), "plain");
    const buttons = make("div", { class: "row" }, close, this.#button("Try again", goOn));
    this.#show("memory", make("h2", {}, TITLES.memory), make("p", {}, message), ...line, buttons);
  }

  /** @param {string} state */
  #status(state) {
    if (state === "done" || state === "waiting") this.#failures = 0;
    const goesOn = this.canvas.ready && state !== "failed" && state !== "idle";
    if (goesOn && this.notice.dataset.kind === "memory") this.hide(); // the user went on in another way
  }

  #askToken() {
    this.#countdown.stop();
    const input = make("input", {
      type: "password",
      name: "token",
      autocomplete: "current-password",
      required: true,
      "aria-label": "Token",
    });
    const form = make(
      "form",
      {
        submit: (/** @type {Event} */ event) => {
          event.preventDefault();
          this.authorise(input.value);
        },
      },
      make("h2", {}, "This server asks for a token"),
      make("p", {}, "It is what draggan-fast serve was given as its token."),
      make("div", { class: "row" }, input, make("button", { class: "plain strong" }, "Open")),
    );
    this.#show("unauthorised", form);
    input.focus();
  }

  /** @param {{code: string, message: string, opening?: Opening}} error */
  #error({ code, message, opening }) {
    if (code === "gone") return; // the connection tells
    if (code === "unauthorised") this.#askToken();
    else if (opening) this.#unopenedPicture(code, message, opening);
    else if (code === "memory" && this.canvas.ready) this.#outOfMemory(message);
    else this.toast(message);
  }

  /** @param {string} label @param {() => void} act @param {string} [style] */
  #button(label, act, style = "plain strong") {
    return make("button", { type: "button", class: style, click: act }, label);
  }

  /** @param {string} kind @param {Node[]} inside */
  #show(kind, ...inside) {
    const focused = this.notice.contains(document.activeElement) ? document.activeElement?.textContent : null;
    this.notice.dataset.kind = kind;
    this.notice.replaceChildren(make("div", { class: "card" }, ...inside));
    this.notice.hidden = false;
    if (focused === null) return;
    // An attempt that failed puts up the same card again: the focus stays on its button.
    const buttons = /** @type {HTMLButtonElement[]} */ ([...this.notice.querySelectorAll("button")]);
    buttons.find((button) => button.textContent === focused)?.focus();
  }
}
