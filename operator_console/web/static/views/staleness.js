// How many versions behind the folded updates were.

import { h, icon } from "../dom.js";
import { bar, card, table } from "../parts.js";
import { percent, plural } from "../words.js";

export function counted({ staleness }) {
  const bins = Object.entries(staleness).map(([versions, count]) => [Number(versions), count]);
  return bins.sort(([one], [other]) => one - other);
}

export function staleness({ state }) {
  const bins = counted(state);
  const all = bins.reduce((sum, [, count]) => sum + count, 0);
  const title = h("h1", { tabindex: "-1" }, "Staleness");
  if (!all) return [title, card(null, {}, h("p", { class: "empty" }, icon("waiting"), "No update was folded yet."))];
  return [
    title,
    h("p", { class: "lead" }, sentence(bins, all)),
    h(
      "div",
      { class: "columns" },
      card("Histogram", { class: "wide" }, h("div", { class: "chart", id: "staleness-chart", "data-keep": true })),
      card(null, {}, figures(bins, all)),
    ),
  ];
}

function sentence(bins, all) {
  const mean = bins.reduce((sum, [versions, count]) => sum + versions * count, 0) / all;
  const greatest = bins.at(-1)[0];
  return `An update is stale by as many versions as were made while it was trained. Of ${plural(all, "update")} the mean is ${mean.toFixed(1)}, the greatest ${greatest}.`;
}

function figures(bins, all) {
  const rows = bins.map(([versions, count]) => ({
    key: versions,
    cells: [versions, count, [bar(count / all, percent(count / all)), h("span", { class: "remark" }, percent(count / all))]],
  }));
  const columns = [["Staleness", "number"], ["Updates", "number"], ["Share"]];
  return table({ caption: "Updates by staleness, in versions", columns, rows, empty: "", name: "staleness", narrow: true });
}
