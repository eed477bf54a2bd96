#!/usr/bin/env node
// One institution of a federation: "What an institution must do" of the wire format, point by point.

import { realpathSync } from 'node:fs';
import { pathToFileURL } from 'node:url';
import { parseArgs } from 'node:util';
import { connect, RefusedError } from './broker.js';
import { sha256 } from './guard.js';
import { Ledger } from './ledger.js';
import { Lineage } from './lineage.js';
import { clippedAndNoised, epsilonOf, forbids, multiplierFor } from './privacy.js';
import { readKeys, readSettings, StopError } from './settings.js';
import { readRows, train } from './training.js';
import { Assembly, cut, readBody, writeBody } from './wire.js';

const ASK_AGAIN_SECONDS = 60;
const MODEL_SECONDS = 20;
const SAME_MODEL_SECONDS = [2, 60];
const FOREVER = 1e6;

export class Institution {
  constructor(settings, broker, ledger) {
    [this.settings, this.broker, this.ledger, this.lineage] = [settings, broker, ledger, new Lineage()];
  }

  /** What the newest manifest says of this institution. */
  get entry() {
    return this.lineage.table[this.settings.pseudonym];
  }

  /** Reads the lineage, says hello, and brings ledger and table together. Throws StopError where a person must look. */
  async join(patienceSeconds) {
    await this.broker.follow('fl.lineage', 'first', (message) => this.lineage.take(message));
    await this.#until(() => this.lineage.head && this.lineage.plan, patienceSeconds, 'the lineage told nothing: is the federation founded?');
    this.#requireMembership();
    await this.#sayHello(patienceSeconds);
    this.#requireMembership();
    await this.#bringTogether();
  }

