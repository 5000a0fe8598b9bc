/** Small helpers to make elements. No inline styles anywhere: the page's Content-Security-Policy forbids them. */

/**
 * @param {string} name
 * @param {Record<string, string | number | boolean | ((event: any) => void)>} [attributes]  functions are listeners
 * @param {(Node | string)[]} inside
 * @returns {any} the element
 */
export function make(name, attributes = {}, ...inside) {
  const element = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) {
    if (typeof value === "function") element.addEventListener(key, value);
    else if (value === true) element.setAttribute(key, "");
    else if (value !== false) element.setAttribute(key, String(value));
  }
  element.append(...inside);
  return element;
}

/** The element with this id. @param {string} id @returns {any} */
export function byId(id) {
  const element = document.getElementById(id);
  if (!element) throw new Error(`The page has no element ${id}.`);
  return element;
}

/** @param {string} name  of a symbol in icons.svg */
export function icon(name) {
  const svg = document.createElementNS("http://www.w3.org/2000/svg", "svg");
  const use = document.createElementNS("http://www.w3.org/2000/svg", "use");
  use.setAttribute("href", `static/icons.svg#${name}`);
  svg.append(use);
  svg.setAttribute("aria-hidden", "true");
  return svg;
}

/** A picture fetched with the token, into an <img>. @param {HTMLImageElement} image @param {Blob} blob */
export function showBlob(image, blob) {
  const url = URL.createObjectURL(blob);
  image.onload = image.onerror = () => URL.revokeObjectURL(url);
  image.src = url;
}

/** @param {number} value  milliseconds */
export function milliseconds(value) {
  if (!Number.isFinite(value)) return "–";
  return value < 10 ? value.toFixed(1) : String(Math.round(value));
}
