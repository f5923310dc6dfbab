// The brush: strokes are drawn here, computed by the server, and shown upon the tiles until these hold them.

const COLOURS = ["#d7263d", "#1b998b", "#2e6fd1", "#f4a300", "#8f3fb5", "#5a8f29", "#d1578b", "#3a3a8f", "#8f6a3a"];
const shownBy = (id) => document.getElementById(id);

export function startBrush(viewer, view, tell) {
  const middle = view.width / 2;
  const pad = shownBy("pad");
  const ink = pad.getContext("2d");
  const tools = [
    ...view.classes.map((name, k) => ({ name, label: name, colour: COLOURS[k % COLOURS.length], what: "class" })),
    ...(view.classes.length ? [{ name: null, label: "nothing told", colour: "#888888", what: "class" }] : []),
    { name: null, label: "another picture", colour: "#000000", what: "seed" },
  ];
  let chosen = 0;
  let painting = false;
  let points = [];
  let cursor = null; // of the keyboard, in pixels of the picture
  let waiting = 0;
  const overlays = [];

  tools.forEach((tool, k) => {
    const label = document.createElement("label");
    const input = document.createElement("input");
    const swatch = document.createElement("span");
    Object.assign(input, { type: "radio", name: "tool", value: String(k), checked: k === 0 });
    input.onchange = () => { chosen = k; paint(true); };
    swatch.className = "swatch";
    swatch.style.background = tool.colour;
    label.append(input, swatch, `${tool.label}${k < 9 ? ` (${k + 1})` : ""}`);
    shownBy("tools").append(label);
  });
  shownBy("brush").hidden = false;

  const radius = () => Number(shownBy("size").value) / 2;
  const zoom = () => viewer.viewport.viewportToImageZoom(viewer.viewport.getZoom(true));
  function toPicture(x, y) { // from the pad's pixels to the picture's, from the middle
    const place = viewer.viewport.viewerElementToImageCoordinates(new OpenSeadragon.Point(x, y));
    return [place.x - middle, place.y - middle];
  }
  function toPad([x, y]) {
    return viewer.viewport.imageToViewerElementCoordinates(new OpenSeadragon.Point(x + middle, y + middle));
  }
  function say(text) { shownBy("said").textContent = text; }

  function paint(on) {
    painting = on;
    viewer.setMouseNavEnabled(!on);
    pad.style.pointerEvents = on ? "auto" : "none";
    shownBy("paint").setAttribute("aria-pressed", String(on));
    shownBy("brush").classList.toggle("open", on);
    if (!on) cursor = null;
    redraw();
  }
  function redraw() {
    const box = pad.parentElement.getBoundingClientRect();
    const ratio = window.devicePixelRatio || 1;
    if (pad.width !== Math.round(box.width * ratio) || pad.height !== Math.round(box.height * ratio)) {
      pad.width = Math.round(box.width * ratio);
      pad.height = Math.round(box.height * ratio);
    }
    ink.setTransform(ratio, 0, 0, ratio, 0, 0);
    ink.clearRect(0, 0, box.width, box.height);
    const tool = tools[chosen];
    if (points.length) stroke(points, tool.colour);
    if (cursor) {
      const at = toPad(cursor);
      ink.globalAlpha = 1;
      ink.lineWidth = 2;
      ink.strokeStyle = tool.colour;
      ink.beginPath();
      ink.arc(at.x, at.y, Math.max(3, radius() * zoom()), 0, 2 * Math.PI);
      ink.stroke();
    }
  }
  function stroke(places, colour) {
    const line = places.map(toPad);
    ink.globalAlpha = 0.55;
    ink.lineCap = ink.lineJoin = "round";
    ink.lineWidth = 2 * radius() * zoom();
    ink.strokeStyle = colour;
    ink.beginPath();
    ink.moveTo(line[0].x, line[0].y);
    line.concat(line.length === 1 ? [{ x: line[0].x + 0.01, y: line[0].y }] : []).forEach((p) => ink.lineTo(p.x, p.y));
    ink.stroke();
  }

  function put(found, key) { // a part of the picture upon the tiles
    let image = key && overlays.find((one) => one.key === key)?.image;
    const place = viewer.viewport.imageToViewportRectangle(found.x + middle, found.y + middle, found.width, found.height);
    if (!image) {
      image = document.createElement("img");
      image.alt = "";
      image.className = "painted";
      overlays.push({ image, key });
      viewer.addOverlay({ element: image, location: place });
    }
    image.src = found.picture;
  }
  function lift(upTo) { // once the tiles show it themselves
    const item = viewer.world.getItemAt(0);
    const gone = overlays.slice(0, upTo);
    const check = () => {
      if (!item.getFullyLoaded()) return setTimeout(check, 150);
      gone.forEach((one) => { viewer.removeOverlay(one.image); overlays.splice(overlays.indexOf(one), 1); });
    };
    setTimeout(check, 300);
  }

  async function ask(path, body) {
    const answer = await fetch(path, {
      method: "POST",
      headers: { "content-type": "application/json" },
      body: body === undefined ? "{}" : JSON.stringify(body),
    });
    if (!answer.ok) throw new Error(await answer.text());
    return answer.json();
  }
  function settle(now) {
    shownBy("undo").disabled = !now.strokes;
    shownBy("redo").disabled = !now.undone;
    document.body.dataset.strokes = now.strokes;
  }
  function busy(change) {
    waiting += change;
    document.body.dataset.painting = waiting;
    if (waiting) say("painting …");
  }

  async function finish() { // the stroke that was drawn goes to the server
    const tool = tools[chosen];
    const edit = { what: tool.what, name: tool.name, points, radius: radius() };
    if (tool.what === "seed") edit.seed = Math.floor(Math.random() * 2 ** 32);
    points = [];
    const key = Symbol("stroke");
    busy(1);
    try {
      const begun = performance.now();
      const preview = ask("preview", edit).then((found) => {
        document.body.dataset.preview = Math.round(performance.now() - begun);
        if (!overlays.some((one) => one.key === key)) put(found, key);
        redraw();
      }, () => undefined); // the stroke itself says what is wrong
      await preview;
      const now = await ask("strokes", edit);
      document.body.dataset.took = Math.round(performance.now() - begun);
      put(now, key);
      settle(now);
      viewer.world.resetItems();
      lift(overlays.length);
      say("");
    } catch (error) {
      say(error.message);
      overlays.filter((one) => one.key === key).forEach((one) => {
        viewer.removeOverlay(one.image);
        overlays.splice(overlays.indexOf(one), 1);
      });
    } finally {
      busy(-1);
      redraw();
    }
  }
  async function step(path) {
    busy(1);
    try {
      const now = await ask(path);
      settle(now);
      if (now.picture) put(now);
      viewer.world.resetItems();
      lift(overlays.length);
      say("");
    } catch (error) {
      say(error.message);
    } finally {
      busy(-1);
    }
  }
  function save(name) {
    const bounds = viewer.viewport.viewportToImageRectangle(viewer.viewport.getBounds(true));
    const size = (n) => Math.max(1, Math.min(2048, Math.round(n)));
    const [x, y] = [Math.round(bounds.x - middle), Math.round(bounds.y - middle)];
    const link = document.createElement("a");
    link.href = `${name}?x=${x}&y=${y}&width=${size(bounds.width)}&height=${size(bounds.height)}`;
    link.download = name;
    link.click();
  }

  pad.onpointerdown = (event) => {
    if (!painting || event.button > 0 || !event.isPrimary) return;
    pad.setPointerCapture(event.pointerId);
    cursor = null;
    points = [toPicture(event.offsetX, event.offsetY)];
    redraw();
  };
  pad.onpointermove = (event) => {
    if (!points.length || !event.isPrimary) return;
    const next = toPicture(event.offsetX, event.offsetY);
    const last = points[points.length - 1];
    if (Math.hypot(next[0] - last[0], next[1] - last[1]) < Math.max(0.5, radius() / 4)) return;
    if (points.length < 4000) points.push(next);
    redraw();
  };
  pad.onpointerup = () => { if (points.length) finish(); };
  pad.onpointercancel = () => { points = []; redraw(); };

  document.addEventListener("keydown", (event) => {
    const key = event.key.toLowerCase();
    if ((event.ctrlKey || event.metaKey) && key === "z") {
      event.preventDefault();
      step(event.shiftKey ? "redo" : "undo");
      return;
    }
    if (event.ctrlKey || event.metaKey || event.altKey || event.target.matches("input[type=range]")) return;
    if (key === "b") return paint(!painting);
    if (key === "[" || key === "]") {
      shownBy("size").value = String(Number(shownBy("size").value) * (key === "]" ? 1.25 : 0.8));
      return redraw();
    }
    const number = Number(key) - 1;
    if (painting && number >= 0 && number < tools.length) {
      chosen = number;
      document.querySelectorAll("input[name=tool]")[number].checked = true;
      return redraw();
    }
    const move = { arrowleft: [-1, 0], arrowright: [1, 0], arrowup: [0, -1], arrowdown: [0, 1] }[key];
    if (painting && move) {
      event.preventDefault();
      event.stopImmediatePropagation();
      const far = (event.shiftKey ? 40 : 8) / zoom();
      cursor ??= toPicture(pad.clientWidth / 2, pad.clientHeight / 2);
      cursor = [cursor[0] + move[0] * far, cursor[1] + move[1] * far];
      say(`x ${Math.round(cursor[0])}, y ${Math.round(cursor[1])}; Enter paints here`);
      redraw();
    } else if (painting && key === "enter" && !event.target.matches("button")) {
      event.preventDefault();
      cursor ??= toPicture(pad.clientWidth / 2, pad.clientHeight / 2);
      points = [cursor];
      finish();
    }
  }, true);

  shownBy("paint").onclick = () => paint(!painting);
  shownBy("undo").onclick = () => step("undo");
  shownBy("redo").onclick = () => step("redo");
  shownBy("size").oninput = redraw;
  for (const kind of ["png", "json", "geojson"]) shownBy(`save-${kind}`).onclick = () => save(`painting.${kind}`);
  viewer.addHandler("animation", redraw);
  viewer.addHandler("resize", redraw);
  fetch("strokes").then((answer) => answer.json()).then(settle);
  window.morphogen.paint = paint;
  tell();
}
