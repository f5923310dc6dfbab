"""Draw the figures of docs/: `python docs/figures.py [NAME...]`, from the bundled model and built-in images.

The figure of sizes is drawn by `python docs/figures.py sizes=RUN`, RUN being a trained FourierDiff-NCA, that of zooms
by `zooms=CMU-1-Small-Region.svs`, OpenSlide's test slide, and that of maps by `maps=ZIP`, fields with their maps.
"""

from __future__ import annotations

import io
import json
import sys
import zipfile
from pathlib import Path

import matplotlib
import numpy as np
import skimage.data
import torch
from PIL import Image

from morphogen import Pipeline
from morphogen.automata.fourier_diff_nca import FourierNCAConfig
from morphogen.core.evaluation import Evaluation
from morphogen.core.images import sample_grid, save_film, to_pil
from morphogen.core.keys import Key
from morphogen.diffusion.known import Resampling

matplotlib.use("Agg")
from matplotlib import pyplot as plt

IMAGES = Path(__file__).parent / "images"
WINDOW = FourierNCAConfig().window
RESULTS = Path(__file__).parents[1] / "benchmarks" / "results"


def save(figure: plt.Figure, name: str) -> None:
    """Write a figure to docs/images."""
    figure.savefig(IMAGES / f"{name}.png", dpi=110, bbox_inches="tight")
    plt.close(figure)


