// An image without edges, computed where it is looked at: `studio/endless.py` once more.
//
// The grid of a seed is cut into blocks as large as an evaluation reads around, so that a block needs itself and the
// eight around it, one evaluation before. Eight by eight blocks make a page of the cache.

import type { Level } from "./manifest";
import { Pool } from "./pool";

const BLOCKS = 8; // of a page, on a side
export const CACHE_BYTES = 160 * 2 ** 20; // beside pictures, workers and the browser: 256 MB in all

/** In blocks. */
export interface Rect { row: number; column: number; rows: number; columns: number }

interface Page { values: Float32Array; known: Uint8Array; used: number }

export class Slide {
  readonly block: number;
  readonly side: number;
  readonly steps: number;
  private readonly pages = new Map<string, Page>();
  private readonly pageBytes: number;
  private clock = 0;
  private bytes = 0;

  /** made: called with what an evaluation has left of a rectangle. */
  constructor(
    private readonly level: Level, readonly seed: string, private readonly pool: Pool,
    private readonly made: (evaluation: number, rect: Rect, values: Float32Array) => void,
  ) {
    this.block = level.nca_steps * level.patch;
    this.side = BLOCKS * this.block;
    this.steps = level.steps.length;
    this.pageBytes = 8 * level.channels * this.side ** 2;
  }

  get cachedBytes(): number { return this.bytes; }

  /** Compute blocks up to after `last` evaluations. False where they were no longer wanted. */
  async finish(rect: Rect, wanted: () => boolean, last = this.steps): Promise<boolean> {
    const since = ++this.clock, plan: { evaluation: number; rects: Rect[] }[] = [];
    let area = rect, mask = new Uint8Array(rect.rows * rect.columns).fill(1);
    for (let after = last; after > 0; after--) {
      let any = false;
      for (let r = 0, n = 0; r < area.rows; r++)
        for (let c = 0; c < area.columns; c++, n++)
          if (mask[n] === 1) {
            if (this.knows(after, area.row + r, area.column + c)) mask[n] = 0;
            else any = true;
          }
      if (!any) break;
      plan.unshift({ evaluation: after - 1, rects: shared(mask, area, this.pool.size) });
      const around = { row: area.row - 1, column: area.column - 1, rows: area.rows + 2, columns: area.columns + 2 };
      const next = new Uint8Array(around.rows * around.columns);
      for (let r = 0, n = 0; r < area.rows; r++)
        for (let c = 0; c < area.columns; c++, n++)
          if (mask[n] === 1)
            for (let v = 0; v < 3; v++) next.fill(1, (r + v) * around.columns + c, (r + v) * around.columns + c + 3);
      [area, mask] = [around, next];
    }
    for (const { evaluation, rects } of plan) {
      const done = await Promise.all(rects.map((part) => this.compute(evaluation, part, wanted)));
      this.forget(since);
      if (done.includes(false)) return false;
    }
    this.forget(Infinity);
    return true;
  }

  /** Planes of x and of the clean image of a rectangle after some evaluations, all of it known. */
  gather(after: number, rect: Rect): Float32Array {
    const { block } = this, width = rect.columns * block, height = rect.rows * block, planes = 2 * this.level.channels;
    const found = new Float32Array(planes * height * width);
    this.each(after, rect, false, (page, from, to, count) => {
      for (let plane = 0; plane < planes; plane++) {
        const start = plane * this.side ** 2 + from;
        found.set(page.values.subarray(start, start + count), plane * height * width + to);
      }
    });
    return found;
  }

  private async compute(evaluation: number, rect: Rect, wanted: () => boolean): Promise<boolean> {
    const { block } = this, place = { y: rect.row * block, x: rect.column * block };
    const size = { height: rect.rows * block, width: rect.columns * block };
    const outer = { row: rect.row - 1, column: rect.column - 1, rows: rect.rows + 2, columns: rect.columns + 2 };
    const values = await this.pool.run(
      () => ({ seed: this.seed, evaluation, ...place, ...size, input: evaluation === 0 ? null : this.gather(evaluation, outer) }),
      wanted,
    );
    if (values === null) return false;
    const planes = 2 * this.level.channels, cells = size.height * size.width;
    this.each(evaluation + 1, rect, true, (page, to, from, count) => {
      for (let plane = 0; plane < planes; plane++)
        page.values.set(values.subarray(plane * cells + from, plane * cells + from + count), plane * this.side ** 2 + to);
    });
    this.made(evaluation, rect, values);
    return true;
  }

