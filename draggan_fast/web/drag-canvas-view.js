/** The inside of <drag-canvas>: its layers and their style. */

import { make } from "./dom.js";

const STYLE = `
:host { display: block; position: relative; overflow: hidden; contain: strict; width: 100%; aspect-ratio: 1; }
:host([hidden]) { display: none; }
.stage { position: absolute; inset: 0; touch-action: none; user-select: none; -webkit-user-select: none;
  -webkit-touch-callout: none; outline: none; cursor: crosshair; }
.stage.grab { cursor: grab; }
.stage.pulling, .stage.pulling * { cursor: grabbing; }
.stage.brush { cursor: none; }
canvas { position: absolute; left: 0; top: 0; pointer-events: none; }
.picture { transform-origin: 0 0; opacity: 0; transition: opacity 0.2s; border-radius: inherit; }
.picture.shown { opacity: 1; }
.veil { width: 100%; height: 100%; }
.marks { transform-origin: 0 0; }
canvas[hidden] { display: none; }
.veil { transition: opacity 0.25s; opacity: 0.4; }
.veil.clear { opacity: 1; }
.focus { position: absolute; inset: 0; border-radius: inherit; pointer-events: none; }
.stage:focus-visible ~ .focus { box-shadow: inset 0 0 0 3px #2563eb, inset 0 0 0 5px #fff; }
.unseen { position: absolute; width: 1px; height: 1px; overflow: hidden; clip-path: inset(50%); white-space: nowrap; }
@media (prefers-reduced-motion: reduce) { .picture, .veil { transition: none; } }
`;

const HELP =
  "Press on the picture and pull. With the keyboard: Enter places a point, arrow keys move it, Tab goes to the next, " +
  "Delete removes it, Space starts and pauses, Control Z undoes, plus and minus zoom, Control with arrow keys moves " +
  "the view. In mask mode arrow keys move the brush, with Shift in large steps, Enter or Space paints, brackets " +
  "change its size, X changes between what may move and what must stay.";

/** @type {CSSStyleSheet | null} */ let sheet = null;

/**
 * @param {HTMLElement} host
 * @returns {{stage: HTMLElement, picture: HTMLCanvasElement, veil: HTMLCanvasElement, overlay: HTMLCanvasElement,
 *     live: HTMLElement}}
 */
export function buildView(host) {
  if (!sheet) {
    sheet = new CSSStyleSheet(); // constructed: a style element would be against the Content-Security-Policy
    sheet.replaceSync(STYLE);
  }
  const root = host.attachShadow({ mode: "open", delegatesFocus: true });
  root.adoptedStyleSheets = [sheet];
  const picture = make("canvas", { class: "picture" });
  const veil = make("canvas", { class: "veil" });
  const overlay = make("canvas", { class: "marks" });
  const stage = make(
    "div",
    {
      class: "stage",
      part: "stage",
      tabindex: 0,
      role: "application",
      "aria-roledescription": "draggable picture",
      "aria-label": "Picture",
      "aria-describedby": "help",
    },
    picture,
    veil,
    overlay,
  );
  const help = make("p", { class: "unseen", id: "help" }, HELP);
  const live = make("p", { class: "unseen", "aria-live": "polite" });
  root.append(stage, make("div", { class: "focus" }), make("slot", {}), help, live);
  return { stage, picture, veil, overlay, live };
}
