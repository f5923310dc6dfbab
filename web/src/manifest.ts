// `manifest.json`, as `export/web.py` writes it.

export interface SamplerStep {
  input: number; by_output: number; by_x: number; alpha: number; sigma: number; keep: number; mean: number; ahead: number;
}

export interface Level {
  channels: number; patch: number; nca_steps: number; cell_channels: number; hidden: number; fire_threshold: number;
  steps: SamplerStep[];
  tensors: Record<string, { offset: number; shape: number[] }>;
  weights: { file: string; bytes: number; sha256: string };
  check: { seed: string; y: number; x: number; side: number; evaluation: number; values: number[] };
}

export interface Manifest { format: number; title: string; sampling_steps: number; mpp: number | null; levels: Level[] }

/** What a worker is to compute: evaluation number `evaluation` of a region. input: x and the clean image before, of the
 * region and `reach` pixels around, which the first evaluation has no need of. */
export interface Job {
  id: number; seed: string; evaluation: number; y: number; x: number; height: number; width: number;
  input: Float32Array | null;
}

/** Planes of x and of the clean image (2 channels, height, width). */
export interface Done { kind: "done"; id: number; values: Float32Array }

export interface Start { kind: "start"; module: WebAssembly.Module; level: Level; weights: ArrayBuffer }

export type Answer = Done | { kind: "ready" } | { kind: "error"; text: string };
