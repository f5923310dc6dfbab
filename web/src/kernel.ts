// One evaluation of a region in WebAssembly, and the step of DPM-Solver++ 2M after it.

import type { Level } from "./manifest";
import { FIRE, INITIAL_NOISE, mix } from "./random";

interface Rule {
  memory: WebAssembly.Memory;
  words(out: number, k0: number, k1: number, y: number, x: number, height: number, width: number): void;
  use(
    c: number, h: number, units: number, limit: number, perceive: number, hidden: number, output: number, bias: number,
    zeros: number, work: number,
  ): void;
  step(
    state: number, next: number, columns: number, top: number, bottom: number, left: number, right: number,
    words: number, word: number, scales: number,
  ): void;
}

const BASE = 1024; // bytes at the beginning that are the compiler's
const PAGE = 65536;
const padded = (n: number): number => Math.ceil(n / 8) * 8;

export class Kernel {
  readonly reach: number;
  private readonly rule: Rule;
  private readonly c: number;
  private readonly h: number;
  private readonly tables: number;
  private readonly free: number;

  constructor(module: WebAssembly.Module, private readonly level: Level, weights: ArrayBuffer) {
    this.rule = new WebAssembly.Instance(module, {}).exports as unknown as Rule;
    this.reach = level.nca_steps * level.patch;
    const tensor = (name: string): Float32Array => {
      const { offset, shape } = level.tensors[name];
      return new Float32Array(weights, 4 * offset, shape.reduce((a, b) => a * b, 1));
    };
    const units = level.cell_channels, hidden = level.hidden, c = (this.c = padded(units)), h = (this.h = padded(hidden));
    const parts: Float32Array[] = [
      panels(tensor("perceive"), units, new Array<number>(9).fill(units), c, c),
      panels(tensor("hidden"), hidden, [units, units], h, c),
      panels(tensor("output"), units, [hidden], c, h),
      lengthened(tensor("output_bias"), c),
      new Float32Array(c),
      new Float32Array(4 * (3 * c + h)),
    ];
    const at: number[] = [];
    let end = BASE;
    for (const part of parts) { at.push(end); end += part.byteLength; }
    this.tables = end;
    const rows = level.steps.length * level.nca_steps;
    this.free = end + 4 * rows * 2 * (c + h);
    this.grow(this.free);
    parts.forEach((part, i) => this.floats(at[i], part.length).set(part));
    const of: [string, number, number][] = [
      ["state_scale", units, c], ["perceived_scale", units, c], ["hidden_bias", hidden, h], ["hidden_scale", hidden, h],
    ];
    for (let row = 0, to = end; row < rows; row++)
      for (const [name, n, wide] of of) {
        this.floats(to, n).set(tensor(name).subarray(row * n, (row + 1) * n));
        to += 4 * wide;
      }
    this.rule.use(c, h, hidden, level.fire_threshold, at[0], at[1], at[2], at[3], at[4], at[5]);
  }

  private floats(at: number, count: number): Float32Array { return new Float32Array(this.rule.memory.buffer, at, count); }

  private grow(bytes: number): void {
    const missing = Math.ceil((bytes - this.rule.memory.buffer.byteLength) / PAGE);
    if (missing > 0) this.rule.memory.grow(missing);
  }

  private words(at: number, key: bigint, y: number, x: number, height: number, width: number): void {
    this.rule.words(at, Number(key & 0xffffffffn) | 0, Number(key >> 32n) | 0, y, x, height, width);
  }

  /** Standard normals (channels, height, width) by place. */
  normals(key: bigint, channels: number, y: number, x: number, height: number, width: number): Float32Array {
    const cells = height * width, found = new Float32Array(channels * cells);
    this.grow(this.free + 16 * cells);
    for (let channel = 0; channel < channels; channel += 4) {
      this.words(this.free, mix(key, channel / 4), y, x, height, width);
      const bits = new Uint32Array(this.rule.memory.buffer, this.free, 4 * cells);
      for (let pair = 0; pair < 2 && channel + 2 * pair < channels; pair++) {
        const first = channel + 2 * pair;
        for (let cell = 0; cell < cells; cell++) {
          const radius = Math.sqrt(-2 * Math.log((bits[4 * cell + 2 * pair] + 0.5) * 2 ** -32));
          const angle = (bits[4 * cell + 2 * pair + 1] + 0.5) * (2 * Math.PI * 2 ** -32);
          found[first * cells + cell] = radius * Math.cos(angle);
          if (first + 1 < channels) found[(first + 1) * cells + cell] = radius * Math.sin(angle);
        }
      }
    }
    return found;
  }

