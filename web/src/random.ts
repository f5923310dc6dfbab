// Keys of random numbers: `core/random.py` once more.

const MASK = (1n << 64n) - 1n;
export const INITIAL_NOISE = 2;
export const FIRE = 5;

/** Hash integers into one 64-bit integer. */
export function mix(...words: (bigint | number)[]): bigint {
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
