// Each institution: its state, its part and what it burned.

import { h } from "../dom.js";
import { PAIR_LEGEND, bar, card, orderButton, pairedBar, stateBadge, table } from "../parts.js";
import { ago, figure, known, percent } from "../words.js";

export function institutions({ state, me, drift }) {
  const all = state.institutions;
  const greatest = Math.max(0, ...all.flatMap((each) => [each.weight_share ?? 0, each.data_share ?? 0]));
  const operator = me.role === "operator";
  const moving = state.run.phase === "finished" ? 0 : drift;
  const columns = [
    ["Institution", "name"],
    ["State"],
    ["Updates", "number"],
    ["Weight received and data share"],
    ["ε burned"],
    ["In its queue", "number"],
    ["Last update", "short"],
    ...(operator && state.run.phase !== "finished" ? [["Action"]] : []),
  ];
  const rows = all.map((each) => {
    const cells = [
      each.id,
      [stateBadge(each.state), remarks(each)],
      updates(each),
      pairedBar(each.weight_share, each.data_share, greatest),
      epsilon(each, state.run.epsilon_budget),
      known(each.waiting_messages) ? each.waiting_messages : "not known",
      [known(each.seconds_since_last) ? ago(each.seconds_since_last + moving) : "no update yet", staleness(each)],
      action(each),
    ];
    return { key: each.id, cells: cells.slice(0, columns.length), class: each.quarantined || each.removed ? "struck" : null };
  });
  return [
    h("h1", { tabindex: "-1" }, "Institutions"),
    card(null, {}, PAIR_LEGEND(), table({ caption: "The institutions and what they give", columns, rows, empty: "No institution was admitted yet.", name: "institutions" })),
    queues(state.queues),
  ];
}

/** How much waits at the broker, fullest first. */
function queues(depths) {
  if (!depths) return card(null, {}, h("p", { class: "muted" }, "The broker's management API does not answer, so nobody knows how much waits in the queues."));
  const fullest = Object.entries(depths).sort(([one, few], [other, more]) => more - few || one.localeCompare(other));
  const rows = fullest.map(([name, depth]) => ({ key: name, cells: [name, depth.toLocaleString("en")] }));
  const columns = [["Queue or stream", "name"], ["Messages", "number"]];
  const found = table({ caption: "Messages in all queues and streams", columns, rows, empty: "There are none.", name: "queues", narrow: true });
  return card(null, {}, h("details", {}, h("summary", {}, "All queues of the broker"), found));
}

function remarks(each) {
  const told = [];
  if (each.standing && each.standing !== each.state) told.push(each.standing);
  if (each.strikes) told.push(`${Number(each.strikes.toFixed(1))} ${each.strikes === 1 ? "strike" : "strikes"}`);
  if (each.removed && each.state !== "removed") told.push("removed");
  return told.length ? h("span", { class: "remark" }, told.join(", ")) : null;
}

const updates = (each) => [each.updates, each.refused ? h("span", { class: "remark" }, `${each.refused} not folded`) : null];

const staleness = (each) => (known(each.last_staleness) ? h("span", { class: "remark" }, `staleness ${each.last_staleness}`) : null);

function epsilon(each, budget) {
  if (!known(budget)) return "no budget";
  const share = (each.epsilon_spent ?? 0) / budget;
  const text = `${figure(each.epsilon_spent ?? 0, 2)} of ${budget}`;
  const warning = share >= 0.999 ? "spent" : share >= 0.9 ? "nearly spent" : null;
  return h("span", { class: "epsilon" }, bar(share, `${text}, ${percent(share)}`, "privacy"), h("span", {}, text), warning && h("span", { class: "remark" }, warning));
}

function action(each) {
  if (each.removed) return "–";
  return each.quarantined ? orderButton("release", each.id, "Release") : orderButton("quarantine", each.id, "Quarantine…");
}
