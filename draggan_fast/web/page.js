/** The page around <drag-canvas>: wires its controls to the element's methods and events. */

import { byId } from "./dom.js";
import { DragCanvas } from "./drag-canvas.js";
import { buildExportMenu } from "./export.js";
import { buildHelp } from "./help.js";
import { keepWord, word } from "./kept.js";
import { LatencyPanel } from "./latency-panel.js";
import { ModelChoice } from "./models.js";
import { Notices } from "./notices.js";
import { Seeds } from "./seeds.js";
import { DragSettings, SliderRow, TRUNCATION } from "./settings.js";
import { Timeline } from "./timeline.js";

const FIRST_SEED = 29;
const DEFAULT_PSI = 0.7;
const COUNT_MS = 100; // between two numbers of steps while running
const NARROW = "(max-width: 999px)";
const HINTED_KEY = "drag-canvas:hinted";
const TOKEN_KEY = `drag-canvas:token:${new URL(".", document.baseURI).pathname}`;

const STATES = /** @type {Record<string, string>} */ ({
  idle: "Ready",
  running: "Dragging",
  waiting: "Following",
  paused: "Paused",
  done: "Arrived",
  limit: "Step limit reached",
  failed: "Stopped",
});

const HINTS = {
  live: "Press on the picture and pull",
  points: "Press what shall move, then where to",
  mask: "Paint what may move",
};

const canvas = new DragCanvas();

/** The token comes in the URL's fragment, which no server sees; it leaves the address bar at once. */
function takeToken() {
  const fragment = new URLSearchParams(location.hash.slice(1));
  const token = fragment.get("token");
  let given = word(TOKEN_KEY);
  if (token !== null) {
    given = token;
    keepWord(TOKEN_KEY, token);
    fragment.delete("token");
    const rest = fragment.toString();
    history.replaceState(null, "", location.pathname + location.search + (rest && `#${rest}`));
  }
  return given;
}

/** What the address asks for, as in #seed=5&label=2. @param {string} name @returns {string | null} */
function wanted(name) {
  return new URLSearchParams(location.hash.slice(1)).get(name);
}

/** @param {string} token */
function authorise(token) {
  keepWord(TOKEN_KEY, token);
  if (canvas.getAttribute("token") === token) canvas.reconnect();
  else canvas.setAttribute("token", token);
}

/** @param {string} name @returns {NodeListOf<HTMLInputElement>} */
function radios(name) {
  return document.querySelectorAll(`input[name="${name}"]`);
}

function wireModes() {
  const apply = (/** @type {string} */ mode) => {
    document.body.dataset.mode = mode;
    canvas.mode = /** @type {"live" | "points" | "mask"} */ (mode);
  };
  for (const radio of radios("mode")) {
    if (radio.checked) apply(radio.value);
    radio.addEventListener("change", () => apply(radio.value));
  }
  for (const radio of radios("brush")) {
    radio.addEventListener("change", () => {
      canvas.brush.erase = radio.value === "erase";
    });
  }
  byId("brush-size").addEventListener("input", setBrushSize);
  canvas.addEventListener("session", setBrushSize);
  canvas.addEventListener("brushchange", (/** @type {any} */ event) => {
    const { radius, erase } = event.detail;
    byId("brush-size").value = String(Math.round((radius * 128) / canvas.viewport.picture.height));
    showBrushSize();
    for (const radio of radios("brush")) radio.checked = erase === (radio.value === "erase");
  });
  showBrushSize();
}

/** The slider's scale is that of a picture of 128 pixels. */
function setBrushSize() {
  canvas.brush.radius = (Number(byId("brush-size").value) / 128) * (canvas.session?.height ?? 128);
  showBrushSize();
}

/** How much of the slider's track is filled. */
function showBrushSize() {
  const { value, min, max, style } = byId("brush-size");
  style.setProperty("--at", String((value - min) / (max - min)));
}

function wireButtons() {
  const press = (/** @type {string} */ id, /** @type {() => unknown} */ act) => byId(id).addEventListener("click", act);
  press("undo", () => canvas.undo());
  press("redo", () => canvas.redo());
  press("reset", () => canvas.reset());
  press("play", () => canvas.toggle());
  press("step", () => canvas.step());
  press("clear-points", () => canvas.clearPoints());
  press("clear-mask", () => canvas.clearMask());
  press("zoom-in", () => canvas.zoomBy(1.5));
  press("zoom-out", () => canvas.zoomBy(1 / 1.5));
  press("zoom-reset", () => canvas.resetZoom());
  document.addEventListener("keydown", (event) => {
    // Undo works wherever the focus is, but for a field that has its own.
    const { target } = event;
    const field = target instanceof HTMLInputElement && ["number", "password"].includes(target.type);
    const key = event.key.toLowerCase();
    if (event.defaultPrevented || field || !(event.ctrlKey || event.metaKey) || !"zy".includes(key)) return;
    event.preventDefault();
    void (event.shiftKey || key === "y" ? canvas.redo() : canvas.undo());
  });
  canvas.addEventListener("viewchange", (/** @type {any} */ event) => {
    const percent = `${Math.round(event.detail.zoom * 100)} %`;
    const button = byId("zoom-reset");
    button.textContent = percent;
    button.ariaLabel = `Zoom ${percent}: show all`;
  });
}

