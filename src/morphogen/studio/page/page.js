import { startBrush } from "./brush.js";

const shown = (id) => document.getElementById(id);

async function start() {
  const answer = await fetch("view.json");
  if (!answer.ok) throw new Error(`the server answered ${answer.status}`);
  const view = await answer.json();
  document.title = `${view.title} · Morphogen`;
  shown("title").textContent = view.title;
  shown("facts").textContent = view.endless
    ? `endless, seed ${view.seed}, ${view.sampler}, ${view.sampling_steps} steps; computed where you look, `
      + `zoomed out up to ${Math.round(1 / view.scales[view.computed - 1])} times`
    : `${view.width} × ${view.height} pixels`;

  const highest = view.scales.length - 1; // OpenSeadragon counts levels from the coarsest
  const failed = new Set();
  const viewer = OpenSeadragon({
    element: shown("view"),
    tileSources: {
      width: view.width,
      height: view.height,
      tileSize: view.tile,
      minLevel: 0,
      maxLevel: highest,
      getLevelScale: (level) => view.scales[highest - level],
      getTileUrl: (level, x, y) => `tiles/${highest - level}/${x}/${y}.png`,
    },
    drawer: "canvas", // WebGL's numbers are too short for places on so large a canvas
    crossOriginPolicy: false,
    showNavigationControl: false,
    loadTilesWithAjax: true, // so that what has gone out of sight is given up
    immediateRender: true, // begin with the level in question, not with coarser ones, which take longer
    imageLoaderLimit: 6,
    tileRetryMax: 8,
    tileRetryDelay: 2000,
    timeout: 3600000, // the server has its own deadline
    maxImageCacheCount: 3000,
    maxZoomPixelRatio: 8,
    minPixelRatio: 1,
    animationTime: 0.6,
    gestureSettingsMouse: { clickToZoom: false, dblClickToZoom: true },
  });
  const ratio = window.devicePixelRatio || 1;
  const zoomOf = (pixelsPerPixel) => viewer.viewport.imageToViewportZoom(pixelsPerPixel / ratio);

  function home(immediately) {
    if (!view.endless) return viewer.viewport.goHome(immediately);
    look(0, 0, 1, immediately);
  }
  function look(x, y, zoom, immediately) {
    const { viewport } = viewer;
    const middle = view.endless ? view.width / 2 : 0;
    viewport.panTo(viewport.imageToViewportCoordinates(middle + x, middle + y), immediately);
    viewport.zoomTo(zoomOf(zoom), undefined, immediately);
  }
  function where() {
    const centre = viewer.viewport.viewportToImageCoordinates(viewer.viewport.getCenter(true));
    const middle = view.endless ? view.width / 2 : 0;
    const zoom = viewer.viewport.viewportToImageZoom(viewer.viewport.getZoom(true)) * ratio;
    return { x: Math.round(centre.x - middle), y: Math.round(centre.y - middle), zoom };
  }
  function tell() {
    const { x, y, zoom } = where();
    const far = view.endless && view.computed < view.scales.length && zoom < 0.71 * view.scales[view.computed - 1];
    measure(zoom / ratio);
    shown("place").textContent = `x ${x}, y ${y}, ${zoom >= 1 ? "" : "1/"}${+(zoom >= 1 ? zoom : 1 / zoom).toFixed(1)}×`
      + (far ? ": too far out to compute, zoom in" : "");
  }
  function measure(screenPixelsPerPixel) { // the longest of 1, 2 and 5 times a power of ten that fits into 120 pixels
    if (!view.mpp) return;
    const most = 120 * view.mpp / screenPixelsPerPixel; // micrometres
    const power = 10 ** Math.floor(Math.log10(most));
    const length = [5, 2, 1].map((n) => n * power).find((n) => n <= most * 1.0000001);
    shown("bar").style.width = `${length / view.mpp * screenPixelsPerPixel}px`;
    const [value, unit] = length >= 1000 ? [length / 1000, "mm"] : length >= 1 ? [length, "µm"] : [length * 1000, "nm"];
    shown("length").textContent = `${+value.toPrecision(3)} ${unit}`;
    shown("scale").hidden = false;
  }
  function work() {
    const waiting = viewer.imageLoader.jobsInProgress + viewer.imageLoader.jobQueue.length;
    shown("work").textContent = waiting ? "computing …" : failed.size ? `${failed.size} tiles failed; move to try again` : "";
    document.body.dataset.waiting = waiting;
  }

  window.morphogen = { viewer, look };

  viewer.addHandler("open", () => {
    if (view.endless && !window.morphogen.paint) startBrush(viewer, view, tell);
    if (view.endless) viewer.viewport.minZoomLevel = zoomOf(view.scales[highest]);
    const place = new URLSearchParams(location.hash.slice(1));
    const [x, y, zoom] = ["x", "y", "zoom"].map((name) => Number(place.get(name) ?? NaN));
    if ([x, y, zoom].every(Number.isFinite) && zoom > 0) look(x, y, zoom, true);
    else home(true);
    tell();
    document.body.dataset.open = "yes";
  });
  viewer.addHandler("animation", tell);
  viewer.addHandler("animation-finish", () => {
    const { x, y, zoom } = where();
    history.replaceState(null, "", `#x=${x}&y=${y}&zoom=${+zoom.toPrecision(4)}`);
    tell();
  });
  viewer.addHandler("tile-loaded", ({ tile }) => failed.delete(tile.cacheKey));
  viewer.addHandler("tile-load-failed", ({ tile }) => failed.add(tile.cacheKey));
  setInterval(work, 250);

  shown("in").onclick = () => viewer.viewport.zoomBy(2);
  shown("out").onclick = () => viewer.viewport.zoomBy(0.5);
  shown("home").onclick = () => home(false);
}

start().catch((error) => { shown("work").textContent = `The slide cannot be shown: ${error.message}`; });
