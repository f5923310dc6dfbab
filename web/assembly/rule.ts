// The update rule of Diff-NCA in AssemblyScript: `automata/update_rule.py` once more, with `cell` normalisation, and the
// words of `core/random.py`. Pointers are bytes; the page lays the memory out (`src/kernel.ts`). Channels and hidden
// units come padded with zeros to multiples of 8.

// @ts-ignore: decorator
@inline function multiplyAdd(a: v128, b: v128, c: v128): v128 {
  if (ASC_FEATURE_RELAXED_SIMD) return f32x4.relaxed_madd(a, b, c);
  return f32x4.add(f32x4.mul(a, b), c);
}

/** Four words for every cell of a grid, cell by cell: Philox4x32-10 of its 64-bit place. */
export function words(out: usize, k0: u32, k1: u32, y: f64, x: f64, height: i32, width: i32): void {
  for (let i = 0; i < height; i++) {
    for (let j = 0; j < width; j++) {
      const row = <u64>(<i64>y + i), column = <u64>(<i64>x + j);
      let c0 = <u32>column, c1 = <u32>(column >> 32), c2 = <u32>row, c3 = <u32>(row >> 32);
      let a = k0, b = k1;
      for (let round = 0; round < 10; round++) {
        const p0 = <u64>c0 * 0xd2511f53, p1 = <u64>c2 * 0xcd9e8d57;
        c0 = <u32>(p1 >> 32) ^ c1 ^ a;
        c1 = <u32>p1;
        c2 = <u32>(p0 >> 32) ^ c3 ^ b;
        c3 = <u32>p0;
        a += 0x9e3779b9;
        b += 0xbb67ae85;
      }
      store<u32>(out, c0);
      store<u32>(out, c1, 4);
      store<u32>(out, c2, 8);
      store<u32>(out, c3, 12);
      out += 16;
    }
  }
}

// For four cells: out = bias + the product of `count` numbers in each of `runs` pieces that lie `stride` bytes apart with
// weights in panels (outputs / 8, runs * count, 8). count: a multiple of 4. Rows of out are `row` bytes long.
function product(
  p0: usize, p1: usize, p2: usize, p3: usize, runs: i32, count: i32, stride: usize,
  weights: usize, bias: usize, panels: i32, out: usize, row: usize,
): void {
  let w = weights;
  for (let panel = 0; panel < panels; panel++) {
    let a0 = v128.load(bias), b0 = v128.load(bias, 16);
    let a1 = a0, b1 = b0, a2 = a0, b2 = b0, a3 = a0, b3 = b0;
    for (let run = 0; run < runs; run++) {
      const offset = <usize>run * stride;
      let q0 = p0 + offset, q1 = p1 + offset, q2 = p2 + offset, q3 = p3 + offset;
      const end = q0 + (<usize>count << 2);
      while (q0 < end) {
        let wa = v128.load(w), wb = v128.load(w, 16);
        let s = v128.load_splat<f32>(q0);
        a0 = multiplyAdd(s, wa, a0); b0 = multiplyAdd(s, wb, b0);
        s = v128.load_splat<f32>(q1);
        a1 = multiplyAdd(s, wa, a1); b1 = multiplyAdd(s, wb, b1);
        s = v128.load_splat<f32>(q2);
        a2 = multiplyAdd(s, wa, a2); b2 = multiplyAdd(s, wb, b2);
        s = v128.load_splat<f32>(q3);
        a3 = multiplyAdd(s, wa, a3); b3 = multiplyAdd(s, wb, b3);
        wa = v128.load(w, 32); wb = v128.load(w, 48);
        s = v128.load_splat<f32>(q0, 4);
        a0 = multiplyAdd(s, wa, a0); b0 = multiplyAdd(s, wb, b0);
        s = v128.load_splat<f32>(q1, 4);
        a1 = multiplyAdd(s, wa, a1); b1 = multiplyAdd(s, wb, b1);
        s = v128.load_splat<f32>(q2, 4);
        a2 = multiplyAdd(s, wa, a2); b2 = multiplyAdd(s, wb, b2);
        s = v128.load_splat<f32>(q3, 4);
        a3 = multiplyAdd(s, wa, a3); b3 = multiplyAdd(s, wb, b3);
        w += 64;
        q0 += 8; q1 += 8; q2 += 8; q3 += 8;
      }
    }
    v128.store(out, a0); v128.store(out, b0, 16);
    v128.store(out + row, a1); v128.store(out + row, b1, 16);
    v128.store(out + 2 * row, a2); v128.store(out + 2 * row, b2, 16);
    v128.store(out + 3 * row, a3); v128.store(out + 3 * row, b3, 16);
    bias += 32;
    out += 32;
  }
}

