// The page: who is signed in, what was last heard of the run, which view is open. Everything is drawn from `shown`.

import { ORDERS, outcome } from "./actions.js";
import { fetchAudit, fetchLetters, fetchVersion, signOut, whoAmI } from "./api.js";
import { drawMetric, drawStaleness } from "./charts.js";
import { confirmOrder, showHelp } from "./dialogs.js";
import { h, icon, update } from "./dom.js";
import { listen } from "./keys.js";
import { Live } from "./live.js";
import { audit } from "./views/audit.js";
import { deadLetters } from "./views/dead_letters.js";
import { institutions } from "./views/institutions.js";
import { overview } from "./views/overview.js";
import { staleness } from "./views/staleness.js";
import { versions } from "./views/versions.js";
import { duration } from "./words.js";

const VIEWS = { overview, institutions, staleness, "dead-letters": deadLetters, versions, audit };
const NAMES = { overview: "Overview", institutions: "Institutions", staleness: "Staleness", "dead-letters": "Dead letters", versions: "Versions", audit: "Audit" };
const shown = { me: null, state: null, view: "overview", argument: "", figureName: "", letters: {}, trail: {}, details: new Map(), drift: 0 };
const LINKS = {
  connecting: ["warn", "restarted", "connecting"],
  live: ["ok", "training", "live"],
  lost: ["bad", "silent", "reconnecting"],
  "broker-lost": ["bad", "silent", "broker lost"],
};
const live = new Live(takeState, draw);
const place = (id) => document.getElementById(id);

function takeState(state) {
  const before = shown.state;
  shown.state = state;
  if (!state.metrics.names.includes(shown.figureName)) shown.figureName = state.metrics.first;
  if (before?.dead_letters !== state.dead_letters) refresh("dead-letters");
  if (before?.run && before.run.version !== state.run?.version) shown.details.delete(before.run.version);
  if (shown.view === "versions") readVersion();
  draw();
}

function route() {
  const [view, argument = ""] = location.hash.slice(1).split("/");
  shown.view = view in VIEWS ? view : "overview";
  shown.argument = /^\d+$/.test(argument) ? argument : "";
  refresh(shown.view);
  draw();
}

/** Asks for what the snapshot does not hold, where the open view needs it. */
async function refresh(view) {
  if (shown.view !== view) return;
  if (view === "dead-letters") shown.letters = await answered(fetchLetters);
  if (view === "audit" && shown.me.role === "operator") shown.trail = await answered(fetchAudit);
  if (view === "versions") await readVersion();
  draw();
}

async function answered(ask) {
  try {
    return { found: await ask() };
  } catch (error) {
    return { failure: error.message };
  }
}

async function readVersion() {
  if (shown.argument === "" || shown.details.has(Number(shown.argument))) return;
  const version = Number(shown.argument);
  shown.details.set(version, {});
  const answer = await answered(() => fetchVersion(version));
  if (answer.failure) setTimeout(() => shown.details.delete(version), 2000);
  shown.details.set(version, answer);
  draw();
}

function draw() {
  if (!shown.me) return;
  shown.drift = live.age + (shown.state?.silent_seconds ?? 0);
  drawLink();
  if (!shown.state) return;
  if (!shown.state.run) return drawNothing(shown.state);
  const { run, dead_letters: letters, connected } = shown.state;
  const alarmed = run.attention || run.warnings.length || !connected;
  document.title = `${alarmed ? "(!) " : ""}${NAMES[shown.view]} · version ${run.version} · fedqueue`;
  place("run-title").textContent = run.title;
  place("letters-count").textContent = letters ? String(letters) : "";
  for (const link of document.querySelectorAll("#places a")) {
    if (link.hash === `#${shown.view}`) link.setAttribute("aria-current", "page");
    else link.removeAttribute("aria-current");
  }
  update(place("view"), h("main", {}, VIEWS[shown.view](shown)));
  const figure = place("figure");
  if (figure && figure.value !== shown.figureName) figure.value = shown.figureName;
  const theme = `${document.documentElement.dataset.theme} ${matchMedia("(prefers-color-scheme: dark)").matches}`;
  drawMetric(shown.state, shown.figureName, theme, (version) => (location.hash = `#versions/${version}`));
  drawStaleness(shown.state, theme);
}

