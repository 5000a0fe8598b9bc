/** The keys and gestures, in a dialogue: opened by its button, or by a question mark. */

import { make } from "./dom.js";

/** @type {[string, [string, string][]][]} */
const HELP = [
  [
    "Pointer",
    [
      ["Press and pull", "Live: the picture follows. With Shift the present points hold it"],
      ["Wheel, two fingers", "Zoom"],
      ["Middle button, two fingers", "Move the view"],
    ],
  ],
  [
    "Points, on the picture",
    [
      ["Arrow keys", "Move the cursor or the chosen point. With Shift by 10"],
      ["Enter", "Place a point"],
      ["Tab", "Next point"],
      ["Delete", "Remove the chosen point"],
      ["Space", "Start and pause"],
      ["Escape", "Let go"],
    ],
  ],
  [
    "Mask, on the picture",
    [
      ["Arrow keys", "Move the brush. With Shift by 10"],
      ["Enter, Space", "Paint at the brush"],
      ["[  ]", "Smaller, larger brush. With Shift by 5"],
      ["X", "Between what may move and what must stay"],
    ],
  ],
  [
    "Everywhere",
    [
      ["Ctrl Z, Ctrl Y", "Undo, redo"],
      ["+  −  0", "Zoom in, out, show all (on the picture)"],
      ["?", "This help"],
    ],
  ],
];

/** @param {HTMLButtonElement} button */
export function buildHelp(button) {
  const close = make("button", { type: "submit", class: "plain strong" }, "Close");
  const groups = HELP.map(([title, entries]) =>
    make(
      "section",
      {},
      make("h3", {}, title),
      make(
        "dl",
        {},
        ...entries.flatMap(([keys, does]) => [
          make("dt", {}, ...keys.split(", ").flatMap((key, index) => [...(index ? [" "] : []), make("kbd", {}, key)])),
          make("dd", {}, does),
        ]),
      ),
    ),
  );
  const dialog = make(
    "dialog",
    { class: "help", "aria-labelledby": "help-title" },
    make("h2", { id: "help-title" }, "Keys and gestures"),
    make("div", { class: "groups" }, ...groups),
    make("form", { method: "dialog" }, close),
  );
  // The dialogue has no padding: a press on itself is one beside its content.
  dialog.addEventListener("click", (/** @type {Event} */ event) => event.target === dialog && dialog.close());
  document.body.append(dialog);
  button.addEventListener("click", () => dialog.showModal());
  document.addEventListener("keydown", (event) => {
    const { target } = event;
    const typing = target instanceof HTMLInputElement && ["number", "password"].includes(target.type);
    if (event.key !== "?" || typing || event.ctrlKey || event.metaKey || event.defaultPrevented) return;
    event.preventDefault();
    if (!dialog.open) dialog.showModal();
  });
}
