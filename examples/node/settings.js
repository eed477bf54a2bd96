// What the kit says: client.toml, and the folder of keys that it names.

import { createPrivateKey } from 'node:crypto';
import { readFileSync, statSync } from 'node:fs';
import { dirname, join, resolve } from 'node:path';

/** Something that a person must put right; its text says what. */
export class StopError extends Error {}

/** The settings of `client.toml`, by section, with paths made absolute. */
export function readSettings(file) {
  const folder = resolve(dirname(file));
  const { '': top, broker = {}, policy = {} } = parseToml(readText(file), file);
  for (const name of ['institution', 'incarnation', 'pseudonym', 'run_id', 'num_examples']) {
    if (top[name] === undefined) throw new StopError(`${file}: ${name} is missing; the kit's README says what to write there`);
  }
  const within = (path) => path && resolve(folder, path);
  for (const name of ['password_file', 'ca_file', 'certificate_file', 'key_file', 'keys_folder']) broker[name] = within(broker[name]);
  return { ...top, state_folder: resolve(folder, top.state_folder ?? '.'), training_file: within(top.training_file), broker, policy };
}

/** The keys of a folder: two private key objects, and what trust.json says of the others. Undefined where there is no folder. */
export function readKeys(folder) {
  if (!folder) return undefined;
  const key = (name) => createPrivateKey(readSecret(join(folder, name)));
  return { signing: key('signing.pem'), sealing: key('sealing.pem'), trust: JSON.parse(readText(join(folder, 'trust.json'))) };
}

/** A file's bytes, which nobody but its owner may be able to read. */
export function readSecret(file) {
  const content = readText(file, null);
  if (statSync(file).mode & 0o077) throw new StopError(`other users can read ${file}: chmod 600 ${file}`);
  return content;
}

function readText(file, encoding = 'utf8') {
  try {
    return readFileSync(file, encoding);
  } catch (error) {
    throw new StopError(`${file} cannot be read: ${error.code}`);
  }
}

/** The TOML that client.toml is written in: sections, and on one line each a string, number, boolean or array of them. */
export function parseToml(text, file) {
  const sections = { '': {} };
  let current = sections[''];
  text.split('\n').forEach((line, index) => {
    const section = /^\s*\[([\w.-]+)\]\s*(#.*)?$/.exec(line);
    const setting = /^\s*([\w-]+)\s*=\s*("(?:[^"\\]|\\.)*"|[^#]*?)\s*(#.*)?$/.exec(line);
    if (section) current = sections[section[1]] ??= {};
    else if (setting) current[setting[1]] = value(setting[2], `${file}:${index + 1}`);
    else if (!/^\s*(#.*)?$/.test(line)) throw new StopError(`${file}:${index + 1}: this example reads one setting a line, name = value`);
  });
  return sections;
}

function value(text, where) {
  try {
    return JSON.parse(text);
  } catch {
    throw new StopError(`${where}: ${text} is no string in double quotes, number, boolean or array of them`);
  }
}
