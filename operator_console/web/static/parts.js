// What several views are made of.

import { h, icon, s } from "./dom.js";
import { STATES, percent } from "./words.js";

/** A word with its sign; colour says it a third time. */
export function badge(text, [sign, tone] = ["waiting", "quiet"]) {
  return h("span", { class: `badge ${tone}` }, icon(sign), text);
}

export const stateBadge = (state) => badge(state, STATES[state]);

const part = (share) => `${(100 * Math.min(1, Math.max(0, share ?? 0))).toFixed(2)}%`;

/** A share of the whole. `look` is solid, hatched or privacy. */
export function bar(share, label, look = "solid") {
  return s(
    "svg",
    { class: `bar ${look}`, role: "img", "aria-label": label },
    s("rect", { class: "track", width: "100%", height: "100%", rx: 3 }),
    s("rect", { class: "fill", width: part(share), height: "100%", rx: 3 }),
    look === "hatched" && s("rect", { class: "hatch", width: part(share), height: "100%", rx: 3 }),
  );
}

/** Two shares of the same whole below each other, on the scale of the greatest of all. */
export function pairedBar(weight, data, greatest) {
  const line = (share, look, word) =>
    h(
      "span",
      { class: "pair-line" },
      bar(greatest ? (share ?? 0) / greatest : 0, `${word}: ${percent(share)}`, look),
      h("span", { class: "pair-figure", "aria-hidden": "true" }, percent(share)),
    );
  return h("span", { class: "pair" }, line(weight, "solid", "weight"), line(data, "hatched", "data"));
}

export const PAIR_LEGEND = () =>
  h(
    "p",
    { class: "legend" },
    h("span", {}, s("svg", { class: "bar solid swatch", "aria-hidden": "true" }, s("rect", { class: "fill", width: "100%", height: "100%" })), "weight received"),
    h(
      "span",
      {},
      s(
        "svg",
        { class: "bar hatched swatch", "aria-hidden": "true" },
        s("rect", { class: "fill", width: "100%", height: "100%" }),
        s("rect", { class: "hatch", width: "100%", height: "100%" }),
      ),
      "share of the data",
    ),
  );

export function card(title, attributes, ...children) {
  return h("section", { ...attributes, class: `card ${attributes?.class ?? ""}` }, title && h("h2", {}, title), ...children);
}

export function tile(title, value, detail, extra) {
  return h(
    "div",
    { class: "tile", "data-key": title },
    h("dt", {}, title),
    h("dd", {}, h("span", { class: "tile-value" }, value), extra, detail && h("span", { class: "tile-detail" }, detail)),
  );
}

/**
 * A table that becomes a list of cards on a phone, unless it is narrow; roles say again what it is, because that look takes them away.
 * A column is [title, class]; a row is {key, cells, class, attributes}. The first cell names its row.
 */
export function table({ caption, columns, rows, empty, name, narrow }) {
  if (!rows.length) return h("p", { class: "empty" }, icon("check"), empty);
  const cell = (content, index) =>
    h(
      index ? "td" : "th",
      { role: index ? "cell" : "rowheader", scope: index ? null : "row", class: columns[index][1], "data-label": columns[index][0] },
      content,
    );
  return h(
    "table",
    { role: "table", class: narrow ? "rows" : "rows wide-rows", id: name },
    h("caption", {}, caption),
    h(
      "thead",
      { role: "rowgroup" },
      h(
        "tr",
        { role: "row" },
        columns.map(([title, look]) => h("th", { role: "columnheader", scope: "col", class: look }, title)),
      ),
    ),
    h(
      "tbody",
      { role: "rowgroup" },
      rows.map((row) => h("tr", { role: "row", class: row.class, "data-key": row.key, ...row.attributes }, row.cells.map(cell))),
    ),
  );
}

/** A button that gives an order; only operators get it. */
export function orderButton(order, subject, text, look = "") {
  return h("button", { type: "button", class: `order ${look}`, "data-order": order, "data-subject": subject ?? "" }, text);
}

/** Whose updates a version is made of. */
export function madeOf(each) {
  if (each.roll_back) return badge("roll back", ["restarted", "warn"]);
  if (!each.updates) return h("span", { class: "muted" }, each.version ? "none" : "the beginning");
  const counts = new Map();
  for (const name of each.institutions) counts.set(name, (counts.get(name) ?? 0) + 1);
  return [...counts].map(([name, count]) => (count > 1 ? `${name} (${count})` : name)).join(", ");
}
