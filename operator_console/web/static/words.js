// Figures in words.

const METRICS = { auc: "AUC", log_loss: "log loss", rmse: "RMSE", mae: "MAE", r2: "R²", f1: "F1" };

export const metricName = (name) => METRICS[name] ?? String(name).replaceAll("_", " ");
export const known = (value) => value !== null && value !== undefined;
export const figure = (value, digits = 3) => (known(value) ? value.toFixed(digits) : "–");
export const percent = (share) => (known(share) ? `${(100 * share).toFixed(share < 0.0995 ? 1 : 0)} %` : "–");
export const plural = (count, one, many = `${one}s`) => `${count.toLocaleString("en")} ${count === 1 ? one : many}`;
export const short = (hash) => (hash ? String(hash).slice(0, 12) : "–");

/** A duration, coarse enough to be read at a glance. */
export function duration(seconds) {
  if (!known(seconds)) return "–";
  const whole = Math.max(0, Math.floor(seconds));
  if (whole < 60) return `${whole} s`;
  if (whole < 3600) return `${Math.floor(whole / 60)} min ${whole % 60} s`;
  if (whole < 86400) return `${Math.floor(whole / 3600)} h ${Math.floor((whole % 3600) / 60)} min`;
  return `${Math.floor(whole / 86400)} d ${Math.floor((whole % 86400) / 3600)} h`;
}

export const ago = (seconds) => (known(seconds) ? `${duration(seconds)} ago` : "never");

export function bytes(count) {
  if (!known(count)) return "–";
  if (count < 1024) return `${count} B`;
  return count < 1024 * 1024 ? `${(count / 1024).toFixed(1)} KiB` : `${(count / 1024 / 1024).toFixed(1)} MiB`;
}

/** A moment in the reader's own time zone. */
export function moment(when) {
  if (!known(when)) return "–";
  const date = new Date(when);
  return Number.isNaN(date.getTime())
    ? String(when)
    : date.toLocaleString("en-GB", { day: "numeric", month: "short", hour: "2-digit", minute: "2-digit", second: "2-digit" });
}

/** Of a state: its sign, and how urgent it is (ok, quiet, warn, bad). */
export const STATES = {
  training: ["training", "ok"],
  slow: ["slow", "warn"],
  waiting: ["waiting", "quiet"],
  silent: ["silent", "bad"],
  killed: ["cross", "bad"],
  restarted: ["restarted", "ok"],
  paused: ["pause", "warn"],
  finished: ["check", "quiet"],
  "budget spent": ["spent", "quiet"],
  "plan refused": ["refused", "bad"],
  quarantined: ["quarantine", "bad"],
  removed: ["cross", "quiet"],
};

export const PHASES = { running: ["training", "ok"], paused: ["pause", "warn"], finished: ["check", "quiet"] };

export const OUTCOMES = {
  aggregated: "folded into a version",
  stale: "too stale",
  rejected: "rejected",
  over_budget: "over the budget",
  lost: "lost",
  duplicate: "sent twice",
};
