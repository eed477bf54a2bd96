// Bodies, tensors and chunks: "The body", "Chunks" and "Headers of a chunk" of the wire format.

import { decode, encode } from '@msgpack/msgpack';
import { sha256 } from './guard.js';

const SCHEMA = 1;

/** A body's kind, fields and tensors as Map from name to { shape, values: Float32Array }. */
export function readBody(bytes) {
  const [schema, kind, fields, tensors] = decode(bytes);
  if (schema !== SCHEMA) throw new Error(`schema version ${schema}; this client reads ${SCHEMA}`);
  return { kind, fields, tensors: new Map(tensors.map((each) => [each[0], { shape: each[2], values: numbers(each) }])) };
}

/** A body with tensors in float32. */
export function writeBody(kind, fields, tensors = new Map()) {
  const names = [...tensors.keys()].sort((one, other) => Buffer.compare(Buffer.from(one), Buffer.from(other)));
  const packed = names.map((name) => {
    const { shape, values } = tensors.get(name);
    return [name, 'float32', shape, 'raw', null, littleEndian(values)];
  });
  return Buffer.from(encode([SCHEMA, kind, fields, packed]));
}

/** The messages { type, messageId, headers, body } of a content. */
export function* cut(content, { kind, run, id, chunkBytes }) {
  const digest = sha256(content).toString('hex');
  const chunks = Math.max(1, Math.ceil(content.length / chunkBytes));
  for (let chunk = 0; chunk < chunks; chunk += 1) {
    const headers = { schema: SCHEMA, run, id, chunk, chunks, size: content.length, sha256: digest, content: digest };
    const body = content.subarray(chunk * chunkBytes, (chunk + 1) * chunkBytes);
    yield { type: kind, messageId: `${id}#${chunk}`, headers: { ...headers, envelope: 'plain', signature: '' }, body };
  }
}

/** Puts the chunks of one content together, in order, whatever else comes between them. */
export class Assembly {
  #hash;
  #size;
  #pieces = [];
  #held = 0;

  constructor({ hash, size }) {
    this.#hash = hash;
    this.#size = size;
  }

  /** Whether headers are those of the chunk that comes next; several contents, and several copies of one, may stand mixed. */
  awaits({ id, chunk }) {
    return id === this.#hash && chunk === this.#pieces.length;
  }

  /** The whole content once it is there and its hash is right, else undefined. */
  add(piece) {
    this.#pieces.push(piece);
    this.#held += piece.length;
    if (this.#held < this.#size) return undefined;
    const whole = Buffer.concat(this.#pieces);
    if (sha256(whole).toString('hex') !== this.#hash) throw new Error(`a model's bytes have another hash than ${this.#hash}`);
    return whole;
  }
}

function numbers([name, dtype, shape, , , data]) {
  const view = new DataView(data.buffer, data.byteOffset, data.byteLength);
  const count = shape.reduce((product, each) => product * each, 1);
  const width = { float32: 4, bfloat16: 2 }[dtype];
  if (!width || count * width !== data.byteLength) throw new Error(`tensor ${name} of a model is neither float32 nor bfloat16, or has another length`);
  if (dtype === 'float32') return Float32Array.from({ length: count }, (_, place) => view.getFloat32(4 * place, true));
  const widened = Uint32Array.from({ length: count }, (_, place) => view.getUint16(2 * place, true) << 16);
  return new Float32Array(widened.buffer);
}

function littleEndian(values) {
  const data = Buffer.alloc(4 * values.length);
  values.forEach((value, place) => data.writeFloatLE(value, 4 * place));
  return data;
}
