// The form, the picture and its address.

const $ = (id) => document.getElementById(id);
const form = $("form"), canvas = $("picture"), status = $("status");
let worker, patch = 1, painting = false;

function start() {
  worker = new Worker(new URL("worker.js", import.meta.url), { type: "module" });
  worker.onmessage = ({ data }) => {
    if (data.kind === "error") { fail(data.text); return; }
    if (data.kind === "ready") {
      patch = data.patch;
      document.title = $("title").textContent = data.title;
      for (const id of ["height", "width"]) $(id).step = $(id).min = String(patch * Math.ceil(16 / patch));
      return;
    }
    canvas.height = data.height;
    canvas.width = data.width;
    canvas.getContext("2d").putImageData(new ImageData(data.pixels, data.width, data.height), 0, 0);
    canvas.dataset.done = String(data.done === data.steps);
    $("progress").max = data.steps;
    $("progress").value = data.done;
    if (data.done < data.steps) return;
    stop(`Done in ${data.seconds.toFixed(1)} s.`);
  };
  worker.onerror = () => fail("the painter did not start; this page needs a browser with module workers");
}

function fail(text) { stop(`Cannot paint: ${text}.`); }

function stop(text) {
  painting = false;
  status.textContent = text;
  $("paint").textContent = "Paint";
  $("save").disabled = canvas.dataset.done !== "true";
}

function paint() {
  const seed = $("seed").value, height = Number($("height").value), width = Number($("width").value);
  if (!/^\d{1,20}$/.test(seed) || BigInt(seed) >= 1n << 64n) { fail("the seed should be an integer from 0 to 2^64 - 1"); return; }
  history.replaceState(null, "", `#seed=${seed}&height=${height}&width=${width}`);
  painting = true;
  canvas.dataset.done = "false";
  $("save").disabled = true;
  $("progress").value = 0;
  $("paint").textContent = "Stop";
  status.textContent = "Painting…";
  worker.postMessage({ seed, height, width });
}

form.addEventListener("submit", (event) => {
  event.preventDefault();
  if (!painting) { paint(); return; }
  worker.terminate();
  start();
  stop("Stopped.");
});
$("dice").addEventListener("click", () => {
  $("seed").value = String(crypto.getRandomValues(new Uint32Array(1))[0]);
});
$("save").addEventListener("click", () => {
  canvas.toBlob((blob) => {
    const link = document.createElement("a");
    link.href = URL.createObjectURL(blob);
    link.download = `${document.title}-${$("seed").value}.png`;
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 1000);
  });
});

for (const [name, value] of new URLSearchParams(location.hash.slice(1)))
  if (["seed", "height", "width"].includes(name) && /^\d{1,20}$/.test(value)) $(name).value = value;
start();
status.textContent = "";
$("paint").disabled = false;
if (form.reportValidity()) paint();
