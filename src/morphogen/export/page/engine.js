// A model of `manifest.json` and `weights.bin`: one evaluation, and the steps of DPM-Solver++ 2M over it.

import { FIRE, INITIAL_NOISE, mix, normals, words } from "./random.js";

export class Model {
  /** level: an entry of the manifest's levels. content: the ArrayBuffer of its weights. */
  constructor(level, content) {
    this.level = level;
    for (const [name, { offset, shape }] of Object.entries(level.tensors)) {
      this[name] = new Float32Array(content, 4 * offset, shape.reduce((a, b) => a * b, 1));
    }
  }

  /** The predicted clean image (channels, height, width) at evaluation i of x. y, x0: the place of the first pixel. */
  clean(i, x, seed, height, width, y = 0, x0 = 0) {
    const { channels, patch, nca_steps, cell_channels: c, steps } = this.level;
    const step = steps[i], rows = height / patch, columns = width / patch, colours = channels * patch * patch;
    let state = new Float32Array((rows + 2) * (columns + 2) * c), next = new Float32Array(state.length);
    const shuffle = (visit) => {
      for (let channel = 0, from = 0; channel < channels; channel++)
        for (let v = 0; v < height; v++)
          for (let u = 0; u < width; u++, from++) {
            const cell = (((v / patch) | 0) + 1) * (columns + 2) + ((u / patch) | 0) + 1;
            visit(from, cell * c + (channel * patch + (v % patch)) * patch + (u % patch));
          }
    };
    shuffle((from, to) => { state[to] = x[from] * step.input; });
    let bits;
    for (let k = 0; k < nca_steps; k++) {
      if (k % 4 === 0) bits = words(mix(seed, FIRE, i, 0, k / 4), y / patch, x0 / patch, rows, columns);
      reflect(state, rows, columns, c);
      next.set(state);
      this.ncaStep(i * nca_steps + k, state, next, bits, k % 4, rows, columns);
      [state, next] = [next, state];
    }
    const clean = new Float32Array(x.length);
    shuffle((to, from) => {
      const noise = step.by_output * state[from + colours] + step.by_x * x[to];
      clean[to] = Math.min(1, Math.max(-1, (x[to] - step.sigma * noise) / step.alpha));
    });
    return clean;
  }

  /** One NCA step from state to next, both (rows + 2, columns + 2, c); cells whose word is too large stay. */
  ncaStep(at, state, next, bits, word, rows, columns) {
    const { cell_channels: c, hidden: h, fire_threshold: threshold } = this.level;
    const { perceive, hidden, output, output_bias: bias } = this;
    const part = (table, n) => table.subarray(at * n, (at + 1) * n);
    const stateScale = part(this.state_scale, c), perceivedScale = part(this.perceived_scale, c);
    const hiddenBias = part(this.hidden_bias, h), hiddenScale = part(this.hidden_scale, h);
    const seen = new Float32Array(2 * c), active = new Float32Array(h);
    const line = (columns + 2) * c, run = 3 * c, kernel = 9 * c;
    for (let row = 0, cell = 0; row < rows; row++) {
      for (let column = 0; column < columns; column++, cell++) {
        if (bits[4 * cell + word] >= threshold) continue;
        const corner = row * line + column * c, here = corner + line + c;
        for (let o = 0; o < c; o += 4) {
          const w0 = o * kernel, w1 = Math.min(o + 1, c - 1) * kernel;
          const w2 = Math.min(o + 2, c - 1) * kernel, w3 = Math.min(o + 3, c - 1) * kernel;
          let s0 = 0, s1 = 0, s2 = 0, s3 = 0;
          for (let v = 0, w = 0; v < 3; v++) {
            for (let n = 0, from = corner + v * line; n < run; n++, w++, from++) {
              const value = state[from];
              s0 += value * perceive[w0 + w];
              s1 += value * perceive[w1 + w];
              s2 += value * perceive[w2 + w];
              s3 += value * perceive[w3 + w];
            }
          }
          seen[c + o] = s0 * perceivedScale[o];
          if (o + 1 < c) seen[c + o + 1] = s1 * perceivedScale[o + 1];
          if (o + 2 < c) seen[c + o + 2] = s2 * perceivedScale[o + 2];
          if (o + 3 < c) seen[c + o + 3] = s3 * perceivedScale[o + 3];
        }
        for (let o = 0; o < c; o++) seen[o] = state[here + o] * stateScale[o];
        let squares = 0;
        for (let o = 0, w = 0; o < h; o++) {
          let sum = hiddenBias[o];
          for (let n = 0; n < 2 * c; n++, w++) sum += seen[n] * hidden[w];
          squares += sum * sum;
          active[o] = (sum < 0 ? 0.01 * sum : sum) * hiddenScale[o];
        }
        const scale = 1 / Math.sqrt(squares / h + 1e-5);
        for (let o = 0, w = 0; o < c; o++) {
          let sum = 0;
          for (let n = 0; n < h; n++, w++) sum += active[n] * output[w];
          next[here + o] = state[here + o] + sum * scale + bias[o];
        }
      }
    }
  }

  /** The clean image after every evaluation, the last one the picture: a generator of Float32Array. */
  *paint(seed, height, width) {
    const { channels, steps } = this.level;
    let x = normals(mix(seed, INITIAL_NOISE, 0), channels, 0, 0, height, width), before = null;
    for (let i = 0; i < steps.length; i++) {
      const { keep, mean, ahead } = steps[i], clean = this.clean(i, x, seed, height, width);
      before ??= clean;
      const next = new Float32Array(x.length);
      for (let n = 0; n < x.length; n++) next[n] = keep * x[n] + mean * (clean[n] + ahead * (clean[n] - before[n]));
      [x, before] = [next, clean];
      yield i + 1 < steps.length ? clean : x;
    }
  }

  /** The largest difference from the manifest's stored numbers, at a place far from the origin. */
  checkDifference() {
    const { check, channels, nca_steps, patch } = this.level, reach = nca_steps * patch, side = check.side + 2 * reach;
    const seed = BigInt(check.seed), y = check.y - reach, x0 = check.x - reach;
    const x = normals(mix(seed, INITIAL_NOISE, 0), channels, y, x0, side, side);
    const clean = this.clean(check.evaluation, x, seed, side, side, y, x0);
    return check.values.reduce((worst, value, n) => {
      const channel = (n / check.side ** 2) | 0, row = ((n / check.side) | 0) % check.side, column = n % check.side;
      return Math.max(worst, Math.abs(value - clean[(channel * side + row + reach) * side + column + reach]));
    }, 0);
  }
}

/** Fill the border of a padded grid by reflection: the cell beyond an edge is the one before it. */
function reflect(state, rows, columns, c) {
  const line = (columns + 2) * c;
  const mirror = (n, last) => (last > 1 ? n : 1);
  for (let row = 1; row <= rows; row++) {
    const left = row * line, from = left + mirror(2, columns) * c, to = left + (columns + 1) * c;
    state.copyWithin(left, from, from + c);
    const last = left + mirror(columns - 1, columns) * c;
    state.copyWithin(to, last, last + c);
  }
  state.copyWithin(0, mirror(2, rows) * line, (mirror(2, rows) + 1) * line);
  state.copyWithin((rows + 1) * line, mirror(rows - 1, rows) * line, (mirror(rows - 1, rows) + 1) * line);
}
