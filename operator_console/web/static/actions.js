// What each order does, in words for the dialog before it and for the line after it.

import { giveOrder, requeue } from "./api.js";

/** `typed` is what must be typed; `mayReason` asks for words that the institution reads; `done` is said when the aggregator applied it. */
export const ORDERS = {
  pause: () => ({
    title: "Pause the run?",
    text: "The aggregator stops folding updates. The institutions keep what they have trained, and wait. Nothing is lost; Resume goes on from here.",
    button: "Pause the run",
    done: "The run is paused",
    give: () => giveOrder("pause"),
  }),
  resume: () => ({
    title: "Resume the run?",
    text: "The aggregator folds updates again, beginning with those that wait.",
    button: "Resume the run",
    done: "The run goes on",
    give: () => giveOrder("resume"),
  }),
  stop: (_subject, run) => ({
    title: "Stop the run for good?",
    text: "The run ends with the version that it has. It cannot be resumed: the institutions are told that it is over, and leave.",
    button: "Stop the run for good",
    done: "The run is stopped",
    typed: run.task,
    give: () => giveOrder("stop"),
  }),
  quarantine: (institution) => ({
    title: `Put ${institution} into quarantine?`,
    text: `From now on no update of ${institution} is folded. What it has given stays in the model. The others go on. Release takes it back in.`,
    button: "Put it into quarantine",
    done: `${institution} is in quarantine`,
    typed: institution,
    mayReason: true,
    give: (reason) => giveOrder("quarantine", { institution, reason }),
  }),
  release: (institution) => ({
    title: `Release ${institution}?`,
    text: `Updates of ${institution} are folded again, beginning with the next one. Its strikes begin at none.`,
    button: "Release it",
    done: `${institution} is released`,
    mayReason: true,
    give: (reason) => giveOrder("release", { institution, reason }),
  }),
  requeue: (handle) => ({
    title: "Requeue this dead letter?",
    text: `The aggregator looks at the letter ${handle} once more, with the checks that it makes of any update. If they fail again, it comes back here.`,
    button: "Requeue it",
    done: `The letter ${handle} is requeued`,
    give: () => requeue(handle),
  }),
};

/** What became of an order, as one sentence. */
export function outcome(order, { applied, reason, version }) {
  if (!applied) return { good: false, text: `Not done: ${reason || "the aggregator gave no reason"}.` };
  const since = version === null || version === undefined ? "" : `, as of version ${version}`;
  return { good: true, text: `${order.done}${since}.` };
}
