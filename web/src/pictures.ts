// What has been painted, as canvases: a picture for each page of the slide's grid.

import type { Rect, Slide } from "./slide";

const BLOCKS = 8;
const MOST_BYTES = 48 * 2 ** 20;

interface Picture { canvas: HTMLCanvasElement; shown: Uint8Array; used: number }

/** Planes of values in [-1, 1] as pixels. */
export function toPixels(values: Float32Array, channels: number, height: number, width: number): ImageData {
  const cells = height * width, pixels = new Uint8ClampedArray(4 * cells).fill(255);
  for (let cell = 0; cell < cells; cell++)
    for (let channel = 0; channel < Math.max(3, channels); channel++)
      pixels[4 * cell + channel] = (values[(channels === 1 ? 0 : channel * cells) + cell] + 1) * 127.5;
  return new ImageData(pixels, width, height);
}

export class Pictures {
  private readonly found = new Map<string, Picture>();
  private clock = 0;

  constructor(private readonly channels: number) {}

  clear(): void { this.found.clear(); }

  /** Show a rectangle as it is after `after` evaluations, where nothing later is shown. values: planes of channels. */
  put(slide: Slide, rect: Rect, after: number, values: Float32Array): void {
    const { block } = slide, pixels = toPixels(values, this.channels, rect.rows * block, rect.columns * block);
    for (let r = 0; r < rect.rows; r++)
      for (let c = 0; c < rect.columns; c++) {
        const row = rect.row + r, column = rect.column + c, top = Math.floor(row / BLOCKS), left = Math.floor(column / BLOCKS);
        const picture = this.picture(slide, top, left), at = (row - top * BLOCKS) * BLOCKS + column - left * BLOCKS;
        if (picture.shown[at] > after) continue;
        picture.shown[at] = after;
        const dx = (column - left * BLOCKS) * block - c * block, dy = (row - top * BLOCKS) * block - r * block;
        picture.canvas.getContext("2d")?.putImageData(pixels, dx, dy, c * block, r * block, block, block);
      }
    this.forget(slide);
  }

  /** After how many evaluations a block is shown; 0 where it is not. */
  shown(row: number, column: number): number {
    const top = Math.floor(row / BLOCKS), left = Math.floor(column / BLOCKS);
    return this.found.get(`${top},${left}`)?.shown[(row - top * BLOCKS) * BLOCKS + column - left * BLOCKS] ?? 0;
  }

  /** Draw what lies in a view: its upper left corner in the slide's pixels, and how large one is. */
  draw(context: CanvasRenderingContext2D, slide: Slide, x: number, y: number, scale: number): void {
    const { side } = slide, { width, height } = context.canvas;
    this.clock++;
    for (let top = Math.floor(y / side); top * side < y + height / scale; top++)
      for (let left = Math.floor(x / side); left * side < x + width / scale; left++) {
        const picture = this.found.get(`${top},${left}`);
        if (picture === undefined) continue;
        picture.used = this.clock;
        const from = [Math.round((left * side - x) * scale), Math.round((top * side - y) * scale)];
        const to = [Math.round(((left + 1) * side - x) * scale), Math.round(((top + 1) * side - y) * scale)];
        context.drawImage(picture.canvas, from[0], from[1], to[0] - from[0], to[1] - from[1]);
      }
  }

  private picture(slide: Slide, top: number, left: number): Picture {
    let picture = this.found.get(`${top},${left}`);
    if (picture === undefined) {
      const canvas = document.createElement("canvas");
      canvas.width = canvas.height = slide.side;
      picture = { canvas, shown: new Uint8Array(BLOCKS ** 2), used: this.clock };
      this.found.set(`${top},${left}`, picture);
    }
    picture.used = this.clock;
    return picture;
  }

  private forget(slide: Slide): void {
    const most = Math.floor(MOST_BYTES / (4 * slide.side ** 2));
    if (this.found.size <= most) return;
    const oldest = [...this.found].sort((a, b) => a[1].used - b[1].used);
    for (const [name, { used }] of oldest.slice(0, this.found.size - most)) if (used < this.clock) this.found.delete(name);
  }
}
