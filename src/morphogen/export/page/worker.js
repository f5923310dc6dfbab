// Loads the model, checks it, and paints what the page asks for: {seed, height, width}.

import { Model } from "./engine.js";

const ready = load();
ready.then(
  (manifest) => postMessage({ kind: "ready", title: manifest.title, steps: manifest.sampling_steps, patch: manifest.levels[0].patch }),
  (error) => postMessage({ kind: "error", text: error.message }),
);
let model;

async function load() {
  const get = async (name) => {
    const answer = await fetch(new URL(name, import.meta.url));
    if (!answer.ok) throw new Error(`${name} is not there (${answer.status}); export the folder again`);
    return answer;
  };
  const manifest = await (await get("manifest.json")).json();
  if (manifest.format !== 1) throw new Error("manifest.json is of another version; export the folder again");
  const level = manifest.levels[0], content = await (await get(level.weights.file)).arrayBuffer();
  let right = content.byteLength === level.weights.bytes;
  if (right && crypto.subtle) { // browsers have it on https and localhost only
    const digest = new Uint8Array(await crypto.subtle.digest("SHA-256", content));
    right = [...digest].map((byte) => byte.toString(16).padStart(2, "0")).join("") === level.weights.sha256;
  }
  if (!right) throw new Error("weights.bin is not the exported file; export the folder again");
  model = new Model(level, content);
  const difference = model.checkDifference();
  if (!(difference < 2e-3)) throw new Error(`this browser computes other numbers than the model's (by ${difference})`);
  return manifest;
}

onmessage = async ({ data: { seed, height, width } }) => {
  await ready;
  const began = performance.now(), { channels } = model.level, steps = model.level.steps.length;
  let done = 0;
  for (const image of model.paint(BigInt(seed), height, width)) {
    const cells = height * width, pixels = new Uint8ClampedArray(4 * cells).fill(255);
    for (let cell = 0; cell < cells; cell++)
      for (let channel = 0; channel < Math.max(3, channels); channel++)
        pixels[4 * cell + channel] = (image[(channels === 1 ? 0 : channel * cells) + cell] + 1) * 127.5;
    done += 1;
    postMessage({ kind: "picture", pixels, height, width, done, steps, seconds: (performance.now() - began) / 1000 }, [pixels.buffer]);
  }
};
