// The connection: AMQP 0-9-1 with a password on loopback, with TLS and a client certificate elsewhere.

import { readFileSync } from 'node:fs';
import { isIP } from 'node:net';
import amqp from 'amqplib';
import { Guard } from './guard.js';
import { readSecret, StopError } from './settings.js';

const LOOPBACK = /^(localhost|127(\.\d+){3}|\[?::1\]?)$/;
const HEARTBEAT_SECONDS = 30;
const CONNECT_MILLISECONDS = 10_000;

/** Opens the connection that the settings of `[broker]` describe. Throws StopError. */
export async function connect(broker, keys) {
  const url = new URL(broker.url.split(',')[0]);
  const host = url.hostname.replace(/^\[|\]$/g, '');
  const where = { protocol: url.protocol.slice(0, -1), hostname: host, port: Number(url.port) || undefined, heartbeat: HEARTBEAT_SECONDS };
  const login = url.protocol === 'amqps:' ? withCertificate(broker, host) : withPassword(broker, host);
  const options = { ...login, timeout: CONNECT_MILLISECONDS, clientProperties: { connection_name: `node/${broker.user}` } };
  try {
    const connection = await amqp.connect({ ...where, vhost: url.pathname.slice(1) || '%2F' }, options);
    return new Broker(connection, await connection.createConfirmChannel(), broker.user, new Guard(keys));
  } catch (error) {
    throw new StopError(`no connection to ${broker.url} as ${broker.user}: ${error.message}`);
  }
}

function withCertificate({ ca_file, certificate_file, key_file }, host) {
  if (!ca_file || !certificate_file || !key_file) throw new StopError('amqps:// needs ca_file, certificate_file and key_file');
  const tls = { ca: readFileSync(ca_file), cert: readFileSync(certificate_file), key: readSecret(key_file), minVersion: 'TLSv1.2' };
  // Node checks the certificate against the address itself where the host is one; a server name may not be one.
  return { ...tls, servername: isIP(host) ? '' : host, credentials: amqp.credentials.external() };
}

function withPassword({ user, password_file }, host) {
  if (!LOOPBACK.test(host)) throw new StopError(`amqp:// to ${host} would send everything in the clear: amqps:// is needed`);
  if (!password_file) throw new StopError('amqp:// needs password_file');
  return { credentials: amqp.credentials.plain(user, readSecret(password_file).toString().trim()) };
}

class Broker {
  #connection;
  #out;
  #user;
  #guard;
  #returned;

  constructor(connection, out, user, guard) {
    [this.#connection, this.#out, this.#user, this.#guard] = [connection, out, user, guard];
    this.lost = new Promise((_, reject) => {
      const stop = (what) => (error) => reject(new StopError(`${what}${error ? `: ${error.message}` : ''}; started again, it goes on from its ledger`));
      connection.on('error', stop('the connection was lost'));
      connection.on('close', stop('the connection was closed'));
      out.on('error', stop('the broker refuses what is published'));
    });
    this.lost.catch(() => {}); // whoever waits for something races against it
    out.on('return', (message) => { this.#returned = message.fields.replyText; });
  }

  close() {
    return this.#connection.close();
  }

  /** Publishes messages in order to an exchange, each confirmed. A queue without room is asked again after a second. */
  async publish(exchange, messages) {
    for (const message of messages) {
      const { type, messageId, headers, body } = this.#guard.protect(exchange, message);
      const properties = { type, messageId, headers, userId: this.#user, appId: 'fedqueue', contentType: 'application/msgpack', deliveryMode: 2 };
      await new Promise((resolve, reject) => {
        this.#out.publish(exchange, '', body, { ...properties, mandatory: true, timestamp: Math.floor(Date.now() / 1000) },
          (error) => (error ? reject(new RefusedError()) : resolve()));
      });
      if (this.#returned) throw new StopError(`nothing is bound to ${exchange}: ${this.#returned}`);
    }
  }

  /** Follows a stream from an offset on. `take` gets { offset, type, headers, body } of every message that may be believed. */
  async follow(stream, offset, take) {
    const channel = await this.#connection.createChannel();
    channel.on('error', () => {}); // the consumer sees it end
    await channel.prefetch(10);
    const onMessage = (delivery) => {
      if (delivery === null) return;
      channel.ack(delivery);
      const { properties: { type, messageId, headers }, content } = delivery;
      const message = { offset: headers['x-stream-offset'], type, messageId, headers, body: content };
      try {
        take({ ...message, body: this.#guard.open(`${stream}.in`, message) });
      } catch (error) {
        console.error(`a message at offset ${message.offset} of ${stream} is passed over: ${error.message}`);
      }
    };
    await channel.consume(stream, onMessage, { arguments: { 'x-stream-offset': offset } });
    return { end: () => channel.close() };
  }
}

/** A negative confirm: the queue has no room, or is electing a leader. */
export class RefusedError extends Error {}
