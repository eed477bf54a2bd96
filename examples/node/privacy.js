// What noise an update gets and what it costs: the mechanisms `none` and `update-gaussian`. DP-SGD is left to fedqueue-client.

import { randomBytes } from 'node:crypto';

const WITHOUT_NOISE = 'yes, updates may leave without noise';
const MULTIPLIERS = [0.01, 10_000];
const ORDERS = Array.from({ length: 10_000 }, (_, place) => 1.01 + place / 20); // of the Renyi divergence

/** The setting of the policy that forbids a plan, or undefined where it may be followed. */
export function forbids({ policy }, { privacy }) {
  if (privacy.mechanism === 'none') return policy.allow_no_privacy === WITHOUT_NOISE ? undefined : 'allow_no_privacy';
  if (privacy.mechanism !== 'update-gaussian' || policy.mechanisms?.includes('update-gaussian') === false) return 'mechanisms';
  if (privacy.target_delta > (policy.max_target_delta ?? Infinity)) return 'max_target_delta';
  return privacy.epsilon === null ? 'max_epsilon' : undefined;
}

/** Epsilon at `delta` after a sum of costs, each 1 / (2 multiplier ** 2): Renyi, converted by Canonne, Kamath & Steinke 2020, proposition 12. */
export function epsilonOf(charged, delta) {
  const at = (order) => order * charged + Math.log((order - 1) / order) - Math.log(delta * order) / (order - 1);
  return charged ? Math.max(0, ORDERS.reduce((least, order) => Math.min(least, at(order)), Infinity)) : 0;
}

/** The least noise multiplier under which `updates` updates together cost at most `epsilon`. */
export function multiplierFor(epsilon, delta, updates) {
  let [low, high] = MULTIPLIERS;
  while (high / low > 1.0001) {
    const middle = Math.sqrt(low * high);
    if (epsilonOf(updates / (2 * middle ** 2), delta) > epsilon) low = middle;
    else high = middle;
  }
  return high;
}

/** The delta scaled down to a norm of at most `norm`, with Gaussian noise of `multiplier` x `norm` on every number. */
export function clippedAndNoised(delta, norm, multiplier) {
  const square = [...delta.values()].reduce((total, { values }) => values.reduce((sum, each) => sum + each * each, total), 0);
  const shrink = Math.min(1, norm / Math.sqrt(square));
  const std = multiplier * norm;
  // Low-order bits of a draw can tell what it was added to (Mironov 2012), so none is kept.
  const step = 2 ** (Math.floor(Math.log2(std)) - 10);
  const noised = (value) => Math.round((value * shrink + std * gaussian()) / step) * step;
  return new Map([...delta].map(([name, { shape, values }]) => [name, { shape, values: Float32Array.from(values, noised) }]));
}

/** One draw of the standard normal distribution (Box and Muller 1958), from the operating system's generator. */
function gaussian() {
  const bits = randomBytes(16);
  const uniform = (place) => (Number(bits.readBigUInt64LE(place) >> 11n) + 1) / 2 ** 53;
  return Math.sqrt(-2 * Math.log(uniform(0))) * Math.cos(2 * Math.PI * uniform(8));
}