  /** Trains on the newest model and gives one update; what became of it, or undefined where there is nothing more to give. */
  async give(rows) {
    if (this.entry.quarantined) console.log('in quarantine: nothing is trained until the operator ends it');
    await this.#until(() => this.lineage.head.phase !== 'paused' && !this.entry.quarantined, FOREVER);
    if (this.lineage.head.phase === 'finished' || !(await this.#mayTrain())) return undefined;
    await this.#pauseOnTheSameModel();
    const { head, plan } = this.lineage;
    const model = await this.#fetchModel();
    if (!model) return this.give(rows); // it was dropped meanwhile; there is a newer one
    this.trainedOn = head.model.hash;
    const { delta, statement } = this.#noised(train(model, rows, plan.local), plan);
    const sequence = this.ledger.seal(this.#update(head, plan, delta, statement));
    return this.send(sequence);
  }

  /** Publishes a sealed update until a manifest has settled it; the settlement. */
  async send(sequence) {
    const content = this.ledger.update(sequence);
    const { institution, incarnation, pseudonym } = this.settings;
    const patience = ASK_AGAIN_SECONDS + this.lineage.plan.limits.version_spacing_seconds;
    do {
      await this.#publish('update', `${institution}/${incarnation}/${sequence}`, content);
    } while (!(await this.#until(() => this.entry.watermark >= sequence, patience)));
    if (this.entry.watermark === sequence && this.entry.last_hash !== sha256(content).toString('hex')) {
      throw new StopError(`update ${sequence} was settled with another hash: this service runs twice, or was restored`);
    }
    return { sequence, ...this.lineage.settlement(pseudonym, incarnation, sequence) };
  }

  #requireMembership() {
    const { run_id, pseudonym, incarnation } = this.settings;
    if (this.lineage.head.run_id !== run_id) throw new StopError(`this is run ${this.lineage.head.run_id}, and the kit is for ${run_id}`);
    if (!this.entry || this.entry.removed) throw new StopError(`${pseudonym} is no member: ask the operator`);
    if (this.entry.incarnation > incarnation) throw new StopError(`incarnation ${this.entry.incarnation} was issued: take the newest kit`);
    if (incarnation > 1 && !this.ledger.head) throw new StopError('this example cannot take over what a lost ledger spent; fedqueue-client can');
  }

  async #sayHello(patienceSeconds) {
    const { head: head_sequence, headHash: head_hash } = this.ledger;
    const former = BigInt(`0x${this.entry.nonce || '0'}`) + 1n;
    const time = BigInt(Date.now()) * 1_000_000n;
    const nonce = (time > former ? time : former).toString(16).padStart(16, '0');
    const body = this.#body('hello', { head_sequence, head_hash, nonce, num_examples: this.settings.num_examples });
    const patience = Math.min(patienceSeconds, ASK_AGAIN_SECONDS);
    let left = patienceSeconds;
    do {
      if (left <= 0) throw new StopError('the hello was not answered: does an aggregator lead, and does it know this institution\'s keys?');
      await this.#publish('hello', `hello-${nonce}`, body);
      left -= patience;
    } while (!(await this.#until(() => this.entry.nonce === nonce, patience)));
    this.nonce = nonce;
  }

  async #bringTogether() {
    const { watermark, last_hash } = this.entry;
    const { head } = this.ledger;
    if (watermark > head) throw new StopError(`update ${watermark} was settled, and the ledger ends with ${head}: a restored backup?`);
    if (watermark === head && last_hash !== this.ledger.headHash) throw new StopError(`update ${head} is another one in the table than in the ledger`);
    for (let sequence = watermark + 1; sequence <= head; sequence += 1) {
      if (!this.ledger.update(sequence)) throw new StopError(`update ${sequence} is asked for again and is not kept: the table is of an older day`);
      await this.send(sequence);
    }
  }

  /** Whether policy and budget allow one more training under the plan; if not, the aggregator is told. */
  async #mayTrain() {
    const { plan, head } = this.lineage;
    const forbidding = forbids(this.settings, plan);
    if (forbidding) {
      await this.#leave('plan_refused', forbidding, 'the policy of client.toml, or this example, does not allow it');
      return false;
    }
    if (this.entry.standing && this.entry.standing_plan === head.plan_hash) return false;
    const next = this.ledger.charged + this.#costOf(plan);
    const fits = this.ledger.head < plan.local.updates && epsilonOf(next, plan.privacy.target_delta) <= this.#budget(plan);
    if (!fits) await this.#leave('budget_spent', this.ledger.head < plan.local.updates ? 'max_epsilon' : 'updates', 'all that the plan allows was given');
    return fits;
  }

  #budget({ privacy }) {
    return Math.min(privacy.epsilon ?? Infinity, this.settings.policy.max_epsilon ?? Infinity);
  }

  #multiplier(plan) {
    const { privacy: { mechanism, target_delta }, local: { updates } } = plan;
    if (mechanism === 'none') return null;
    return Math.max(multiplierFor(this.#budget(plan), target_delta, updates), this.settings.policy.min_noise_multiplier ?? 0);
  }

  #costOf(plan) {
    const multiplier = this.#multiplier(plan);
    return multiplier ? 1 / (2 * multiplier ** 2) : 0;
  }

  /** The delta as it may leave, and the privacy statement about it; its cost is in the ledger before any noise is drawn. */
  #noised(delta, plan) {
    const { privacy: { mechanism, clipping_norm, target_delta }, local: { sample_rate, steps } } = plan;
    if (mechanism === 'none') return { delta, statement: { mechanism } };
    const noise_multiplier = this.#multiplier(plan);
    this.ledger.charge(this.#costOf(plan));
    const epsilon_spent = epsilonOf(this.ledger.charged, target_delta);
    const statement = { mechanism, unit: 'institution', clipping_norm, noise_multiplier, sample_rate, steps, epsilon_spent, target_delta };
    return { delta: clippedAndNoised(delta, clipping_norm, noise_multiplier), statement };
  }

  #update(head, plan, delta, privacy) {
    const base = { base_version: head.version, base_hash: head.model.hash, plan_hash: head.plan_hash };
    return this.#body('update', { sequence: this.ledger.head + 1, ...base, num_examples: this.settings.num_examples, privacy }, delta);
  }

  async #pauseOnTheSameModel() {
    const [first, longest] = SAME_MODEL_SECONDS;
    for (let seconds = first; this.lineage.head.model.hash === this.trainedOn; seconds *= 2) {
      const moved = await this.#until(() => this.lineage.head.model.hash !== this.trainedOn, Math.min(seconds, longest));
      if (moved || seconds >= longest) return;
    }
  }

