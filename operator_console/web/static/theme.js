// Light, dark or as the system says; loaded before the page is drawn, so that it never flashes.
(() => {
  "use strict";
  const KEY = "fedqueue-theme";
  const NEXT = { auto: "light", light: "dark", dark: "auto" };
  const root = document.documentElement;
  const read = () => {
    const kept = localStorage.getItem(KEY);
    return kept in NEXT ? kept : "auto";
  };
  const show = () => {
    root.dataset.theme = read();
    for (const button of document.querySelectorAll("[data-theme-switch]")) {
      const text = `Theme: ${read()}`;
      button.setAttribute("aria-label", `${text}. Change it.`);
      button.querySelector("[data-theme-name]").textContent = text;
    }
  };
  const change = () => {
    localStorage.setItem(KEY, NEXT[read()]);
    show();
    document.dispatchEvent(new Event("fedqueue-theme"));
  };
  show();
  document.addEventListener("DOMContentLoaded", show);
  document.addEventListener("fedqueue-change-theme", change);
  document.addEventListener("click", (event) => {
    if (event.target.closest("[data-theme-switch]")) change();
  });
})();
