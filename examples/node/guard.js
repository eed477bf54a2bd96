// Signatures and sealed bodies: "Signatures" and "Sealed bodies" of the wire format.

import { createHash, createPublicKey, randomBytes, sign, verify } from 'node:crypto';
import { decode, encode } from '@msgpack/msgpack';
import { decrypt, encrypt, rawOf, unwrap, wrap } from './hpke.js';

const INFO = Buffer.from('fedqueue 1 content key');
const SEALED = 'hpke-1';
const READABLE = /^fl\.(lineage|ctl\..*)\.in$/; // exchanges whose messages nobody seals
const SPKI_ED25519 = Buffer.from('302a300506032b6570032100', 'hex');

/** A message that must not be believed, or cannot be opened; the text says why. */
export class FaultError extends Error {}

export const sha256 = (bytes) => createHash('sha256').update(bytes).digest();

/** What is signed of a message { type, messageId, headers, body } that is published to `exchange`. */
export function statement(exchange, { type, messageId, headers, body }) {
  const listed = Object.entries(headers)
    .filter(([name]) => name !== 'signature' && !name.startsWith('x-'))
    .sort(([one], [other]) => Buffer.compare(Buffer.from(one), Buffer.from(other)));
  return encode(['fedqueue 1', exchange, type, messageId, sha256(body), listed]);
}

export class Guard {
  #keys;

  constructor(keys) {
    this.#keys = keys;
  }

  /** The message as it is published: sealed to the operator and the aggregators where the federation seals, and signed. */
  protect(exchange, message) {
    if (!this.#keys) return message;
    const { trust, signing } = this.#keys;
    const whole = trust.sealed ? this.#seal(exchange, message) : message;
    const signature = sign(null, statement(exchange, whole), signing).toString('base64');
    return { ...whole, headers: { ...whole.headers, signature } };
  }

  /** The body of a message that an aggregator or the operator published to `exchange`. Throws FaultError. */
  open(exchange, message) {
    if (!this.#keys) return message.body;
    const { operator, aggregators } = this.#keys.trust;
    const believed = [operator, ...Object.values(aggregators)].map(({ signing }) => signing);
    const signature = Buffer.from(String(message.headers.signature ?? ''), 'base64');
    const stated = statement(exchange, message);
    if (!believed.some((key) => verify(null, stated, ed25519(key), signature))) {
      throw new FaultError('its signature is neither an aggregator\'s nor the operator\'s');
    }
    if (message.headers.envelope === SEALED) return this.#unseal(exchange, message);
    if (this.#keys.trust.sealed && !READABLE.test(exchange)) throw new FaultError('it is not sealed, and here it must be');
    return message.body;
  }

  #seal(exchange, message) {
    const { operator, aggregators } = this.#keys.trust;
    const recipients = [operator, ...Object.values(aggregators)].map(({ sealing }) => Buffer.from(sealing, 'hex'));
    const [key, nonce] = [randomBytes(32), randomBytes(12)];
    const wraps = recipients.map((each) => [keyId(each), wrap(key, each, INFO)]);
    const body = packSealed(wraps, nonce, encrypt(key, nonce, message.body, about(exchange, message)));
    return { ...message, body, headers: { ...message.headers, envelope: SEALED } };
  }

  #unseal(exchange, message) {
    // Key ids are bytes, and JavaScript's objects have none for keys.
    const [wraps, nonce, ciphertext] = decode(message.body, { mapKeyConverter: (key) => Buffer.from(key).toString('hex') });
    const mine = wraps[keyId(rawOf(this.#keys.sealing)).toString('hex')];
    if (!mine) throw new FaultError('it was sealed for others');
    const key = unwrap(Buffer.from(mine), this.#keys.sealing, INFO);
    return decrypt(key, nonce, Buffer.from(ciphertext), about(exchange, message));
  }
}

const about = (exchange, { type, messageId }) => encode([exchange, type, messageId]);
const keyId = (raw) => sha256(raw).subarray(0, 8);
const ed25519 = (hex) => createPublicKey({ key: Buffer.concat([SPKI_ED25519, Buffer.from(hex, 'hex')]), format: 'der', type: 'spki' });

/** msgpack of [wraps, nonce, ciphertext]: an array of 3, whose first is a map (as map 16) from bytes to bytes. */
function packSealed(wraps, nonce, ciphertext) {
  const map = Buffer.from([0x93, 0xde, wraps.length >> 8, wraps.length & 0xff]);
  return Buffer.concat([map, ...wraps.flat().map((each) => encode(each)), encode(nonce), encode(ciphertext)]);
}
