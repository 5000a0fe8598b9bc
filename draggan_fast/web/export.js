/** The menu of what can be taken away and brought back: pictures, animations, the session, the mask. */

import { icon, make } from "./dom.js";

/**
 * @param {HTMLButtonElement} button
 * @param {HTMLElement} menu
 * @param {import("./drag-canvas.js").DragCanvas} canvas
 * @param {(text: string) => void} report  tells the user what went wrong
 */
export function buildExportMenu(button, menu, canvas, report) {
  const name = () => {
    const { model = "picture", seed = null } = canvas.session ?? {};
    return seed === null ? model : `${model}-${seed}`;
  };
  const saving = (/** @type {() => Promise<Blob>} */ get, /** @type {() => string} */ file) => async () => {
    button.setAttribute("aria-busy", "true");
    try {
      save(await get(), file());
    } catch (error) {
      report(/** @type {Error} */ (error).message);
    } finally {
      button.removeAttribute("aria-busy");
    }
  };
  const opening = (/** @type {string} */ accept, /** @type {(file: File) => Promise<boolean>} */ open) => () => {
    const input = make("input", { type: "file", accept });
    input.addEventListener("change", () => void open(input.files[0]));
    input.click();
  };
  /** @type {[string, string, string, () => void][]} */
  const items = [
    ["export", "Picture", "PNG", saving(() => canvas.download("picture"), () => `${name()}.png`)],
    ["export", "Timeline", "WebP", saving(() => canvas.download("webp"), () => `${name()}.webp`)],
    ["export", "Timeline", "MP4", saving(() => canvas.download("mp4"), () => `${name()}.mp4`)],
    ["export", "Session", "safetensors", saving(() => canvas.download("session"), () => `${name()}.safetensors`)],
    ["export", "Mask", "PNG", saving(() => canvas.mask.toPNG(), () => `${name()}-mask.png`)],
    ["open", "Open a session…", "", opening(".safetensors", (file) => canvas.open(file))],
    ["open", "Open a mask…", "", opening("image/png", (file) => canvas.loadMask(file))],
  ];
  const entries = items.map(([symbol, label, format, act]) =>
    make(
      "button",
      { type: "button", role: "menuitem", tabindex: -1, click: () => choose(act) },
      icon(symbol),
      label,
      make("small", {}, format),
    ),
  );
  entries.splice(5, 0, make("hr", {}));
  menu.append(...entries);
  const buttons = entries.filter((entry) => entry.localName === "button");

  const show = (/** @type {boolean} */ open) => {
    menu.hidden = !open;
    button.setAttribute("aria-expanded", String(open));
    if (open) buttons[0].focus();
  };
  const choose = (/** @type {() => void} */ act) => {
    show(false);
    button.focus();
    act();
  };
  button.addEventListener("click", () => show(menu.hidden));
  menu.addEventListener("keydown", (event) => {
    const at = buttons.indexOf(document.activeElement);
    const last = buttons.length - 1;
    const down = at === last ? 0 : at + 1;
    const up = at <= 0 ? last : at - 1;
    const next = { ArrowDown: down, ArrowUp: up, Home: 0, End: last }[event.key];
    if (next !== undefined) buttons[next].focus();
    else if (event.key === "Escape" || event.key === "Tab") choose(() => {});
    else return;
    event.preventDefault();
  });
  document.addEventListener("pointerdown", (event) => {
    const target = /** @type {Node} */ (event.target);
    if (!menu.hidden && !menu.contains(target) && !button.contains(target)) show(false);
  });
}

/** @param {Blob} blob @param {string} file */
export function save(blob, file) {
  const url = URL.createObjectURL(blob);
  const link = make("a", { href: url, download: file });
  link.click();
  window.setTimeout(() => URL.revokeObjectURL(url), 60_000); // the download has begun by then
}
