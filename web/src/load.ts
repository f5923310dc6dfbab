// What the page needs, fetched once and checked: nothing is asked for afterwards.

import type { Manifest } from "./manifest";

export interface Loaded { manifest: Manifest; weights: ArrayBuffer; module: WebAssembly.Module; relaxed: boolean }

async function get(name: string): Promise<Response> {
  const answer = await fetch(new URL(name, import.meta.url));
  if (!answer.ok) throw new Error(`${name} is not there (${answer.status}); export the folder again`);
  return answer;
}

export async function load(): Promise<Loaded> {
  if (typeof WebAssembly !== "object") throw new Error("this browser has no WebAssembly, or it is switched off");
  const manifest = (await (await get("manifest.json")).json()) as Manifest;
  if (manifest.format !== 1) throw new Error("manifest.json is of another version; export the folder again");
  const { weights: said } = manifest.levels[0];
  const weights = await (await get(said.file)).arrayBuffer();
  let right = weights.byteLength === said.bytes;
  if (right && isSecureContext) { // elsewhere browsers do not compute hashes
    const digest = new Uint8Array(await crypto.subtle.digest("SHA-256", weights));
    right = Array.from(digest, (byte) => byte.toString(16).padStart(2, "0")).join("") === said.sha256;
  }
  if (!right) throw new Error("weights.bin is not the exported file; export the folder again");
  for (const name of ["rule-relaxed.wasm", "rule.wasm"]) {
    const code = await (await get(name)).arrayBuffer();
    if (WebAssembly.validate(code))
      return { manifest, weights, module: await WebAssembly.compile(code), relaxed: name === "rule-relaxed.wasm" };
  }
  throw new Error("this browser has no WebAssembly SIMD; a newer one has (Chrome 91, Firefox 89, Safari 16.4)");
}
