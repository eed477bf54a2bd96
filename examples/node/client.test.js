// node --test: what the client hides and opens, against RFC 9180 and the page of the wire format.

import assert from 'node:assert/strict';
import { createPrivateKey, sign } from 'node:crypto';
import { readFileSync } from 'node:fs';
import { test } from 'node:test';
import { Guard, statement } from './guard.js';
import { rawOf, unwrap, wrap } from './hpke.js';
import { epsilonOf, multiplierFor } from './privacy.js';
import { readBody } from './wire.js';

const PAGE = readFileSync(new URL('../../docs/wire-format.md', import.meta.url), 'utf8');
const hex = (text) => Buffer.from(text, 'hex');
const bytesOf = (name) => hex(new RegExp(`^\`\`\`hex ${name}\\n(.*?)^\`\`\`$`, 'ms').exec(PAGE)[1].replace(/#.*$/gm, '').replace(/\s/g, ''));
const privateKey = (oid, raw) => createPrivateKey({ key: Buffer.concat([hex(`302e020100300506032b65${oid}04220420`), raw]), format: 'der', type: 'pkcs8' });
const [ED25519, X25519] = ['70', '6e'];

// RFC 9180, appendix A.2.1
const RECIPIENT = privateKey(X25519, hex('8057991eef8f1f1af18f4a9491d16a1ce333f695d4db8e38da75975c4478e0fb'));
const RECIPIENT_PUBLIC = '4310ee97d88cc1f088a5576c77ab0cf5c3ac797f3d95139c6c84b5429c59662a';
const SEALED = '1afa08d3dec047a643885163f1180476fa7ddb54c6a8029ea33f95796bf2ac4a'
  + '1c5250d8034ec2b784ba2cfd69dbdb8af406cfe3ff938e131f0def8c8b60b4db21993c62ce81883d2dd1b51a28';
// RFC 8032, section 7.1, test 1
const SIGNER = privateKey(ED25519, hex('9d61b19deffd5a60ba844af492ec2cc44449c5697b326919703bac031cae7f60'));
const SIGNER_PUBLIC = 'd75a980182b10ab7d54bfed3c964073a0ee172f3daa62325af021a68f707511a';

const trust = { operator: { signing: SIGNER_PUBLIC, sealing: RECIPIENT_PUBLIC }, aggregators: {}, institutions: {}, sealed: true };
const guard = new Guard({ signing: SIGNER, sealing: RECIPIENT, trust });

function hello() {
  const [digest, id] = ['1828ba9e7bf383475f163153fe0ca13ef7db3636b75c35cad46bdfa3f55df1e0', 'hello-fedcba9876543210'];
  const headers = { schema: 1, run: '0123456789abcdef', id, chunk: 0, chunks: 1, size: 131, sha256: digest, content: digest };
  return { type: 'hello', messageId: `${id}#0`, headers: { ...headers, envelope: 'plain', signature: '' }, body: bytesOf('hello') };
}

test('the first message of RFC 9180, appendix A.2.1, is opened', () => {
  assert.equal(rawOf(RECIPIENT).toString('hex'), RECIPIENT_PUBLIC);
  assert.equal(rawOf(SIGNER).toString('hex'), SIGNER_PUBLIC);
  assert.equal(unwrap(hex(SEALED), RECIPIENT, Buffer.from('Ode on a Grecian Urn'), Buffer.from('Count-0')).toString(), 'Beauty is truth, truth beauty');
});

test('what is wrapped is opened by its recipient, under the same info and associated data only', () => {
  const wrapped = wrap(Buffer.from('key'), hex(RECIPIENT_PUBLIC), Buffer.from('info'));
  assert.equal(unwrap(wrapped, RECIPIENT, Buffer.from('info')).toString(), 'key');
  assert.throws(() => unwrap(wrapped, RECIPIENT, Buffer.from('other')));
  assert.throws(() => unwrap(wrapped, RECIPIENT, Buffer.from('info'), Buffer.from('about')));
});

test('the hello of the page is signed as the page has it', () => {
  const expected = /^```text\n(\S+==)\n```$/m.exec(PAGE)[1];
  assert.equal(Buffer.from(statement('fl.upd.bank-a', hello())).toString('hex'), bytesOf('statement').toString('hex'));
  assert.equal(sign(null, bytesOf('statement'), SIGNER).toString('base64'), expected);
});

test('the sealed body of the page is opened', () => {
  const sealed = { ...hello(), body: bytesOf('sealed') };
  sealed.headers.envelope = 'hpke-1';
  sealed.headers.signature = sign(null, statement('fl.upd.bank-a', sealed), SIGNER).toString('base64');
  assert.equal(guard.open('fl.upd.bank-a', sealed).toString('hex'), bytesOf('hello').toString('hex'));
});

test('a message altered, taken elsewhere or not signed is not believed', () => {
  const sealed = guard.protect('fl.upd.bank-a', hello());
  assert.equal(guard.open('fl.upd.bank-a', sealed).length, 131);
  assert.throws(() => guard.open('fl.upd.bank-b', sealed), /signature/);
  assert.throws(() => guard.open('fl.upd.bank-a', { ...sealed, body: Buffer.concat([sealed.body, Buffer.of(0)]) }), /signature/);
  assert.throws(() => guard.open('fl.upd.bank-a', { ...sealed, headers: { ...sealed.headers, size: 130 } }), /signature/);
  assert.throws(() => guard.open('fl.upd.bank-a', hello()), /signature/);
});

test('a message that was sealed for others says so', () => {
  const stranger = new Guard({ signing: SIGNER, sealing: privateKey(X25519, Buffer.alloc(32, 7)), trust });
  assert.throws(() => stranger.open('fl.upd.bank-a', guard.protect('fl.upd.bank-a', hello())), /sealed for others/);
});

test('a signed message that should be sealed and is not is believed on the lineage only', () => {
  const open = new Guard({ signing: SIGNER, sealing: RECIPIENT, trust: { ...trust, sealed: false } });
  assert.throws(() => guard.open('fl.model.in', open.protect('fl.model.in', hello())), /not sealed/);
  assert.equal(guard.open('fl.lineage.in', open.protect('fl.lineage.in', hello())).length, 131);
});

test('both models of the page are read', () => {
  const values = (name) => [...readBody(bytesOf(name)).tensors.values()].map((each) => [...each.values]);
  assert.deepEqual(values('model'), [[0.5], [1, -2]]);
  assert.deepEqual(values('model-bfloat16'), [[0.5], [1, -1.015625]]);
});

test('one update with multiplier 4 costs epsilon between the exact value and a tenth more', () => {
  // Balle & Wang 2018, theorem 8, for sensitivity 1, standard deviation 4 and delta 1e-5: epsilon 0.92634
  const epsilon = epsilonOf(1 / 32, 1e-5);
  assert.ok(epsilon > 0.9263 && epsilon < 1.05, String(epsilon));
  assert.ok(Math.abs(multiplierFor(epsilon, 1e-5, 1) - 4) < 0.001);
});
