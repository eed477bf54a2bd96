// Follows the run by server-sent events and knows how old is what it shows.

import { fetchState } from "./api.js";

const QUIET_SECONDS = 15;

/** Calls `onState` with each snapshot, and `onLink` with "live" or "lost". */
export class Live {
  constructor(onState, onLink) {
    this.link = "connecting";
    this.heardAt = performance.now();
    this.onState = onState;
    this.onLink = onLink;
  }

  start() {
    this.open();
    setInterval(() => this.age > QUIET_SECONDS && this.check(), 1000);
    document.addEventListener("visibilitychange", () => this.turn());
  }

  /** A browser holds six lines to one host, so a tab that nobody sees lets its line go and asks now and then. */
  turn() {
    if (document.hidden) this.source.close();
    else {
      this.open();
      this.check();
    }
  }

  open() {
    this.source?.close();
    this.source = new EventSource("/api/events");
    this.source.addEventListener("state", (event) => this.take(JSON.parse(event.data)));
    this.source.addEventListener("error", () => this.lose());
  }

  /** Seconds since the server was last heard. */
  get age() {
    return (performance.now() - this.heardAt) / 1000;
  }

  take(state) {
    this.heardAt = performance.now();
    this.become("live");
    this.onState(state);
  }

  lose() {
    this.become("lost");
    this.check();
  }

  /** A dead line looks like a quiet one to EventSource, so ask; and ask why it was refused, which it does not tell either. */
  async check() {
    if (this.checking) return;
    this.checking = true;
    try {
      this.take(await fetchState());
      if (this.source.readyState === EventSource.CLOSED && !document.hidden) this.open();
    } catch {
      this.become("lost");
    } finally {
      this.checking = false;
    }
  }

  become(link) {
    if (this.link === link) return;
    this.link = link;
    this.onLink(link);
  }
}
