// Single keys that jump about; they can be turned off, for whoever dictates.

const KEY = "fedqueue-shortcuts";
const PLACES = { o: "overview", i: "institutions", s: "staleness", d: "dead-letters", v: "versions", a: "audit" };

export const SHORTCUTS = [
  ["o", "Overview"],
  ["i", "Institutions"],
  ["s", "Staleness"],
  ["d", "Dead letters"],
  ["v", "Versions"],
  ["a", "Audit"],
  ["j", "the version before, where one is open"],
  ["k", "the version after"],
  ["t", "light, dark or as the system says"],
  ["?", "this help"],
];

export const shortcutsOn = () => localStorage.getItem(KEY) !== "off";
export const turnShortcuts = (on) => localStorage.setItem(KEY, on ? "on" : "off");

/** `does` has `go(place)`, `step(by)`, `theme()` and `help()`. */
export function listen(does) {
  document.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey || event.target.closest("input, select, textarea, dialog")) return;
    if (event.key === "?") return does.help();
    if (!shortcutsOn()) return;
    if (PLACES[event.key]) does.go(PLACES[event.key]);
    else if (event.key === "t") does.theme();
    else if (event.key === "j") does.step(-1);
    else if (event.key === "k") does.step(1);
  });
}
