// A worker: the kernel of a model, checked once, and then what the page asks for.

import { Kernel } from "./kernel";
import type { Answer, Job, Start } from "./manifest";

let kernel: Kernel | undefined;
const answer = (message: Answer, transfer: Transferable[] = []): void => self.postMessage(message, { transfer });

self.onmessage = ({ data }: MessageEvent<Start | Job>) => {
  try {
    if ("module" in data) {
      kernel = new Kernel(data.module, data.level, data.weights);
      const difference = kernel.checkDifference();
      if (!(difference < 2e-3)) throw new Error(`this browser computes other numbers than the model's (by ${difference})`);
      answer({ kind: "ready" });
      return;
    }
    if (kernel === undefined) return;
    const { id, seed, evaluation, y, x, height, width, input } = data;
    const values = kernel.evaluate(evaluation, BigInt(seed), y, x, height, width, input);
    answer({ kind: "done", id, values }, [values.buffer]);
  } catch (error) {
    answer({ kind: "error", text: error instanceof Error ? error.message : String(error) });
  }
};
