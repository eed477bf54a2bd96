// The lineage: "The lineage" of the wire format, read from its first record on.

import { EventEmitter, once } from 'node:events';
import { sha256 } from './guard.js';
import { readBody } from './wire.js';

export class Lineage extends EventEmitter {
  epoch = 0;
  head = undefined; // the newest manifest, with its `hash` and `model_at`
  table = {};
  plan = undefined;
  #settled = new Map();

  /** Takes one message by the page's five rules. */
  take({ body }) {
    const { kind, fields } = readBody(body);
    if (kind === 'claim') this.epoch = Math.max(this.epoch, fields.epoch);
    else if (kind === 'record' && fields.epoch === this.epoch) this.#fold(fields);
    this.emit('moved');
  }

  /** What became of one institution's update, once a manifest says so. */
  settlement(institution, incarnation, sequence) {
    return this.#settled.get(`${institution}/${incarnation}/${sequence}`);
  }

  /** The first true answer of `look`, asked whenever the lineage moves; undefined after so many seconds. */
  async until(look, seconds) {
    const signal = AbortSignal.timeout(seconds * 1000);
    for (;;) {
      const answer = look();
      if (answer) return answer;
      try {
        await once(this, 'moved', { signal });
      } catch (error) {
        if (error.name === 'AbortError') return undefined;
        throw error;
      }
    }
  }

  #fold(record) {
    const hash = sha256(record.content).toString('hex');
    const { fields: manifest } = readBody(record.content);
    if (hash === this.head?.hash) {
      this.head = { ...this.head, model_at: record.model_at };
    } else if (this.#continues(manifest)) {
      this.head = { ...manifest, hash, model_at: record.model_at };
      this.table = manifest.whole ? manifest.table : { ...this.table, ...manifest.table };
      this.plan = manifest.plan ?? this.plan;
      for (const each of manifest.settled) {
        this.#settled.set(`${each.institution}/${each.incarnation}/${each.sequence}`, { ...each, version: manifest.version });
      }
    }
  }

  #continues(manifest) {
    if (!this.head) return manifest.previous === '' && manifest.version === 0;
    const steps = manifest.version - this.head.version;
    return manifest.previous === this.head.hash && manifest.run_id === this.head.run_id && (steps === 0 || steps === 1);
  }
}
