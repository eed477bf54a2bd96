// Messages that nobody could use, and why.

import { h } from "../dom.js";
import { card, orderButton, table } from "../parts.js";
import { bytes, moment } from "../words.js";

export function deadLetters({ me, letters }) {
  const title = h("h1", { tabindex: "-1" }, "Dead letters");
  if (letters.failure) return [title, card(null, {}, h("p", { class: "empty" }, letters.failure))];
  if (!letters.found) return [title, card(null, {}, h("p", { class: "muted" }, "Asking the broker…"))];
  const operator = me.role === "operator";
  const columns = [["Letter", "name"], ["Institution"], ["Why it was refused"], ["Size", "number"], ["Since", "short"], ...(operator ? [["Action"]] : [])];
  const rows = letters.found.letters.map((each) => ({
    key: each.handle,
    cells: [
      [h("code", {}, each.handle), h("span", { class: "remark" }, each.kind)],
      h("span", { class: "stranger" }, each.institution),
      h("span", { class: "reason" }, each.reason),
      [bytes(each.bytes), parts(each)],
      moment(each.at_ms),
      orderButton("requeue", each.handle, "Requeue…"),
    ].slice(0, columns.length),
  }));
  return [
    title,
    h("p", { class: "lead" }, "A message that could not be used lies here, untouched, until somebody requeues or discards it. A name with a question mark is a guess: nobody vouches for it."),
    card(
      null,
      {},
      table({ caption: "Dead letters", columns, rows, empty: "No dead letters.", name: "dead-letters" }),
      letters.found.truncated && h("p", { class: "muted" }, "There are more than these; fedqueue dead-letters list shows all."),
    ),
  ];
}

const parts = (each) => (each.chunks > 1 ? h("span", { class: "remark" }, `${each.chunks_here} of ${each.chunks} parts`) : null);
