/** The strip of pictures to begin with. */

import { make, showBlob } from "./dom.js";

// Chosen by eye from the embedded model's first forty; of any other model they are as good as any.
const SEEDS = [29, 5, 22, 8, 18, 33, 26, 17, 3, 21, 28, 2, 39, 14, 27, 6, 34, 9, 24, 1];
const SIZE = 128;
const AT_ONCE = 2; // requests: a picture that is being dragged goes first

export class Seeds {
  /** @type {IntersectionObserver} */ #seen;
  /** @type {HTMLButtonElement[]} */ #queue = [];
  #loading = 0;
  #generation = 0;

  /**
   * @param {HTMLElement} strip
   * @param {import("./drag-canvas.js").DragCanvas} canvas
   * @param {(seed: number) => void} choose
   */
  constructor(strip, canvas, choose) {
    this.strip = strip;
    this.canvas = canvas;
    this.#seen = new IntersectionObserver((entries) => this.#appeared(entries), { root: strip, rootMargin: "200px" });
    strip.append(
      ...SEEDS.map((seed) =>
        make(
          "button",
          { class: "seed", "data-seed": seed, title: `Seed ${seed}`, click: () => choose(seed) },
          make("img", { alt: `Seed ${seed}`, width: SIZE, height: SIZE, draggable: "false" }),
        ),
      ),
    );
  }

  /** Fetches the pictures (anew), as they come into sight. */
  load() {
    this.#generation += 1;
    this.#queue = [];
    for (const button of this.strip.children) {
      this.#seen.unobserve(button);
      this.#seen.observe(button);
    }
  }

  /** @param {number | null} seed  of the present picture */
  mark(seed) {
    for (const button of this.strip.children) {
      const present = Number(/** @type {HTMLElement} */ (button).dataset.seed) === seed;
      if (present) button.setAttribute("aria-current", "true");
      else button.removeAttribute("aria-current");
    }
  }

  /** @param {IntersectionObserverEntry[]} entries */
  #appeared(entries) {
    for (const entry of entries) {
      if (!entry.isIntersecting) continue;
      this.#seen.unobserve(entry.target);
      this.#queue.push(/** @type {HTMLButtonElement} */ (entry.target));
    }
    this.#next();
  }

  #next() {
    while (this.#loading < AT_ONCE && this.#queue.length) {
      const button = /** @type {HTMLButtonElement} */ (this.#queue.shift());
      this.#loading += 1;
      this.#fetch(button, this.#generation).finally(() => {
        this.#loading -= 1;
        this.#next();
      });
    }
  }

  /** @param {HTMLButtonElement} button @param {number} generation */
  async #fetch(button, generation) {
    const { canvas } = this;
    const { model, label = null } = canvas.session ?? {};
    const query = new URLSearchParams({ psi: String(canvas.truncationPsi), size: String(SIZE) });
    if (model) query.set("model", model);
    if (label !== null) query.set("label", label);
    const path = `api/seeds/${button.dataset.seed}.webp?${query}`;
    try {
      const blob = await canvas.fetch(path);
      const image = /** @type {HTMLImageElement} */ (button.firstElementChild);
      if (generation === this.#generation) showBlob(image, blob);
    } catch {
      button.classList.add("missing"); // the seed can be chosen all the same
    }
  }
}