  /** The region (height, width) at (y, x) after evaluation i: planes of the next x and of the clean image.
   * input: planes of x and of the clean image before, of the region and `reach` around it. */
  evaluate(
    i: number, seed: bigint, y: number, x: number, height: number, width: number, input: Float32Array | null,
  ): Float32Array {
    const { channels, patch, nca_steps, steps } = this.level, { reach, c, rule } = this, step = steps[i];
    const tall = height + 2 * reach, across = width + 2 * reach, rows = tall / patch, columns = across / patch;
    const noisy = input ?? this.normals(mix(seed, INITIAL_NOISE, 0), channels, y - reach, x - reach, tall, across);
    const bits = this.free, cells = rows * columns;
    let state = bits + 16 * cells, next = state + 4 * c * cells;
    this.grow(next + 4 * c * cells);
    const seeded = this.floats(state, c * cells).fill(0);
    for (let channel = 0, from = 0; channel < channels; channel++)
      for (let v = 0; v < tall; v++)
        for (let u = 0; u < across; u++, from++)
          seeded[(((v / patch) | 0) * columns + ((u / patch) | 0)) * c + (channel * patch + (v % patch)) * patch + (u % patch)] =
            noisy[from] * step.input;
    for (let k = 0; k < nca_steps; k++) {
      if (k % 4 === 0)
        this.words(bits, mix(seed, FIRE, i, 0, k / 4), (y - reach) / patch, (x - reach) / patch, rows, columns);
      const edge = k + 1; // what the steps that are left read
      rule.step(
        state, next, columns, edge, rows - edge, edge, columns - edge, bits, k % 4,
        this.tables + 4 * (i * nca_steps + k) * 2 * (c + this.h),
      );
      [state, next] = [next, state];
    }
    const last = this.floats(state, c * cells), area = height * width, colours = channels * patch * patch;
    const found = new Float32Array(2 * channels * area);
    for (let channel = 0, to = 0; channel < channels; channel++)
      for (let v = reach; v < tall - reach; v++)
        for (let u = reach; u < across - reach; u++, to++) {
          const at = (channel * tall + v) * across + u, now = noisy[at];
          const cell = ((v / patch) | 0) * columns + ((u / patch) | 0);
          const noise = step.by_output * last[cell * c + colours + (channel * patch + (v % patch)) * patch + (u % patch)]
            + step.by_x * now;
          const clean = Math.min(1, Math.max(-1, (now - step.sigma * noise) / step.alpha));
          const before = input === null ? clean : input[at + channels * tall * across];
          found[to] = step.keep * now + step.mean * (clean + step.ahead * (clean - before));
          found[to + channels * area] = clean;
        }
    return found;
  }

  /** The largest difference from the manifest's stored numbers, at a place far from the origin. */
  checkDifference(): number {
    const { seed, y, x, side, evaluation, values } = this.level.check, { reach } = this, { channels } = this.level;
    const tall = side + 2 * reach, planes = channels * tall * tall, input = new Float32Array(2 * planes);
    input.set(this.normals(mix(BigInt(seed), INITIAL_NOISE, 0), channels, y - reach, x - reach, tall, tall));
    const found = this.evaluate(evaluation, BigInt(seed), y, x, side, side, input).subarray(channels * side * side);
    return values.reduce((worst, value, n) => Math.max(worst, Math.abs(value - found[n])), 0);
  }
}

/** Weights (rows, sum of runs) in panels of 8 rows, each run of inputs padded to `run`. */
function panels(from: Float32Array, rows: number, runs: number[], high: number, run: number): Float32Array {
  const inputs = runs.reduce((a, b) => a + b, 0), wide = runs.length * run, found = new Float32Array(high * wide);
  for (let row = 0; row < rows; row++)
    for (let r = 0, n = 0; r < runs.length; r++)
      for (let k = 0; k < runs[r]; k++, n++)
        found[(((row / 8) | 0) * wide + r * run + k) * 8 + (row % 8)] = from[row * inputs + n];
  return found;
}

function lengthened(from: Float32Array, length: number): Float32Array {
  const found = new Float32Array(length);
  found.set(from);
  return found;
}
