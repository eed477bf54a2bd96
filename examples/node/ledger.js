// What must survive a crash: the updates that were sealed, and what the noise of every training has cost.

import { closeSync, fsyncSync, mkdirSync, openSync, readFileSync, renameSync, rmSync, writeSync } from 'node:fs';
import { join } from 'node:path';
import { sha256 } from './guard.js';

const KEPT_UPDATES = 8; // as the wire format asks: an aggregator that was set back may ask for them again

export class Ledger {
  #folder;
  #state = { head: 0, charged: 0 };

  /** Opens the ledger of a folder; a new one is empty. */
  constructor(folder) {
    this.#folder = join(folder, 'node-ledger');
    mkdirSync(this.#folder, { recursive: true, mode: 0o700 });
    const content = this.#read('ledger.json');
    if (content) this.#state = JSON.parse(content);
  }

  /** The last sequence sealed; 0 before the first. */
  get head() {
    return this.#state.head;
  }

  /** The SHA-256 of the last update sealed, or ''. */
  get headHash() {
    return this.head ? sha256(this.update(this.head)).toString('hex') : '';
  }

  /** The sum of 1 / (2 noise multiplier ** 2) over all trainings, which all accounting follows from. */
  get charged() {
    return this.#state.charged;
  }

  /** Writes what a training costs, before its noise is drawn; never given back. */
  charge(cost) {
    this.#save({ ...this.#state, charged: this.#state.charged + cost });
  }

  /** Writes an update's bytes under the next sequence. */
  seal(content) {
    const sequence = this.head + 1;
    this.#write(`${sequence}.update`, content);
    this.#save({ ...this.#state, head: sequence });
    rmSync(join(this.#folder, `${sequence - KEPT_UPDATES}.update`), { force: true });
    return sequence;
  }

  /** The bytes of an update that is still kept, or undefined. */
  update(sequence) {
    return this.#read(`${sequence}.update`);
  }

  #save(state) {
    this.#write('ledger.json', JSON.stringify(state));
    this.#state = state;
  }

  #read(name) {
    try {
      return readFileSync(join(this.#folder, name));
    } catch (error) {
      if (error.code === 'ENOENT') return undefined;
      throw error;
    }
  }

  /** Written aside, forced to the disk and renamed: a crash leaves the old file or the new one. */
  #write(name, content) {
    const aside = openSync(join(this.#folder, `.${name}`), 'w', 0o600);
    writeSync(aside, content);
    fsyncSync(aside);
    closeSync(aside);
    renameSync(join(this.#folder, `.${name}`), join(this.#folder, name));
    const folder = openSync(this.#folder, 'r');
    fsyncSync(folder);
    closeSync(folder);
  }
}