  private knows(after: number, row: number, column: number): boolean {
    const page = this.pages.get(`${after},${Math.floor(row / BLOCKS)},${Math.floor(column / BLOCKS)}`);
    if (page === undefined) return false;
    page.used = this.clock;
    return page.known[(row - Math.floor(row / BLOCKS) * BLOCKS) * BLOCKS + column - Math.floor(column / BLOCKS) * BLOCKS] === 1;
  }

  /** Visit the rows of pixels of a rectangle page by page: the page, where a piece begins in a plane of it, where in a
   * plane of the rectangle, and how many pixels it has. mark: that the blocks are known from now on. */
  private each(
    after: number, rect: Rect, mark: boolean, visit: (page: Page, at: number, within: number, count: number) => void,
  ): void {
    const { block, side } = this, width = rect.columns * block;
    for (let top = Math.floor(rect.row / BLOCKS); top * BLOCKS < rect.row + rect.rows; top++)
      for (let left = Math.floor(rect.column / BLOCKS); left * BLOCKS < rect.column + rect.columns; left++) {
        const page = this.page(`${after},${top},${left}`);
        const r0 = Math.max(rect.row, top * BLOCKS), r1 = Math.min(rect.row + rect.rows, (top + 1) * BLOCKS);
        const c0 = Math.max(rect.column, left * BLOCKS), c1 = Math.min(rect.column + rect.columns, (left + 1) * BLOCKS);
        if (mark)
          for (let r = r0 - top * BLOCKS; r < r1 - top * BLOCKS; r++)
            page.known.fill(1, r * BLOCKS + c0 - left * BLOCKS, r * BLOCKS + c1 - left * BLOCKS);
        for (let y = r0 * block; y < r1 * block; y++)
          visit(
            page, (y - top * side) * side + c0 * block - left * side,
            (y - rect.row * block) * width + (c0 - rect.column) * block, (c1 - c0) * block,
          );
      }
  }

  private page(name: string): Page {
    let page = this.pages.get(name);
    if (page === undefined) {
      page = {
        values: new Float32Array(2 * this.level.channels * this.side ** 2), known: new Uint8Array(BLOCKS ** 2), used: 0,
      };
      this.pages.set(name, page);
      this.bytes += this.pageBytes;
    }
    page.used = this.clock;
    return page;
  }

  /** Give up pages that were used longest ago, and before `since`, while there are too many. */
  private forget(since: number): void {
    if (this.bytes <= CACHE_BYTES) return;
    for (const [name, page] of [...this.pages].sort((a, b) => a[1].used - b[1].used)) {
      if (this.bytes <= CACHE_BYTES || page.used >= since) break;
      this.pages.delete(name);
      this.bytes -= this.pageBytes;
    }
  }
}

/** Disjoint rectangles that hold exactly the cells marked 1, cut so that workers end at about the same time. */
function shared(mask: Uint8Array, area: Rect, workers: number): Rect[] {
  let best: Rect[] = [], least = Infinity;
  for (let most = 4; most <= 16; most++) {
    const rects = rectangles(mask, area, most), loads = new Array<number>(workers).fill(0);
    for (const cost of rects.map((r) => (r.rows + 1) * (r.columns + 1)).sort((a, b) => b - a))
      loads[loads.indexOf(Math.min(...loads))] += cost;
    const time = Math.max(...loads);
    if (time < least) [best, least] = [rects, time];
  }
  return best;
}

function rectangles(mask: Uint8Array, area: Rect, most: number): Rect[] {
  const left = mask.slice(), found: Rect[] = [], wide = area.columns;
  const evenly = (n: number): number => Math.ceil(n / Math.ceil(n / most));
  for (let n = 0; n < left.length; n++) {
    if (left[n] !== 1) continue;
    const row = Math.floor(n / wide), column = n % wide;
    let columns = 1;
    while (column + columns < wide && left[n + columns] === 1) columns++;
    columns = evenly(columns);
    const full = (r: number): boolean => left.subarray(r * wide + column, r * wide + column + columns).every((v) => v === 1);
    let rows = 1;
    while (row + rows < area.rows && full(row + rows)) rows++;
    rows = evenly(rows);
    for (let r = row; r < row + rows; r++) left.fill(0, r * wide + column, r * wide + column + columns);
    found.push({ row: area.row + row, column: area.column + column, rows, columns });
  }
  return found;
}
