// Who did what, newest first.

import { h } from "../dom.js";
import { card, table } from "../parts.js";
import { moment } from "../words.js";

export function audit({ me, trail }) {
  const title = h("h1", { tabindex: "-1" }, "Audit");
  if (me.role !== "operator") return [title, card(null, {}, h("p", { class: "muted" }, "Only operators see who did what."))];
  if (trail.failure) return [title, card(null, {}, h("p", { class: "empty" }, trail.failure))];
  if (!trail.found) return [title, card(null, {}, h("p", { class: "muted" }, "Reading the trail…"))];
  const rows = trail.found.lines.map((line, index) => ({
    key: `${trail.found.lines.length - index}`,
    cells: [moment(line.at), line.who, line.did, line.got],
  }));
  const columns = [["When", "name short"], ["Who"], ["Did"], ["Outcome"]];
  return [
    title,
    h("p", { class: "lead" }, "Sign-ins and orders of this console. fedqueue audit joins it with everything else that was done."),
    card(null, {}, table({ caption: "What was done in this console", columns, rows, empty: "Nothing was done yet.", name: "audit" })),
  ];
}
