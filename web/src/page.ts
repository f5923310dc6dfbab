// The page: an endless canvas to pan and zoom on, whose address is the place, and a film of how it came about.

import { load } from "./load";
import { Pictures, toPixels } from "./pictures";
import { Pool } from "./pool";
import { type Rect, Slide } from "./slide";

const $ = <T extends HTMLElement>(id: string): T => document.getElementById(id) as T;
const canvas = $<HTMLCanvasElement>("picture"), status = $("status"), seedField = $<HTMLInputElement>("seed");
const film = $<HTMLDialogElement>("film"), screen = $<HTMLCanvasElement>("screen");
const FARTHEST = 2 ** 50, ZOOMS = [0.25, 32], PART = 288, FILM = 120; // pixels on a side that are computed at once
const view = { x: 0, y: 0, zoom: 1, seed: "0" };

function parse(): void {
  const [x, y, zoom, seed] = location.hash.slice(1).split(",");
  if (!view.zoom || zoom === undefined) view.zoom = defaultZoom();
  const number = (text: string | undefined, most: number, otherwise: number): number => {
    const value = text === undefined || text === "" ? NaN : Number(text);
    return Number.isFinite(value) ? Math.max(-most, Math.min(most, value)) : otherwise;
  };
  view.x = number(x, FARTHEST, 0);
  view.y = number(y, FARTHEST, 0);
  view.zoom = clampZoom(number(zoom, 1e9, defaultZoom()));
  view.seed = seed !== undefined && isSeed(seed) ? seed : "0";
  seedField.value = view.seed;
}

const isSeed = (text: string): boolean => /^\d{1,20}$/.test(text) && BigInt(text) < 1n << 64n;
const clampZoom = (zoom: number): number => 2 ** Math.round(Math.log2(Math.max(ZOOMS[0], Math.min(ZOOMS[1], zoom > 0 ? zoom : 1))));
const defaultZoom = (): number => clampZoom(2 ** Math.ceil(Math.log2(Math.min(innerWidth, innerHeight) / 256)));

function say(text: string): void { if (status.textContent !== text) status.textContent = text; }

