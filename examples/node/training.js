// Logistic regression by gradient descent, on rows that are the model's inputs in order, and 0 or 1 at the end.

import { readFileSync } from 'node:fs';
import { randomInt } from 'node:crypto';
import { StopError } from './settings.js';

const RESOLUTION = 2 ** 40;

/** The rows of a CSV without a heading, or with one: numbers only, the label last. */
export function readRows(file) {
  const lines = readFileSync(file, 'utf8').split('\n').filter((line) => line.trim());
  const rows = lines.map((line) => line.split(',').map(Number));
  if (rows.length && rows[0].some(Number.isNaN)) rows.shift();
  const wrong = rows.findIndex((row) => row.some((cell) => !Number.isFinite(cell)) || ![0, 1].includes(row.at(-1)));
  if (!rows.length || wrong >= 0) throw new StopError(`${file}: every row takes numbers, and 0 or 1 at the end; row ${wrong + 1} has something else`);
  return rows.map((row) => ({ inputs: row.slice(0, -1), label: row.at(-1) }));
}

/** Trained minus base, as Map from name to { shape, values }; the model has `weight` of [1, inputs] and `bias` of [1]. */
export function train(model, rows, { steps, sample_rate, learning_rate }) {
  const [weight, bias] = ['weight', 'bias'].map((name) => {
    if (!model.has(name)) throw new StopError(`the model has no tensor ${name}: this example trains logistic regression only`);
    return model.get(name);
  });
  if (weight.values.length !== rows[0].inputs.length) throw new StopError(`the model takes ${weight.values.length} inputs, a row has ${rows[0].inputs.length}`);
  const trained = [...weight.values, ...bias.values];
  for (let step = 0; step < steps; step += 1) {
    const drawn = rows.filter(() => sample_rate === 1 || randomInt(RESOLUTION) < sample_rate * RESOLUTION);
    const slope = gradient(trained, drawn);
    slope.forEach((each, place) => { trained[place] -= (learning_rate * each) / (sample_rate * rows.length); });
  }
  const delta = Float32Array.from(trained, (each, place) => each - (place < weight.values.length ? weight.values[place] : bias.values[0]));
  return new Map([
    ['weight', { shape: weight.shape, values: delta.subarray(0, -1) }],
    ['bias', { shape: bias.shape, values: delta.subarray(-1) }],
  ]);
}

/** The sum over rows of the log loss's gradient, in weights and then bias. */
function gradient(model, rows) {
  const sum = model.map(() => 0);
  for (const { inputs, label } of rows) {
    const score = inputs.reduce((total, each, place) => total + each * model[place], model.at(-1));
    const error = 1 / (1 + Math.exp(-score)) - label;
    inputs.forEach((each, place) => { sum[place] += error * each; });
    sum[sum.length - 1] += error;
  }
  return sum;
}
