// The lineage: every version, and of one which updates with which weights made it.

import { h, icon } from "../dom.js";
import { badge, bar, card, madeOf, table } from "../parts.js";
import { bytes, duration, figure, known, metricName, moment, percent, plural } from "../words.js";

export function versions(shown) {
  const chosen = shown.argument === "" ? null : Number(shown.argument);
  return [
    h("h1", { tabindex: "-1" }, "Versions"),
    h("div", { class: `lineage ${chosen === null ? "" : "one"}` }, list(shown, chosen), detail(shown, chosen)),
  ];
}

function list({ state, figureName }, chosen) {
  const figures = new Map(state.metrics.points.map((point) => [point.version, point.values[figureName]]));
  const columns = [["Version", "name"], [metricName(figureName), "number"], ["Updates of"], ["After", "number"]];
  const rows = state.versions.map((each) => ({
    key: each.version,
    class: each.version === chosen ? "chosen" : null,
    attributes: { "data-version": each.version },
    cells: [
      h("a", { href: `#versions/${each.version}`, "aria-current": each.version === chosen ? "true" : null }, each.version),
      [figure(figures.get(each.version)), state.run.best?.version === each.version && h("span", { class: "star", title: "the best so far" }, " ★", h("span", { class: "hidden" }, "the best so far"))],
      madeOf(each),
      duration(each.seconds),
    ],
  }));
  return card(
    null,
    { class: "lineage-list" },
    table({ caption: "The newest versions; choose one to see what it is made of", columns, rows, empty: "No version was made yet.", name: "versions", narrow: true }),
  );
}

function detail({ details, state }, chosen) {
  if (chosen === null) return card(null, { class: "lineage-detail hint" }, h("p", { class: "muted" }, icon("versions"), "Choose a version to see what it is made of."));
  const { found, failure } = details.get(chosen) ?? {};
  const content = failure ? h("p", { class: "empty" }, failure) : found ? about(found, state) : h("p", { class: "muted" }, "Reading the lineage…");
  return card(null, { class: "lineage-detail", id: "version", "aria-label": `Version ${chosen}` }, steps(chosen, state.run.version), content);
}

function steps(chosen, newest) {
  const step = (version, text, sign) =>
    h("a", { class: "step", href: `#versions/${version}`, "aria-label": `${text} version, ${version}` }, icon(sign), h("span", {}, version));
  return h(
    "nav",
    { class: "steps", "aria-label": "Neighbouring versions" },
    h("a", { class: "step back", href: "#versions" }, "All versions"),
    chosen > 0 && step(chosen - 1, "Previous", "left"),
    chosen < newest && step(chosen + 1, "Next", "right"),
  );
}

function about(line, state) {
  return [
    h("h2", {}, `Version ${line.version}`),
    h("p", { class: "lead" }, inWords(line)),
    h("div", { class: "facts" }, Object.entries(line.metrics).map((entry) => fact(entry, line, state))),
    line.updates.length ? folded(line) : null,
    refused(line),
    h(
      "details",
      { class: "hashes" },
      h("summary", {}, "Hashes"),
      h("dl", {}, Object.entries({ Manifest: line.manifest, Previous: line.previous, Model: line.model, Plan: line.plan_hash }).map(hash)),
    ),
  ];
}

function inWords(line) {
  const when = `${moment(line.at_ms)}, ${duration(line.seconds)} after the beginning, in epoch ${line.epoch}. The model has ${bytes(line.model_bytes)}.`;
  if (line.roll_back) {
    const without = line.roll_back.without ? ` without ${line.roll_back.without}` : "";
    return `The run went back to version ${line.roll_back.to_version}${without}. Made ${when}`;
  }
  return `${line.updates.length ? plural(line.updates.length, "update") : "No update"} folded, ${line.not_folded.length} not folded. Made ${when}`;
}

function fact([name, value], line, state) {
  const before = state.metrics.points.find((point) => point.version === line.version - 1)?.values[name];
  const change = known(before) && known(value) ? value - before : null;
  const sign = change > 0 ? "▲" : change < 0 ? "▼" : "＝";
  return h(
    "span",
    { class: "fact", "data-key": name },
    h("span", { class: "fact-name" }, metricName(name)),
    h("span", { class: "fact-value" }, figure(value)),
    known(change) && h("span", { class: "fact-change" }, `${sign} ${figure(Math.abs(change))}`),
  );
}

function folded(line) {
  const all = line.updates.reduce((sum, update) => sum + Math.abs(update.weight), 0);
  const columns = [["Institution", "name"], ["Update", "number"], ["Trained on"], ["Staleness", "number"], ["Weight"], ["Hash"]];
  const rows = line.updates.map((update) => ({
    key: `${update.institution} ${update.incarnation} ${update.sequence}`,
    cells: [
      update.institution,
      update.sequence,
      h("a", { href: `#versions/${update.base_version}` }, `version ${update.base_version}`),
      update.staleness,
      weight(update, all),
      h("code", { title: update.hash }, update.hash.slice(0, 12)),
    ],
  }));
  return table({ caption: "The updates that it is made of", columns, rows, empty: "", name: "folded" });
}

function weight(update, all) {
  const share = all ? Math.abs(update.weight) / all : 0;
  const scaled = known(update.scale) && update.scale !== 1 ? h("span", { class: "remark" }, `clipped to ${percent(update.scale)}`) : null;
  return [bar(share, `${percent(share)} of this version`), h("span", { class: "remark" }, figure(update.weight, 4)), scaled];
}

function refused(line) {
  if (!line.not_folded.length) return h("p", { class: "muted all-folded" }, icon("check"), "Nothing was refused with this version.");
  const columns = [["Institution", "name"], ["Update", "number"], ["Outcome"], ["Why"], ["Trained on"]];
  const rows = line.not_folded.map((update) => ({
    key: `${update.institution} ${update.incarnation} ${update.sequence}`,
    cells: [
      update.institution,
      update.sequence,
      badge(update.outcome.replaceAll("_", " "), ["cross", "bad"]),
      h("span", { class: "reason" }, update.reason || "no reason was given"),
      known(update.base_version) ? h("a", { href: `#versions/${update.base_version}` }, `version ${update.base_version}`) : "not known",
    ],
  }));
  return table({ caption: "What was not folded, and why", columns, rows, empty: "", name: "refused" });
}

const hash = ([name, value]) => [h("dt", {}, name), h("dd", {}, h("code", {}, value || "none"))];