async function begin(): Promise<void> {
  const { manifest, weights, module, relaxed } = await load();
  const level = manifest.levels[0], { channels } = level;
  document.title = manifest.title;
  $("title").textContent = manifest.title;
  const failed = (text: string): void => say(`Cannot paint: ${text}.`);
  const pool = await Pool.start(Math.max(1, Math.min(8, navigator.hardwareConcurrency || 2)), module, level, weights, failed);
  document.body.dataset.kernel = relaxed ? "relaxed" : "simd";
  document.body.dataset.workers = String(pool.size);
  const pictures = new Pictures(channels);
  let slide: Slide, painting = false, began = 0, turn: Promise<unknown> = Promise.resolve();

  const made = (of: () => Slide) => (evaluation: number, rect: Rect, values: Float32Array): void => {
    if (of() !== slide) return;
    const last = evaluation + 1 === slide.steps, half = values.length / 2; // in between, the clean image as foreseen
    pictures.put(slide, rect, evaluation + 1, last ? values.subarray(0, half) : values.subarray(half));
    if (painting) say(`Painting: step ${evaluation + 1} of ${slide.steps}`);
    redraw();
  };
  const newSlide = (): void => {
    const fresh: Slide = new Slide(level, view.seed, pool, made(() => fresh));
    slide = fresh;
    pictures.clear();
  };

  /** The blocks that are looked at. */
  const visible = (): Rect => {
    const { block } = slide, wide = canvas.clientWidth / view.zoom / 2, high = canvas.clientHeight / view.zoom / 2;
    const row = Math.floor((view.y - high) / block), column = Math.floor((view.x - wide) / block);
    return {
      row, column,
      rows: Math.ceil((view.y + high) / block) - row, columns: Math.ceil((view.x + wide) / block) - column,
    };
  };
  /** The part of the view to paint next, from the middle outwards. */
  const nextPart = (): Rect | null => {
    const all = visible(), most = Math.floor(PART / slide.block);
    const down = Math.ceil(all.rows / most), across = Math.ceil(all.columns / most);
    let best: Rect | null = null, nearest = Infinity;
    for (let v = 0; v < down; v++)
      for (let u = 0; u < across; u++) {
        const r0 = Math.floor((v * all.rows) / down), r1 = Math.floor(((v + 1) * all.rows) / down);
        const c0 = Math.floor((u * all.columns) / across), c1 = Math.floor(((u + 1) * all.columns) / across);
        const part = { row: all.row + r0, column: all.column + c0, rows: r1 - r0, columns: c1 - c0 };
        const away = (r0 + r1 - all.rows) ** 2 + (c0 + c1 - all.columns) ** 2;
        if (away < nearest && !complete(part)) [best, nearest] = [part, away];
      }
    return best;
  };
  const complete = (rect: Rect): boolean => {
    for (let r = 0; r < rect.rows; r++)
      for (let c = 0; c < rect.columns; c++)
        if (pictures.shown(rect.row + r, rect.column + c) < slide.steps) return false;
    return true;
  };
  /** One thing at a time for the workers: a part of the view, or a film. */
  const inTurn = <T>(what: () => Promise<T>): Promise<T> => {
    const mine = turn.then(what);
    turn = mine.catch(() => undefined);
    return mine;
  };

  const paint = async (): Promise<void> => {
    if (painting) return;
    painting = true;
    began = performance.now();
    canvas.dataset.done = "false";
    for (let part = nextPart(); part !== null; part = nextPart()) {
      const mine = slide, rect = part;
      await inTurn(async () => {
        const wanted = (): boolean => slide === mine && overlap(visible(), rect);
        if (await mine.finish(rect, wanted)) pictures.put(mine, rect, mine.steps, mine.gather(mine.steps, rect));
      });
    }
    painting = false;
    canvas.dataset.seconds = ((performance.now() - began) / 1000).toFixed(2);
    canvas.dataset.cached = String(slide.cachedBytes);
    canvas.dataset.done = "true";
    say(`Done in ${canvas.dataset.seconds} s.`);
    redraw();
  };

  let asked = false;
  const redraw = (): void => {
    if (asked) return;
    asked = true;
    requestAnimationFrame(() => {
      asked = false;
      const ratio = devicePixelRatio || 1, context = canvas.getContext("2d");
      if (context === null) return;
      canvas.width = Math.round(canvas.clientWidth * ratio);
      canvas.height = Math.round(canvas.clientHeight * ratio);
      context.imageSmoothingEnabled = view.zoom < 1;
      const scale = view.zoom * ratio;
      pictures.draw(context, slide, view.x - canvas.width / scale / 2, view.y - canvas.height / scale / 2, scale);
    });
  };
  let written = 0;
  const moved = (): void => {
    view.x = Math.max(-FARTHEST, Math.min(FARTHEST, view.x));
    view.y = Math.max(-FARTHEST, Math.min(FARTHEST, view.y));
    clearTimeout(written); // browsers refuse addresses that change too often
    written = setTimeout(() => {
      history.replaceState(null, "", `#${Math.round(view.x)},${Math.round(view.y)},${view.zoom},${view.seed}`);
    }, 200);
    canvas.dataset.done = "false";
    redraw();
    if (!painting) void paint();
  };
  /** Zoom by a factor around a point of the canvas. */
  const zoomBy = (factor: number, px = canvas.clientWidth / 2, py = canvas.clientHeight / 2): void => {
    const zoom = clampZoom(view.zoom * factor), dx = px - canvas.clientWidth / 2, dy = py - canvas.clientHeight / 2;
    view.x += dx / view.zoom - dx / zoom;
    view.y += dy / view.zoom - dy / zoom;
    view.zoom = zoom;
    moved();
  };
  const setSeed = (seed: string): void => {
    view.seed = seed;
    newSlide();
    moved();
  };

  const fingers = new Map<number, { x: number; y: number }>();
  let pinch = 0;
  canvas.addEventListener("pointerdown", (event) => {
    canvas.setPointerCapture(event.pointerId);
    fingers.set(event.pointerId, { x: event.offsetX, y: event.offsetY });
    pinch = spread(fingers);
  });
  canvas.addEventListener("pointermove", (event) => {
    const before = fingers.get(event.pointerId);
    if (before === undefined) return;
    view.x -= (event.offsetX - before.x) / view.zoom / fingers.size;
    view.y -= (event.offsetY - before.y) / view.zoom / fingers.size;
    fingers.set(event.pointerId, { x: event.offsetX, y: event.offsetY });
    const now = spread(fingers);
    if (pinch > 0 && (now > 1.6 * pinch || now < pinch / 1.6)) {
      zoomBy(now > pinch ? 2 : 0.5);
      pinch = now;
    } else moved();
  });
  for (const kind of ["pointerup", "pointercancel"] as const)
    canvas.addEventListener(kind, (event) => { fingers.delete(event.pointerId); pinch = spread(fingers); });
  let wheel = 0;
  canvas.addEventListener("wheel", (event) => {
    event.preventDefault();
    wheel += event.deltaY;
    if (Math.abs(wheel) < 60) return;
    zoomBy(wheel < 0 ? 2 : 0.5, event.offsetX, event.offsetY);
    wheel = 0;
  }, { passive: false });
  canvas.addEventListener("keydown", (event) => {
    const far = 64 / view.zoom;
    const moves: Record<string, [number, number]> = {
      ArrowLeft: [-far, 0], ArrowRight: [far, 0], ArrowUp: [0, -far], ArrowDown: [0, far],
    };
    const move = moves[event.key];
    if (move !== undefined) {
      view.x += move[0];
      view.y += move[1];
      moved();
    } else if (event.key === "+" || event.key === "=") zoomBy(2);
    else if (event.key === "-") zoomBy(0.5);
    else return;
    event.preventDefault();
  });
  $("closer").addEventListener("click", () => zoomBy(2));
  $("farther").addEventListener("click", () => zoomBy(0.5));
  $("form").addEventListener("submit", (event) => {
    event.preventDefault();
    const seed = seedField.value.trim();
    if (isSeed(seed)) setSeed(String(BigInt(seed)));
    else say("The seed should be an integer from 0 to 2^64 - 1.");
  });
  $("dice").addEventListener("click", () => {
    seedField.value = String(crypto.getRandomValues(new Uint32Array(1))[0]);
    setSeed(seedField.value);
  });
  $("save").addEventListener("click", () => {
    const wide = canvas.clientWidth / view.zoom, high = canvas.clientHeight / view.zoom;
    const left = Math.ceil(view.x - wide / 2), top = Math.ceil(view.y - high / 2);
    const whole = document.createElement("canvas");
    whole.width = Math.max(1, Math.floor(view.x + wide / 2) - left);
    whole.height = Math.max(1, Math.floor(view.y + high / 2) - top);
    const context = whole.getContext("2d");
    if (context === null) return;
    pictures.draw(context, slide, left, top, 1);
    whole.toBlob((blob) => {
      if (blob === null) return;
      const link = document.createElement("a");
      link.href = URL.createObjectURL(blob);
      link.download = `${manifest.title}-${view.seed}-${left},${top}.png`;
      link.click();
      setTimeout(() => URL.revokeObjectURL(link.href), 1000);
    });
  });
  $("play").addEventListener("click", () => {
    const mine = slide, count = Math.max(1, Math.round(FILM / mine.block));
    const rect = {
      row: Math.round(view.y / mine.block - count / 2), column: Math.round(view.x / mine.block - count / 2),
      rows: count, columns: count,
    };
    screen.width = screen.height = count * mine.block;
    film.dataset.frames = "0";
    film.showModal();
    void inTurn(async () => {
      const frames: ImageData[] = [], wanted = (): boolean => film.open && slide === mine;
      for (let after = 1; after <= mine.steps; after++) {
        if (!(await mine.finish(rect, wanted, after))) return;
        const values = mine.gather(after, rect), half = values.length / 2, last = after === mine.steps;
        frames.push(toPixels(last ? values.subarray(0, half) : values.subarray(half), channels, screen.height, screen.width));
        screen.getContext("2d")?.putImageData(frames[after - 1], 0, 0);
      }
      film.dataset.frames = String(frames.length);
      let frame = 0;
      const timer = setInterval(() => {
        if (!wanted()) { clearInterval(timer); return; }
        screen.getContext("2d")?.putImageData(frames[Math.min(frames.length - 1, frame)], 0, 0);
        frame = (frame + 1) % (frames.length + 6); // the last one stays for a while
      }, 180);
    });
  });
  addEventListener("hashchange", () => {
    const before = view.seed;
    parse();
    if (view.seed !== before) newSlide();
    moved();
  });
  new ResizeObserver(() => moved()).observe(canvas);
  parse();
  newSlide();
  for (const control of document.querySelectorAll<HTMLButtonElement>("button:disabled")) control.disabled = false;
  moved();
}

function spread(fingers: Map<number, { x: number; y: number }>): number {
  const [one, other] = [...fingers.values()];
  return one === undefined || other === undefined ? 0 : Math.hypot(one.x - other.x, one.y - other.y);
}

function overlap(one: Rect, other: Rect): boolean {
  return one.row < other.row + other.rows && other.row < one.row + one.rows
    && one.column < other.column + other.columns && other.column < one.column + one.columns;
}

say("Loading…");
begin().catch((error: unknown) => say(`Cannot paint: ${error instanceof Error ? error.message : String(error)}.`));