let channels: i32 = 0, hiddenPadded: i32 = 0, hiddenUnits: f32 = 1, threshold: u64 = 0;
let perceive: usize = 0, hidden: usize = 0, output: usize = 0, outputBias: usize = 0, none: usize = 0;
let scratch: usize = 0;

/** Where a model's weights lie, in panels. c, h: padded; units: hidden units; limit: of the words of cells that fire;
 * zeros: c zeros; work: room for 4 (2 c + h + c) numbers. */
export function use(
  c: i32, h: i32, units: i32, limit: f64, perceiveAt: usize, hiddenAt: usize, outputAt: usize, biasAt: usize,
  zeros: usize, work: usize,
): void {
  channels = c; hiddenPadded = h; hiddenUnits = <f32>units; threshold = <u64>limit;
  perceive = perceiveAt; hidden = hiddenAt; output = outputAt; outputBias = biasAt; none = zeros; scratch = work;
}

/** One NCA step of the cells [top, bottom) x [left, right) of a grid `columns` wide, from state to next, both
 * (rows, columns, c). words: the cells' own, of which number `word` counts. scales: this step's, c of the state, c of
 * what is perceived; then the hidden layer's bias and scale, h each. */
export function step(
  state: usize, next: usize, columns: i32, top: i32, bottom: i32, left: i32, right: i32,
  words: usize, word: i32, scales: usize,
): void {
  const cell = <usize>channels << 2, line = cell * columns;
  const z = scratch, wide = cell << 1, tall = <usize>hiddenPadded << 2;
  const layer = z + 4 * wide, change = layer + 4 * tall;
  const bias = scales + wide, gain = bias + tall;
  let p0: usize = 0, p1: usize = 0, p2: usize = 0, p3: usize = 0, filled = 0;
  for (let row = top; row < bottom; row++) {
    for (let column = left; column < right; column++) {
      const at = row * columns + column, here = <usize>at * cell;
      if (<u64>load<u32>(words + (<usize>at << 4) + (<usize>word << 2)) < threshold) {
        if (filled == 0) p0 = here;
        else if (filled == 1) p1 = here;
        else if (filled == 2) p2 = here;
        else p3 = here;
        filled++;
      } else memory.copy(next + here, state + here, cell);
      const last = row == bottom - 1 && column == right - 1;
      if (filled < 4 && !(last && filled > 0)) continue;
      if (filled < 2) p1 = p0;
      if (filled < 3) p2 = p0;
      if (filled < 4) p3 = p0;
      filled = 0;
      const corner = state - line - cell;
      product(
        corner + p0, corner + p1, corner + p2, corner + p3, 3, 3 * channels, line,
        perceive, none, channels >> 3, z + cell, wide,
      );
      for (let i = 0; i < 4; i++) {
        const from = state + (i == 0 ? p0 : i == 1 ? p1 : i == 2 ? p2 : p3), to = z + <usize>i * wide;
        for (let n: usize = 0; n < cell; n += 16) {
          v128.store(to + n, f32x4.mul(v128.load(from + n), v128.load(scales + n)));
          v128.store(to + cell + n, f32x4.mul(v128.load(to + cell + n), v128.load(scales + cell + n)));
        }
      }
      product(z, z + wide, z + 2 * wide, z + 3 * wide, 1, 2 * channels, 0, hidden, bias, hiddenPadded >> 3, layer, tall);
      const slope = f32x4.splat(0.01);
      for (let i = 0; i < 4; i++) {
        const at = layer + <usize>i * tall;
        let squares = f32x4.splat(0);
        for (let n: usize = 0; n < tall; n += 16) {
          const v = v128.load(at + n);
          squares = multiplyAdd(v, v, squares);
        }
        const sum = f32x4.extract_lane(squares, 0) + f32x4.extract_lane(squares, 1)
          + f32x4.extract_lane(squares, 2) + f32x4.extract_lane(squares, 3);
        const scale = f32x4.splat(<f32>1 / sqrt<f32>(sum / hiddenUnits + <f32>1e-5));
        for (let n: usize = 0; n < tall; n += 16) {
          const v = v128.load(at + n);
          const active = f32x4.max(v, f32x4.mul(v, slope));
          v128.store(at + n, f32x4.mul(f32x4.mul(active, v128.load(gain + n)), scale));
        }
      }
      product(
        layer, layer + tall, layer + 2 * tall, layer + 3 * tall, 1, hiddenPadded, 0,
        output, outputBias, channels >> 3, change, cell,
      );
      for (let i = 0; i < 4; i++) {
        const where = i == 0 ? p0 : i == 1 ? p1 : i == 2 ? p2 : p3, from = change + <usize>i * cell;
        for (let n: usize = 0; n < cell; n += 16)
          v128.store(next + where + n, f32x4.add(v128.load(state + where + n), v128.load(from + n)));
      }
    }
  }
}
