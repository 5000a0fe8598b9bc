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
      ["Ctrl arrow keys", "Move the view, when zoomed in (on the picture). With Shift farther"],
      ["?", "This help"],
    ],
  ],
];

/** @param {HTMLButtonElement} button */
export function buildHelp(button) {
  const groups = HELP.map(([title, entries]) =>
    make(
      "section",
      {},
      make("h3", {}, title),
      make(
        "dl",
        {},
        ...entries.flatMap(([keys, does]) => [
          make("dt", {}, ...keys.split(", ").map((key) => make("kbd", {}, key))),
          make("dd", {}, does),
        ]),
      ),
    ),
  );
  const dialog = make(
    "dialog",
    { class: "help", "aria-labelledby": "help-title" },
    make(
      "header",
      {},
      make("h2", { id: "help-title" }, "Keys and gestures"),
      make("form", { method: "dialog" }, make("button", { class: "plain" }, "Close")),
    ),
    make("div", { class: "groups" }, ...groups),
  );
  dialog.addEventListener("click", (/** @type {MouseEvent} */ event) => {
    const { left, right, top, bottom } = dialog.getBoundingClientRect();
    const { clientX: x, clientY: y, target } = event;
    const beside = x < left || x > right || y < top || y > bottom;
    if (target === dialog && beside) dialog.close();
  });
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