/** Before anything was read of a run. */
function drawNothing({ attention }) {
  document.title = "(!) fedqueue";
  update(place("view"), h("main", {}, h("h1", { tabindex: "-1" }, "No run to show yet"), h("div", { class: "attention bad", id: "attention" }, icon("attention"), h("p", {}, attention || "Nothing was read yet."))));
}

/** Whether what is shown is what is: the line to the console, and the console's line to the broker. */
function drawLink() {
  const brokerLost = shown.state && !shown.state.connected;
  const kind = live.link === "live" && brokerLost ? "broker-lost" : live.link;
  const [tone, sign, text] = LINKS[kind];
  const age = kind === "lost" && unspoken(`, data ${duration(live.age)} old`);
  place("link").dataset.link = kind;
  update(place("link"), h("span", {}, h("span", { class: `badge ${tone}` }, icon(sign), text, age)));
  update(place("alarm"), h("div", {}, alarm(kind)));
}

/** What changes every second is not read out every second. */
const unspoken = (text) => h("span", { "aria-hidden": "true" }, text);

function alarm(kind) {
  if (kind === "lost") return h("p", {}, icon("attention"), h("span", {}, "The console's server does not answer. It is tried again on and on; until then this is what was last known."));
  if (kind !== "broker-lost") return null;
  return h("p", {}, icon("attention"), h("span", {}, shown.state.attention, unspoken(` Lost ${duration(shown.drift)} ago.`)));
}

function say({ good, text }) {
  const close = h("button", { type: "button", "data-dismiss": true, "aria-label": "Dismiss this message" }, "✕");
  place("notice").replaceChildren(h("div", { class: `notice ${good ? "ok" : "bad"}` }, icon(good ? "check" : "attention"), h("p", {}, text), close));
}

function startOrder(button) {
  const { order: name, subject } = button.dataset;
  const order = ORDERS[name](subject, shown.state.run);
  const settle = (answer) => {
    say(answer);
    if (name === "requeue") refresh("dead-letters");
  };
  const dialog = confirmOrder(order, (answer) => settle(outcome(order, answer)), (text) => settle({ good: false, text }));
  dialog.addEventListener("close", () => document.body.contains(button) || document.querySelector("#view h1")?.focus());
}

/** The address names the view, so this link may not. */
function skip(event) {
  event.preventDefault();
  document.querySelector("#view h1")?.focus();
}

document.addEventListener("click", (event) => {
  const order = event.target.closest("[data-order]");
  if (order) startOrder(order);
  else if (event.target.closest(".skip")) skip(event);
  else if (event.target.closest("[data-dismiss]")) place("notice").replaceChildren();
  else if (event.target.closest("[data-help]")) showHelp();
  else if (event.target.closest("[data-sign-out]")) signOut();
  else if (!event.target.closest("a")) {
    const row = event.target.closest("[data-version]");
    if (row) location.hash = `#versions/${row.dataset.version}`;
  }
});

document.addEventListener("change", (event) => {
  if (event.target.id !== "figure") return;
  shown.figureName = event.target.value;
  draw();
});

listen({
  go: (view) => (location.hash = `#${view}`),
  step: (by) => {
    const next = Number(shown.argument) + by;
    if (shown.argument !== "" && next >= 0 && next <= shown.state.run.version) location.hash = `#versions/${next}`;
  },
  theme: () => document.dispatchEvent(new Event("fedqueue-change-theme")),
  help: showHelp,
});

addEventListener("hashchange", () => {
  route();
  document.querySelector("#view h1")?.focus({ preventScroll: shown.argument !== "" });
  document.querySelector("tr.chosen")?.scrollIntoView({ block: "nearest" });
});
document.addEventListener("fedqueue-theme", draw);
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", draw);

shown.me = await whoAmI();
place("who").textContent = `${shown.me.name}, ${shown.me.role}`;
document.body.dataset.role = shown.me.role;
route();
live.start();
setInterval(draw, 1000);
// The number of letters comes seconds late, and one that goes while another one comes does not change it.
setInterval(() => refresh("dead-letters"), 5000);
