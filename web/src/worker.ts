// A worker: the kernels of a model's levels, checked once, and then what the page asks for.

import { Kernel } from "./kernel";
import type { Answer, Job, Start } from "./manifest";

let kernels: Kernel[] = [];
const answer = (message: Answer, transfer: Transferable[] = []): void => self.postMessage(message, { transfer });

self.onmessage = ({ data }: MessageEvent<Start | Job>) => {
  try {
    if ("module" in data) {
      kernels = data.levels.map((level) => new Kernel(data.module, level, data.weights));
      for (const kernel of kernels) {
        const difference = kernel.checkDifference();
        if (!(difference < 2e-3)) throw new Error(`this browser computes other numbers than the model's (by ${difference})`);
      }
      answer({ kind: "ready" });
      return;
    }
    const { id, level, seed, evaluation, y, x, height, width, input, told } = data;
    const values = kernels[level].evaluate(evaluation, BigInt(seed), y, x, height, width, input, told);
    answer({ kind: "done", id, values }, [values.buffer]);
  } catch (error) {
    answer({ kind: "error", text: error instanceof Error ? error.message : String(error) });
  }
};
