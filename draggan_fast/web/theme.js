/** Light, dark or as the system says. A classic script in the head, so that nothing flashes. */
(() => {
  const KEY = "drag-canvas:theme";
  const NEXT = { system: "light", light: "dark", dark: "system" };
  const NAMES = { system: "as the system", light: "light", dark: "dark" };

  /** @returns {"system" | "light" | "dark"} */
  function chosen() {
    try {
      const theme = localStorage.getItem(KEY);
      return theme === "light" || theme === "dark" ? theme : "system";
    } catch {
      return "system"; // no storage here
    }
  }

  /** @param {"system" | "light" | "dark"} theme */
  function apply(theme) {
    if (theme === "system") document.documentElement.removeAttribute("data-theme");
    else document.documentElement.dataset.theme = theme;
  }

  apply(chosen());
  document.addEventListener("DOMContentLoaded", () => {
    const button = /** @type {HTMLButtonElement} */ (document.getElementById("theme"));
    let theme = chosen();
    const label = () => {
      button.ariaLabel = button.title = `Theme: ${NAMES[theme]}`;
    };
    label();
    button.addEventListener("click", () => {
      theme = /** @type {"system" | "light" | "dark"} */ (NEXT[theme]);
      try {
        localStorage.setItem(KEY, theme);
      } catch {
        // no storage here: the choice lasts as long as the page
      }
      apply(theme);
      label();
    });
  });
})();