/** @param {DragSettings} settings @returns {() => Promise<void>} asks the server what it serves */
function wirePicture(settings) {
  const seed = byId("seed");
  const show = (/** @type {number} */ value, choice = of()) => canvas.create({ seed: value, ...choice });
  const of = () => ({ model: canvas.session?.model, label: canvas.session?.label });
  const choose = (/** @type {{model: string, label: number | null}} */ choice) => {
    void show(canvas.session?.seed ?? FIRST_SEED, choice);
  };
  const models = new ModelChoice(byId("model-choice"), canvas, choose, wanted("label") ?? "0");
  const seeds = new Seeds(byId("seeds"), canvas, show);
  const truncation = new SliderRow(TRUNCATION, (value) => {
    canvas.truncationPsi = value;
    if (canvas.session?.seed !== null) void show(canvas.session.seed);
    seeds.load();
  });
  truncation.mark({ default: DEFAULT_PSI });
  byId("truncation").append(truncation.element);
  byId("random").addEventListener("click", () => show(Math.floor(Math.random() * 1_000_000)));
  byId("seed-form").addEventListener("submit", (/** @type {Event} */ event) => {
    event.preventDefault();
    void show(Number(seed.value));
  });
  const mark = () => {
    const { settings: defaults } = models.find(canvas.session?.model) ?? {};
    if (defaults) settings.mark(defaults);
  };
  let loaded = "";
  canvas.addEventListener("session", (/** @type {any} */ event) => {
    const { model, label, seed: present, width, height } = event.detail;
    truncation.value = canvas.truncationPsi;
    mark();
    seed.value = present ?? "";
    seeds.mark(present);
    canvas.style.setProperty("--aspect", `${width} / ${height}`);
    canvas.style.setProperty("--ratio", String(width / height));
    const of = `${label} ${model}`;
    if (loaded !== of) seeds.load();
    loaded = of;
  });
  return async () => {
    await models.load();
    mark();
  };
}

function wireStatus() {
  const state = byId("state");
  const play = byId("play");
  canvas.addEventListener("status", (/** @type {any} */ event) => {
    const status = event.detail;
    const { running } = canvas;
    byId("undo").disabled = !status.undo;
    byId("redo").disabled = !status.redo;
    byId("reset").disabled = !(status.step || status.undo);
    byId("export").disabled = false;
    byId("clear-points").disabled = !status.handles.length;
    play.disabled = byId("step").disabled = !status.handles.length;
    play.classList.toggle("running", running);
    play.ariaLabel = running ? "Pause" : "Start";
    play.title = `${play.ariaLabel} (Space)`;
    state.dataset.state = status.state;
    showState(status.state, status.step);
  });
  // Not with every frame: each new number is a layout of the page, in the time in which the next picture is computed.
  let counted = 0;
  canvas.addEventListener("frame", (/** @type {any} */ event) => {
    if (!event.detail.running || performance.now() - counted < COUNT_MS) return;
    counted = performance.now();
    showState(canvas.status?.state, event.detail.step);
  });
  canvas.addEventListener("error", (/** @type {any} */ event) => {
    if (!event.detail.opening) return;
    byId("state-text").textContent = "No picture";
    document.body.classList.add("offline");
    state.dataset.state = "offline";
  });
  canvas.addEventListener("session", () => document.body.classList.remove("offline"));
  canvas.addEventListener("connection", (/** @type {any} */ event) => {
    const open = event.detail.state === "open";
    // Until the picture is there: the first status says how it is.
    if (!open) document.body.classList.add("offline");
    if (!open) byId("state-text").textContent = event.detail.state === "refused" ? "Not connected" : "Connecting";
    if (!open) state.dataset.state = "offline";
  });
}

/** What to do in each mode, until it has been done once. */
function wireHints() {
  const hint = byId("hint");
  const done = {
    live: () => Boolean(canvas.status?.step),
    points: () => canvas.points.count > 0 || canvas.points.pending !== null,
    mask: () => canvas.mask.present || canvas.mask.painting,
  };
  /** @type {Set<string>} */ const hinted = new Set(); // also where no word is kept
  const show = () => {
    const { mode } = canvas;
    if (done[mode]()) {
      hinted.add(mode);
      keepWord(`${HINTED_KEY}:${mode}`, "yes");
    }
    hint.textContent = HINTS[mode];
    hint.hidden = !canvas.session || hinted.has(mode) || word(`${HINTED_KEY}:${mode}`) !== "";
  };
  for (const event of ["session", "status", "modechange"]) canvas.addEventListener(event, show);
  canvas.addEventListener("pointerup", show);
}

/** @param {string} state @param {number} step */
function showState(state, step) {
  const steps = step ? ` · ${step} step${step === 1 ? "" : "s"}` : "";
  byId("state-text").textContent = (STATES[state] ?? state) + steps;
}

async function begin() {
  wireModes();
  wireButtons();
  const settings = new DragSettings(byId("sliders"), canvas);
  const load = wirePicture(settings);
  wireStatus();
  wireHints();
  const notices = new Notices(canvas, authorise);
  new Timeline(byId("timeline"), canvas);
  new LatencyPanel(byId("latency"), canvas);
  buildHelp(byId("help"));
  buildExportMenu(byId("export"), byId("export-menu"), canvas, (text) => notices.toast(text));
  if (matchMedia(NARROW).matches) for (const section of document.querySelectorAll("details")) section.open = false;
  const seed = wanted("seed") ?? "";
  canvas.setAttribute("seed", /^\d{1,10}$/.test(seed) ? seed : String(FIRST_SEED));
  canvas.setAttribute("token", takeToken());
  canvas.setAttribute("remember", "");
  canvas.setAttribute("src", ".");
  canvas.append(byId("over"));
  // What is served decides how the first picture is asked for, and may be another thing after a reconnection.
  await load();
  canvas.addEventListener("welcome", () => void load());
  byId("stage").append(canvas); // last: it connects, and everybody listens by now
}

void begin();
