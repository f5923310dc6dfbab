// Builds the page of `morphogen export --to web` into src/morphogen/export/page, and writes
// built.json: the hashes of what it is made of and of what came out.
import { createHash } from "node:crypto";
import { copyFileSync, mkdirSync, readFileSync, readdirSync, writeFileSync } from "node:fs";
import { dirname, join } from "node:path";
import { fileURLToPath } from "node:url";
import asc from "assemblyscript/asc";
import { build } from "esbuild";

const here = dirname(fileURLToPath(import.meta.url));
const out = process.argv[2] ?? join(here, "..", "src", "morphogen", "export", "page");
process.chdir(here);
mkdirSync(out, { recursive: true });

for (const [name, features] of [["rule.wasm", ["simd"]], ["rule-relaxed.wasm", ["simd", "relaxed-simd"]]]) {
  const flags = features.flatMap((feature) => ["--enable", feature]);
  const { error, stderr } = await asc.main([
    "assembly/rule.ts", "--outFile", join(out, name), "-O3", "--noAssert", "--runtime", "stub", ...flags,
  ]);
  if (error) throw new Error(stderr.toString());
}
await build({
  absWorkingDir: here, entryPoints: ["src/page.ts", "src/worker.ts"], outdir: out, bundle: true, format: "esm", target: "es2022",
  minify: true, charset: "utf8", legalComments: "none",
});
for (const name of readdirSync("static")) copyFileSync(join("static", name), join(out, name));

// `tests/export/test_built_page.py` computes the same.
const digest = (folder, names) => {
  const hash = createHash("sha256");
  for (const name of [...names].sort()) hash.update(name + "\0").update(readFileSync(join(folder, name))).update("\0");
  return hash.digest("hex");
};
const sources = ["package.json", "package-lock.json", "tsconfig.json", "build.mjs"];
for (const folder of ["assembly", "src", "static"])
  for (const name of readdirSync(folder)) sources.push(`${folder}/${name}`);
const said = { sources: digest(here, sources), built: digest(out, readdirSync(out)) };
if (process.argv[2] === undefined) writeFileSync("built.json", JSON.stringify(said, null, 1) + "\n");
