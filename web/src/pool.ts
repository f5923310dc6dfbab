// Workers that share out jobs.

import type { Answer, Job, Level } from "./manifest";

type Task = Omit<Job, "id">;
interface Waiting { make: () => Task; resolve: (values: Float32Array | null) => void; wanted: () => boolean }

export class Pool {
  private readonly idle: Worker[] = [];
  private readonly queue: Waiting[] = [];
  private readonly running = new Map<number, { worker: Worker; waiting: Waiting }>();
  private next = 0;

  private constructor(readonly size: number, private readonly failed: (text: string) => void) {}

  /** Start workers with a model; `failed` is told what goes wrong later. */
  static async start(
    size: number, module: WebAssembly.Module, level: Level, weights: ArrayBuffer, failed: (text: string) => void,
  ): Promise<Pool> {
    const pool = new Pool(size, failed);
    const one = (): Promise<void> => new Promise((resolve, reject) => {
      const worker = new Worker(new URL("worker.js", import.meta.url), { type: "module" });
      worker.onerror = () => reject(new Error("a worker did not start; this page needs a browser with module workers"));
      worker.onmessage = ({ data }: MessageEvent<Answer>) => {
        if (data.kind === "error") { reject(new Error(data.text)); failed(data.text); return; }
        if (data.kind === "done") pool.finish(data.id, data.values);
        else { pool.idle.push(worker); resolve(); pool.begin(); }
      };
      worker.postMessage({ kind: "start", module, level, weights });
    });
    await Promise.all(Array.from({ length: size }, one));
    return pool;
  }

  /** The result of a task, which is made when a worker has time; null where it is no longer wanted by then. */
  run(make: () => Task, wanted: () => boolean): Promise<Float32Array | null> {
    return new Promise((resolve) => {
      this.queue.push({ make, resolve, wanted });
      this.begin();
    });
  }

  private begin(): void {
    while (this.queue.length > 0 && this.idle.length > 0) {
      const waiting = this.queue.shift() as Waiting;
      if (!waiting.wanted()) { waiting.resolve(null); continue; }
      const worker = this.idle.pop() as Worker, id = this.next++, task = waiting.make();
      this.running.set(id, { worker, waiting });
      worker.postMessage({ ...task, id }, task.input === null ? [] : [task.input.buffer]);
    }
  }

  private finish(id: number, values: Float32Array): void {
    const found = this.running.get(id);
    if (found === undefined) { this.failed("a worker answered twice"); return; }
    this.running.delete(id);
    this.idle.push(found.worker);
    found.waiting.resolve(values);
    this.begin();
  }
}
