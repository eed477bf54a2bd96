// What needs attention first, then how the run stands.

import { h, icon } from "../dom.js";
import { badge, bar, card, madeOf, orderButton, stateBadge, table, tile } from "../parts.js";
import { OUTCOMES, PHASES, ago, duration, figure, known, metricName, plural } from "../words.js";

export function overview({ state, me, drift, figureName }) {
  return [
    h("div", { class: "title-row" }, h("h1", { tabindex: "-1" }, "Overview"), me.role === "operator" && runOrders(state.run)),
    state.connected && attention(state),
    happened(state),
    h("dl", { class: "tiles" }, tiles(state, drift, figureName)),
    h(
      "div",
      { class: "columns" },
      card(null, { class: "wide chart-card", "aria-label": "The metric over the versions" }, chartHead(state, figureName), chart(state, figureName)),
      card("Institutions", { class: "strip" }, strip(state, drift)),
    ),
    h("div", { class: "columns" }, outcomes(state.run), newest(state, figureName)),
  ];
}

function runOrders(run) {
  if (run.phase === "finished") return null;
  return h(
    "div",
    { class: "orders" },
    run.phase === "paused" ? orderButton("resume", null, "Resume") : orderButton("pause", null, "Pause"),
    orderButton("stop", null, "Stop…", "danger"),
  );
}

function attention({ run, institutions }) {
  const told = [run.attention, ...run.warnings].filter(Boolean);
  if (!told.length) {
    const text = run.phase === "finished" ? "The run has finished. Nothing needs attention." : "Nothing needs attention.";
    return h("div", { class: "attention ok", id: "attention" }, icon("check"), h("p", {}, text));
  }
  return h(
    "div",
    { class: "attention bad", id: "attention" },
    icon("attention"),
    h(
      "div",
      {},
      h("p", { class: "attention-title" }, "Needs attention"),
      told.map((sentence) => h("p", {}, sentence)),
      lookAt(run, institutions),
    ),
  );
}

/** The way to the view that tells more, where one does. */
function lookAt({ attention }, institutions) {
  const about = attention ?? "";
  const place = /dead.letter|fl\.dlq/.test(about) ? "#dead-letters" : institutions.some((each) => about.includes(each.id)) ? "#institutions" : null;
  return place && h("a", { href: place }, "Look at it");
}

function tiles({ run, metrics, institutions, versions }, drift, name) {
  const latest = metrics.points.at(-1)?.values[name];
  const best = run.best && run.best.metric === name ? `best ${figure(run.best.figure)} at version ${run.best.version}` : "on held-out rows";
  const newest = versions[0];
  const running = run.phase === "running";
  const elapsed = run.elapsed_seconds + (run.phase === "finished" ? 0 : drift);
  const made = newest && running ? `made ${ago(elapsed - newest.seconds)}` : `epoch ${run.epoch}`;
  return [
    tile("Phase", badge(run.phase, PHASES[run.phase]), run.phase_reason || `for ${duration(elapsed)}`),
    tile("Model version", run.version, made),
    tile("Updates folded", run.updates.aggregated, target(run), known(run.target_updates) && bar(share(run), `${target(run)}`)),
    tile(`Held-out ${metricName(name)}`, figure(latest), best),
    privacyTile(run, institutions),
  ];
}

const share = (run) => run.updates.aggregated / run.target_updates;
const target = (run) => (known(run.target_updates) ? `of ${run.target_updates} wanted` : "no target is set");

function privacyTile(run, institutions) {
  if (!known(run.epsilon_budget)) return tile("Privacy", "no noise", "this run's plan has no privacy budget");
  const spent = Math.max(0, ...institutions.map((each) => each.epsilon_spent ?? 0));
  const text = `ε burned at most, of ${run.epsilon_budget}`;
  return tile("Privacy", figure(spent, 2), text, bar(spent / run.epsilon_budget, text, "privacy"));
}

function chartHead({ metrics }, name) {
  const option = (each) => h("option", { value: each, selected: each === name }, metricName(each));
  return h(
    "div",
    { class: "chart-head" },
    h("h2", {}, "Metric over versions"),
    h("label", { for: "figure" }, "Figure"),
    h("select", { id: "figure" }, metrics.names.map(option)),
  );
}

function chart({ metrics, run }, name) {
  if (!metrics.points.length) return h("p", { class: "empty" }, icon("waiting"), "No version was measured yet: this aggregator has no held-out rows, or no version is made.");
  return [
    h("div", { class: "chart", id: "metric-chart", "data-keep": true }),
    h("p", { class: "chart-told", id: "metric-told" }, sentence(metrics, run, name)),
  ];
}

/** The chart in words, for whoever does not see it. */
function sentence({ points }, run, name) {
  const measured = points.filter((point) => known(point.values[name]));
  if (!measured.length) return `No version has a ${metricName(name)}.`;
  const [first, last] = [measured[0], measured.at(-1)];
  const best = run.best?.metric === name ? `, best ${figure(run.best.figure)} at version ${run.best.version} (ringed)` : "";
  return `${metricName(name)} ${figure(first.values[name])} at version ${first.version}, now ${figure(last.values[name])} at version ${last.version}${best}.`;
}

function strip({ institutions, run }, drift) {
  const moving = run.phase === "finished" ? 0 : drift;
  const seen = (each) => (known(each.seconds_since_last) ? ago(each.seconds_since_last + moving) : "no update yet");
  const line = (each) =>
    h(
      "li",
      { "data-key": each.id },
      h("span", { class: "strip-name" }, each.id),
      stateBadge(each.state),
      h("span", { class: "strip-detail" }, `${plural(each.updates, "update")} · ${seen(each)}`),
    );
  return [h("ul", { class: "strip-list" }, institutions.map(line)), h("a", { href: "#institutions" }, "All about the institutions")];
}

function outcomes({ updates }) {
  const all = Object.values(updates).reduce((sum, count) => sum + count, 0);
  const line = ([outcome, count]) =>
    h(
      "tr",
      { "data-key": outcome },
      h("th", { scope: "row" }, OUTCOMES[outcome] ?? outcome),
      h("td", { class: "number" }, count),
      h("td", { class: "bar-cell" }, bar(all ? count / all : 0, `${count} of ${all}`, outcome === "aggregated" ? "solid" : "hatched")),
    );
  return card(
    "How updates ended",
    {},
    h("table", { class: "plain" }, h("caption", { class: "hidden" }, "Updates by how they ended"), h("tbody", {}, Object.entries(updates).map(line))),
  );
}

function event(told) {
  const [when, ...words] = told.split("  ");
  return h("li", { "data-key": told }, h("span", { class: "when" }, when), h("span", {}, words.join("  ")));
}

/** What was done to a demonstration from outside; no other run has such events. */
function happened({ events }) {
  if (!events.length) return null;
  return card("What happened lately", { class: "happened" }, h("ul", { class: "events" }, events.slice(-4).reverse().map(event)));
}

function newest({ versions, metrics }, name) {
  const figures = new Map(metrics.points.map((point) => [point.version, point.values[name]]));
  const rows = versions.slice(0, 6).map((each) => ({
    key: each.version,
    attributes: { "data-version": each.version },
    cells: [h("a", { href: `#versions/${each.version}` }, each.version), figure(figures.get(each.version)), madeOf(each), duration(each.seconds)],
  }));
  const columns = [["Version", "name"], [metricName(name), "number"], ["Updates of"], ["After", "number"]];
  return card(null, { class: "wide" }, table({ caption: "The newest versions", columns, rows, empty: "No version was made yet.", name: "newest", narrow: true }));
}
