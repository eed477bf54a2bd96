// HPKE (RFC 9180) in base mode: DHKEM(X25519, HKDF-SHA256), HKDF-SHA256, ChaCha20-Poly1305, first message of a context.

import { createCipheriv, createDecipheriv, createHmac, createPublicKey, diffieHellman, generateKeyPairSync } from 'node:crypto';

const KEM = Buffer.from('KEM\x00\x20', 'latin1');
const SUITE = Buffer.from('HPKE\x00\x20\x00\x01\x00\x03', 'latin1');
const VERSION = Buffer.from('HPKE-v1');
const NOTHING = Buffer.alloc(0);
const SPKI_X25519 = Buffer.from('302a300506032b656e032100', 'hex'); // RFC 8410: what stands before the 32 bytes
const TAG_BYTES = 16;

/** A public X25519 key from its 32 bytes. */
export const publicKeyOf = (raw) => createPublicKey({ key: Buffer.concat([SPKI_X25519, raw]), format: 'der', type: 'spki' });

/** The 32 bytes of a public X25519 or Ed25519 key, or of the public half of a private one. */
export const rawOf = (key) => (key.type === 'private' ? createPublicKey(key) : key).export({ format: 'der', type: 'spki' }).subarray(-32);

/** enc || ciphertext for the owner of a public key (32 bytes). */
export function wrap(secret, recipient, info, about = NOTHING) {
  const { privateKey, publicKey } = generateKeyPairSync('x25519');
  const enc = rawOf(publicKey);
  const shared = diffieHellman({ privateKey, publicKey: publicKeyOf(recipient) });
  const { key, nonce } = schedule(shared, enc, recipient, info);
  return Buffer.concat([enc, encrypt(key, nonce, secret, about)]);
}

/** What `wrap` hid. Throws where it was altered or is another's. */
export function unwrap(wrapped, privateKey, info, about = NOTHING) {
  const enc = wrapped.subarray(0, 32);
  const shared = diffieHellman({ privateKey, publicKey: publicKeyOf(enc) });
  const { key, nonce } = schedule(shared, enc, rawOf(privateKey), info);
  return decrypt(key, nonce, wrapped.subarray(32), about);
}

/** ChaCha20-Poly1305: the ciphertext with its tag behind it. */
export function encrypt(key, nonce, plain, about) {
  const cipher = createCipheriv('chacha20-poly1305', key, nonce, { authTagLength: TAG_BYTES }).setAAD(about);
  return Buffer.concat([cipher.update(plain), cipher.final(), cipher.getAuthTag()]);
}

/** The other way round. Throws where the tag does not fit. */
export function decrypt(key, nonce, sealed, about) {
  const cipher = createDecipheriv('chacha20-poly1305', key, nonce, { authTagLength: TAG_BYTES }).setAAD(about);
  cipher.setAuthTag(sealed.subarray(-TAG_BYTES));
  return Buffer.concat([cipher.update(sealed.subarray(0, -TAG_BYTES)), cipher.final()]);
}

function schedule(shared, enc, recipient, info) {
  const secret = expand(KEM, extract(KEM, NOTHING, 'eae_prk', shared), 'shared_secret', Buffer.concat([enc, recipient]), 32);
  const context = Buffer.concat([Buffer.of(0), extract(SUITE, NOTHING, 'psk_id_hash', NOTHING), extract(SUITE, NOTHING, 'info_hash', info)]);
  const main = extract(SUITE, secret, 'secret', NOTHING);
  return { key: expand(SUITE, main, 'key', context, 32), nonce: expand(SUITE, main, 'base_nonce', context, 12) };
}

function extract(suite, salt, label, secret) {
  return createHmac('sha256', salt).update(VERSION).update(suite).update(label).update(secret).digest();
}

function expand(suite, secret, label, text, size) {
  const labelled = Buffer.concat([Buffer.of(0, size), VERSION, suite, Buffer.from(label), text, Buffer.of(1)]);
  return createHmac('sha256', secret).update(labelled).digest().subarray(0, size); // one block of SHA-256 is enough for all of them
}