  /** The newest model's tensors, or undefined where its bytes do not come. */
  async #fetchModel() {
    const { model, model_at } = this.lineage.head;
    const assembly = new Assembly(model);
    let found;
    const stream = await this.broker.follow('fl.model', model_at.offset, ({ headers, body }) => {
      if (found || !assembly.awaits(headers)) return;
      found = assembly.add(body);
      if (found) this.lineage.emit('moved');
    });
    await this.#until(() => found, MODEL_SECONDS);
    await stream.end();
    return found && readBody(found).tensors;
  }

  async #leave(state, limit, reason) {
    const { plan_hash } = this.lineage.head;
    if (this.entry.standing === state && this.entry.standing_plan === plan_hash) return;
    const id = `standing-${this.nonce}-${plan_hash.slice(0, 16)}`;
    await this.#publish('standing', id, this.#body('standing', { plan_hash, state, limit, reason }));
  }

  #body(kind, fields, tensors) {
    const { run_id, institution, incarnation } = this.settings;
    return writeBody(kind, { run_id, institution, incarnation, ...fields }, tensors);
  }

  /** Every chunk, confirmed; from the first again, a second later, where the queue has no room. */
  async #publish(kind, id, content) {
    const { run_id: run, institution } = this.settings;
    const { chunk_bytes: chunkBytes } = this.lineage.plan.limits;
    for (;;) {
      try {
        return await Promise.race([this.broker.lost, this.broker.publish(`fl.upd.${institution}`, cut(content, { kind, run, id, chunkBytes }))]);
      } catch (error) {
        if (!(error instanceof RefusedError)) throw error;
        await this.#until(() => false, 1);
      }
    }
  }

  async #until(look, seconds, complaint) {
    const answer = await Promise.race([this.broker.lost, this.lineage.until(look, seconds)]);
    if (!answer && complaint) throw new StopError(complaint);
    return answer;
  }
}

const HELP = `node client.js --config client.toml [--data rows.csv] [--updates N] [--patience SECONDS]
  --data      the rows: numbers, and 0 or 1 at the end (the settings' training_file)
  --updates   leave after so many (as many as the plan allows)
  --patience  how long to wait for an answer to the hello (600)`;

async function main() {
  const text = { type: 'string' };
  const { values } = parseArgs({ options: { config: text, data: text, updates: text, patience: text, help: { type: 'boolean' } } });
  if (values.help || !values.config) return console.log(HELP);
  const settings = readSettings(values.config);
  const rows = readRows(values.data ?? settings.training_file ?? 'training.csv');
  const broker = await connect(settings.broker, readKeys(settings.broker.keys_folder));
  const institution = new Institution(settings, broker, new Ledger(settings.state_folder));
  await institution.join(Number(values.patience ?? 600));
  console.log(`${settings.institution} takes part in run ${settings.run_id}, version ${institution.lineage.head.version}`);
  for (let left = Number(values.updates ?? Infinity); left > 0; left -= 1) {
    const settled = await institution.give(rows);
    if (!settled) break;
    const { sequence, outcome, version, staleness, weight, reason } = settled;
    console.log(`update ${sequence}: ${outcome} in version ${version}, staleness ${staleness}, weight ${weight}${reason && `: ${reason}`}`);
  }
  return broker.close();
}

if (import.meta.url === pathToFileURL(realpathSync(process.argv[1])).href) {
  main().catch((error) => {
    const forPeople = error instanceof StopError || error.code?.startsWith('ERR_PARSE_ARGS');
    console.error(forPeople ? `stopped: ${error.message}` : error);
    process.exit(1);
  });
}
