// Random numbers by place: `core/random.py` of the library once more, equal to the bit in its words.

const MASK = (1n << 64n) - 1n;
export const INITIAL_NOISE = 2;
export const FIRE = 5;

/** Hash integers into one 64-bit integer (BigInt). */
export function mix(...words) {
  let state = 0x243f6a8885a308d3n;
  for (const word of words) {
    state = (state ^ (BigInt(word) & MASK)) & MASK;
    state = (state + 0x9e3779b97f4a7c15n) & MASK;
    state = ((state ^ (state >> 30n)) * 0xbf58476d1ce4e5b9n) & MASK;
    state = ((state ^ (state >> 27n)) * 0x94d049bb133111ebn) & MASK;
    state ^= state >> 31n;
  }
  return state;
}

function high(a, b) {
  const a0 = a & 0xffff, a1 = a >>> 16, b0 = b & 0xffff, b1 = b >>> 16;
  const middle = a1 * b0 + ((a0 * b0) >>> 16); // below 2^32
  return (a1 * b1 + (middle >>> 16) + ((a0 * b1 + (middle & 0xffff)) >>> 16)) >>> 0;
}

/** Philox4x32-10 of a counter, into `out` (Uint32Array of 4). */
function philox(k0, k1, c0, c1, c2, c3, out) {
  for (let i = 0; i < 10; i++) {
    const h0 = high(0xd2511f53, c0), l0 = Math.imul(0xd2511f53, c0);
    const h1 = high(0xcd9e8d57, c2), l1 = Math.imul(0xcd9e8d57, c2);
    c0 = (h1 ^ c1 ^ k0) >>> 0;
    c1 = l1 >>> 0;
    c2 = (h0 ^ c3 ^ k1) >>> 0;
    c3 = l0 >>> 0;
    k0 = (k0 + 0x9e3779b9) >>> 0;
    k1 = (k1 + 0xbb67ae85) >>> 0;
  }
  out[0] = c0; out[1] = c1; out[2] = c2; out[3] = c3;
}

/** Four words for every cell of a grid, cell by cell: Uint32Array (height * width * 4). y, x: numbers below 2^53. */
export function words(key, y, x, height, width) {
  const found = new Uint32Array(height * width * 4), out = new Uint32Array(4);
  const k0 = Number(key & 0xffffffffn), k1 = Number(key >> 32n);
  const upper = (v) => Math.floor(v / 2 ** 32) >>> 0;
  for (let i = 0, at = 0; i < height; i++) {
    for (let j = 0; j < width; j++, at += 4) {
      philox(k0, k1, (x + j) >>> 0, upper(x + j), (y + i) >>> 0, upper(y + i), out);
      found.set(out, at);
    }
  }
  return found;
}

/** Standard normals: Float32Array (channels, height, width). */
export function normals(key, channels, y, x, height, width) {
  const cells = height * width, found = new Float32Array(channels * cells);
  for (let channel = 0; channel < channels; channel += 4) {
    const bits = words(mix(key, channel / 4), y, x, height, width);
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