def perceptive_range() -> None:
    """How far the predicted noise of one cell reads after some NCA steps: the gradient over the noisy image."""
    model = Pipeline.from_pretrained("tissue-texture").model
    counts, side = (1, 2, 4, 7, 10), 31
    figure, axes = plt.subplots(1, len(counts), figsize=(2.1 * len(counts), 2.4))
    for axis, count in zip(axes, counts, strict=True):
        total = torch.zeros(side, side)
        for seed in range(8):
            x = torch.randn(1, 3, side, side, generator=torch.Generator().manual_seed(seed), requires_grad=True)
            t = torch.tensor([model.diffusion.timesteps / 2])
            noise = model(x, t, Evaluation(Key.of([seed]), nca_steps=count)).noise
            noise[0, :, side // 2, side // 2].sum().backward()
            total += x.grad.abs().sum(dim=(0, 1))
        shown = torch.where(total > 0, total.log10(), torch.nan)
        axis.imshow(shown, cmap="magma", vmin=float(total.max().log10()) - 5, vmax=float(total.max().log10()))
        axis.set(title=f"{count} step{'s' if count > 1 else ''}", xticks=[], yticks=[], facecolor="0.92")
    save(figure, "perceptive-range")


def fourier_window() -> None:
    """What the 16x16 window of non-negative frequencies keeps of an image."""
    picture = Image.fromarray(skimage.data.astronaut()).crop((60, 0, 380, 320)).resize((64, 64), Image.Resampling.BOX)
    pixels = np.asarray(picture) / 255
    spectrum = np.fft.fftshift(np.fft.fft2(pixels, axes=(0, 1), norm="forward"), axes=(0, 1))
    kept = np.zeros_like(spectrum)
    centre = 32
    kept[centre : centre + WINDOW, centre : centre + WINDOW] = spectrum[centre:, centre:][:WINDOW, :WINDOW]
    seen = np.fft.ifft2(np.fft.ifftshift(kept, axes=(0, 1)), axes=(0, 1), norm="forward").real
    figure, axes = plt.subplots(1, 3, figsize=(8.4, 3))
    axes[0].imshow(pixels)
    axes[1].imshow(np.log10(np.abs(spectrum).mean(axis=2) + 1e-6), cmap="magma")
    axes[1].add_patch(plt.Rectangle((centre - 0.5, centre - 0.5), WINDOW, WINDOW, fill=False, edgecolor="cyan", lw=2))
    axes[2].imshow(np.clip(seen, 0, 1))
    titles = ("64x64 image", "its spectrum and the window", "what the window keeps")
    for axis, title in zip(axes, titles, strict=True):
        axis.set(title=title, xticks=[], yticks=[])
    save(figure, "fourier-window")


def denoising() -> None:
    """One image on its way from noise, and what the model takes it to become."""
    rows: list[list[Image.Image]] = [[], []]
    wanted = (1, 10, 20, 30, 40, 45, 50)

    def look(now) -> None:
        if now.step in wanted:
            for row, images in zip(rows, (now.images, now.clean), strict=True):
                row.append(to_pil(images)[0])

    Pipeline.from_pretrained("tissue-texture")(seeds=[3], height=96, width=96, num_inference_steps=50, callback=look)
    figure, axes = plt.subplots(2, len(wanted), figsize=(1.5 * len(wanted), 3.3))
    for axis, step in zip(axes[0], wanted, strict=True):
        axis.set_title(f"step {step}", fontsize=9)
    for row, label, pictures in zip(axes, ("the image", "where it is\ngoing"), rows, strict=True):
        for axis, picture in zip(row, pictures, strict=True):
            axis.imshow(picture)
            axis.set(xticks=[], yticks=[])
        row[0].set_ylabel(label, fontsize=9)
    save(figure, "denoising")


def recipes() -> None:
    """The held-out noise error of both recipes over training, from benchmarks/recipes.py."""
    results = json.loads((RESULTS / "recipes.json").read_text())
    figure, axis = plt.subplots(figsize=(6, 3.4))
    for name, run in results["runs"].items():
        axis.plot(run["step"], run["held_out_noise_error"], label=f"{name}", marker=".")
    axis.set(xlabel="step", ylabel="held-out noise error", yscale="log")
    axis.grid(alpha=0.3, which="both")
    axis.legend()
    save(figure, "recipes")


def costs() -> None:
    """Kernel distance against the processor time of an image, by sampler and steps, from benchmarks/costs.py."""
    shapes = {"dpm++": "o", "unipc": "D", "ddim": "s", "ddpm": "^"}
    figure, axes = plt.subplots(1, 2, figsize=(11, 4.4), layout="constrained")
    for axis, (name, title) in zip(axes, {"faces": "faces", "colon": "colon patches"}.items(), strict=True):
        results = json.loads((RESULTS / f"costs-{name}.json").read_text())
        for number, run in enumerate(dict.fromkeys(row["run"] for row in results["rows"])):
            for row in (row for row in results["rows"] if row["run"] == run):
                sampler, _, steps = row["setting"].partition(":")
                place, error = (row["seconds"], row["kernel_distance"][0]), row["kernel_distance"][1]
                axis.errorbar(*place, error, fmt=shapes[sampler], color=f"C{number}", markersize=5)
                axis.annotate(steps, place, (5, 2), textcoords="offset points", fontsize=7)
            axis.plot([], [], color=f"C{number}", linewidth=4, label=run)
        for sampler, shape in shapes.items():
            axis.plot([], [], shape, color="grey", markersize=5, label=sampler)
        axis.set(title=title, xlabel="processor seconds an image", ylabel="kernel distance", xscale="log", yscale="log")
        axis.grid(alpha=0.3, which="both")
        axis.legend(fontsize=7)
    save(figure, "costs")


def film_frame(images: torch.Tensor) -> Image.Image:
    """The first of the images, at one size whatever the level."""
    return sample_grid(to_pil(images[:1])).resize((258, 258), Image.Resampling.NEAREST)


def tissue() -> None:
    """The pictures of the README beside the zooms: sixteen samples and a film, of the bundled pyramid."""
    pipeline = Pipeline.from_pretrained("tissue")
    frames: list[Image.Image] = []
    samples = pipeline(
        seeds=range(16), height=128, width=128, callback=lambda now: frames.append(film_frame(now.images))
    ).images
    sample_grid(samples).save(IMAGES / "tissue-samples.webp", quality=85, method=6)
    save_film(IMAGES / "tissue-film.webp", frames)


ZOOMS = (8, 3, 1)


def zooms(slide: str) -> None:
    """The bundled pyramid `stained`, seed 0, and below it the slide it has learnt from, each at three zooms."""
    import openslide

    real = openslide.OpenSlide(slide)
    whole = real.read_region((0, 0), 0, real.dimensions).convert("RGB")
    (painted,) = Pipeline.from_pretrained("stained")(seeds=[0], height=whole.height, width=whole.width).images
    side, gap = (whole.width // ZOOMS[0], whole.height // ZOOMS[0]), 6
    sheet = Image.new("RGB", (3 * side[0] + 2 * gap, 2 * side[1] + gap), "white")
    for row, (picture, middle) in enumerate(((painted, (0.5, 0.5)), (whole, (0.55, 0.62)))):
        for column, zoom in enumerate(ZOOMS):
            width, height = side[0] * zoom, side[1] * zoom
            left, top = (
                min(max(0, round(share * full - part / 2)), full - part)
                for share, full, part in zip(middle, picture.size, (width, height), strict=True)
            )
            part = picture.crop((left, top, left + width, top + height)).resize(side, Image.Resampling.BOX)
            sheet.paste(part, (column * (side[0] + gap), row * (side[1] + gap)))
    sheet.save(IMAGES / "zooms.webp", quality=88, method=6)


CLASS_COLOURS = np.array([[240, 240, 240], [55, 90, 160], [230, 120, 60]], np.uint8)
HELD_OUT = ("0007", "0009", "0023")


def maps(archive: str) -> None:
    """Fields that the bundled `nuclei` has not seen: their maps, what it paints from these, and what was there."""
    pipeline, rows = Pipeline.from_pretrained("nuclei"), []
    with zipfile.ZipFile(archive) as files:
        for name in HELD_OUT:
            real = np.asarray(Image.open(io.BytesIO(files.read(f"images/{name}.png"))).convert("RGB"))
            values = np.asarray(Image.open(io.BytesIO(files.read(f"maps/{name}.png"))))
            (painted,) = pipeline.paint(values, seeds=[0]).images
            gap = np.full((len(real), 6, 3), 255, np.uint8)
            rows.append(np.concatenate([CLASS_COLOURS[values], gap, np.asarray(painted), gap, real], axis=1))
    sheet = np.concatenate([part for row in rows for part in (row, np.full((6, row.shape[1], 3), 255, np.uint8))][:-1])
    Image.fromarray(sheet).save(IMAGES / "maps.webp", quality=88, method=6)


def tissue_picture(side: int, downscale: int) -> Image.Image:
    """The upper left of the image that the bundled model was trained on, shrunk as in its training, or less."""
    whole = Image.fromarray(skimage.data.immunohistochemistry())
    small = whole.resize((whole.width // downscale, whole.height // downscale), Image.Resampling.BOX)
    return small.crop((0, 0, side, side))


def show(rows: list[list[tuple[str, Image.Image]]], name: str, side: float = 2.1) -> None:
    """Rows of pictures with titles, as a figure."""
    columns = max(len(row) for row in rows)
    figure, axes = plt.subplots(len(rows), columns, figsize=(side * columns, (side + 0.25) * len(rows)), squeeze=False)
    for axis in axes.flat:
        axis.axis("off")
    for row, pictures in zip(axes, rows, strict=True):
        for axis, (title, picture) in zip(row, pictures, strict=False):
            axis.imshow(picture, cmap="gray", interpolation="nearest")
            axis.set_title(title, fontsize=9)
    figure.tight_layout(pad=0.4)
    save(figure, name)


def inpainting() -> None:
    """Holes filled by the bundled model: by seed, and with other settings."""
    pipeline, picture = Pipeline.from_pretrained("tissue-texture"), tissue_picture(128, 4)
    mask = np.zeros((128, 128), bool)
    mask[40:80, 50:100] = True
    mask[8:24, 8:24] = mask[100:112, 16:44] = mask[100:120, 100:128] = True
    shown = np.asarray(picture).copy()
    shown[mask] = 255
    seeds = pipeline.inpaint(picture, mask, seeds=range(4)).images
    other = {
        "ddim, 50 steps": {"sampler": "ddim", "num_inference_steps": 50},
        "context 0": {"context": 0},
        "25 steps": {"num_inference_steps": 25},
        "resampled 4 times": {"resampling": Resampling(10, 4)},
    }
    first = [("the holes", Image.fromarray(shown)), *((f"seed {i}", image) for i, image in enumerate(seeds))]
    second = [("the original", picture)]
    second += [
        (name, pipeline.inpaint(picture, mask, seeds=[0], **options).images[0]) for name, options in other.items()
    ]
    show([first, second], "inpainting")


def upscaling() -> None:
    """Twice as large, beside what was there and what interpolation makes of it."""
    pipeline, small, true = Pipeline.from_pretrained("tissue-texture"), tissue_picture(64, 4), tissue_picture(128, 2)
    row = [("64x64", small), ("what was there", true)]
    row += [("bicubic", small.resize((128, 128), Image.Resampling.BICUBIC))]
    for title, options in {
        "noise 0.9, blend 0.02": {},
        "noise 0.3": {"noise": 0.3},
        "blend 0.2": {"blend": 0.2},
    }.items():
        row.append((title, pipeline.upscale(small, seeds=[0], **options).images[0]))
    show([row], "upscaling", 2.4)


def variations() -> None:
    """Strengths: of the picture that the bundled model knows, and of one that it does not."""
    pipeline = Pipeline.from_pretrained("tissue-texture")
    cat = Image.fromarray(skimage.data.chelsea()).crop((75, 0, 375, 300)).resize((96, 96), Image.Resampling.BOX)
    rows = []
    for picture in (tissue_picture(96, 4), cat):
        row = [("as it is", picture)]
        for strength in (0.2, 0.4, 0.6, 0.8, 1.0):
            row.append((f"strength {strength:g}", pipeline.vary(picture, strength, seeds=[0]).images[0]))
        rows.append(row)
    show(rows, "variations", 1.8)


def sizes(run: str) -> None:
    """One seed at several sizes, in proportion, of a trained FourierDiff-NCA and of the bundled Diff-NCA."""
    places = {(64, 64): (0, 0), (96, 96): (136, 0), (78, 64): (336, 0), (48, 160): (0, 200), (512, 512): (560, 0)}
    sheet = Image.new("RGB", (560 + 512, 2 * 520), "white")
    for k, reference in enumerate((run, "tissue-texture")):
        pipeline = Pipeline.from_pretrained(reference)
        for (height, width), (left, top) in places.items():
            (picture,) = pipeline(seeds=[1], height=height, width=width, sampler="dpm++").images
            if height < 512:
                picture = picture.resize((2 * width, 2 * height), Image.Resampling.NEAREST)
            sheet.paste(picture, (left, k * 520 + top))
    sheet.save(IMAGES / "sizes.webp", quality=80, method=6)


FIGURES = {
    "tissue": tissue,
    "inpainting": inpainting,
    "upscaling": upscaling,
    "variations": variations,
    "perceptive-range": perceptive_range,
    "fourier-window": fourier_window,
    "denoising": denoising,
    "recipes": recipes,
    "costs": costs,
}

if __name__ == "__main__":
    IMAGES.mkdir(exist_ok=True)
    for name in sys.argv[1:] or FIGURES:
        if name.startswith("sizes="):  # sizes=RUN: a trained FourierDiff-NCA
            sizes(name.removeprefix("sizes="))
        elif name.startswith("maps="):  # maps=ZIP: the stained fields of the 2018 Data Science Bowl with their maps
            maps(name.removeprefix("maps="))
        elif name.startswith("zooms="):  # zooms=SLIDE: CMU-1-Small-Region.svs
            zooms(name.removeprefix("zooms="))
        else:
            FIGURES[name]()
