// node foreign_key.mjs client.toml rows.csv: an institution whose hello is its own, and whose updates another key signs.

import { generateKeyPairSync } from 'node:crypto';
import { connect } from '../examples/node/broker.js';
import { Institution } from '../examples/node/client.js';
import { Ledger } from '../examples/node/ledger.js';
import { readKeys, readSettings } from '../examples/node/settings.js';
import { readRows } from '../examples/node/training.js';

const [config, data] = process.argv.slice(2);
const settings = readSettings(config);
const keys = readKeys(settings.broker.keys_folder);
const institution = new Institution(settings, await connect(settings.broker, keys), new Ledger(settings.state_folder));
await institution.join(30);
keys.signing = generateKeyPairSync('ed25519').privateKey;
await institution.give(readRows(data));
