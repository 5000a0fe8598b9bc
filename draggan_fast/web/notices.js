/** What lies over the picture when there is something to say: loading, reconnecting, gone, full, out of memory. */

import { byId, make } from "./dom.js";

const GONE_AFTER = 3; // failed attempts in a row
const TOAST_MS = 6000;
const RESTORED = "The server no longer had your picture. It is back, from this page's copy.";

export class Notices {
  #timer = 0;
  #toasting = 0;

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
    canvas.addEventListener("session", () => this.hide());
    canvas.addEventListener("restored", () => this.toast(RESTORED));
    this.#loading();
  }

  hide() {
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

  #loading() {
    this.#show("loading", make("span", { class: "spinner" }), make("p", {}, "Loading the picture"));
  }

  /** @param {import("./connection.js").ConnectionState} state */
  #connection(state) {
    window.clearInterval(this.#timer);
    if (state.state === "refused") this.#refused(state.code ?? "", state.message ?? "");
    else if (state.state === "waiting") this.#reconnecting(state);
    else if (state.state === "open" && this.canvas.session) this.hide();
  }

  /** @param {import("./connection.js").ConnectionState} state */
  #reconnecting(state) {
    const seconds = () => Math.max(Math.ceil(((state.retryAt ?? 0) - performance.now()) / 1000), 0);
    const line = make("p", { class: "number" });
    const tell = () => {
      line.textContent = seconds() ? `Trying again in ${seconds()} s` : "Trying again";
    };
    tell();
    this.#timer = window.setInterval(tell, 500);
    const again = this.#button("Try now", () => this.canvas.connection?.connect());
    if (state.attempts > GONE_AFTER) {
      const what = make("p", {}, "Is draggan-fast serve still running?");
      this.#show("gone", make("h2", {}, "The server is gone"), what, line, again);
    } else {
      this.#show("reconnecting", make("span", { class: "spinner" }), make("p", {}, "Reconnecting"));
    }
  }

  /** @param {string} code @param {string} message */
  #refused(code, message) {
    if (code === "unauthorised") {
      this.#askToken();
      return;
    }
    const titles = /** @type {Record<string, string>} */ ({
      replaced: "Opened elsewhere",
      idle: "Asleep",
      limit: "All places are taken",
      memory: "Out of memory",
    });
    const labels = /** @type {Record<string, string>} */ ({ replaced: "Use it here", idle: "Go on" });
    const label = labels[code] ?? "Try again";
    const again = this.#button(label, () => this.canvas.reconnect());
    this.#show(code, make("h2", {}, titles[code] ?? "The server refused"), make("p", {}, message), again);
  }

  #askToken() {
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

  /** @param {{code: string, message: string}} error */
  #error({ code, message }) {
    if (code === "gone") return; // the connection tells
    if (code === "unauthorised") {
      this.#askToken();
    } else if (code === "memory" || (code === "limit" && !this.canvas.session)) {
      this.#refused(code, message);
    } else {
      this.toast(message);
    }
  }

  /** @param {string} label @param {() => void} act */
  #button(label, act) {
    return make("button", { type: "button", class: "plain strong", click: act }, label);
  }

  /** @param {string} kind @param {Node[]} inside */
  #show(kind, ...inside) {
    this.notice.dataset.kind = kind;
    this.notice.replaceChildren(make("div", { class: "card" }, ...inside));
    this.notice.hidden = false;
  }
}
