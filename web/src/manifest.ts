// `manifest.json`, as `export/web.py` writes it.

export interface SamplerStep {
  input: number; by_output: number; by_x: number; alpha: number; sigma: number; keep: number; mean: number; ahead: number;
}

export interface Level {
  channels: number; patch: number; nca_steps: number; cell_channels: number; hidden: number; fire_threshold: number;
  steps: SamplerStep[];
  tensors: Record<string, { offset: number; shape: number[] }>;
  scale: number; // pixels of the finest level, on a side, that are one of this
  condition: { channels: number; factor: number; noise: number } | null; // the picture of the level before
  check: { seed: string; y: number; x: number; side: number; evaluation: number; values: number[] };
}

export interface Manifest {
  format: number; title: string; sampling_steps: number; mpp: number | null;
  weights: { file: string; bytes: number; sha256: string };
  levels: Level[]; // coarsest first
}

/** What a worker is to compute: evaluation number `evaluation` of a region. input: x and the clean image before, of the
 * region and `reach` pixels around, which the first evaluation has no need of. */
export interface Job {
  id: number; seed: string; evaluation: number; y: number; x: number; height: number; width: number;
  input: Float32Array | null; level: number; told: Told | null;
}

/** What a level is told: a part of the finished picture of the level before, in planes, and where it lies there. */
export interface Told { values: Float32Array; y: number; x: number; height: number; width: number }

/** Planes of x and of the clean image (2 channels, height, width). */
export interface Done { kind: "done"; id: number; values: Float32Array }

export interface Start { kind: "start"; module: WebAssembly.Module; levels: Level[]; weights: ArrayBuffer }

export type Answer = Done | { kind: "ready" } | { kind: "error"; text: string };
