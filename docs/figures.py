"""Draw the figures of docs/: `python docs/figures.py [NAME...]`, from the bundled model and built-in images."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import matplotlib
import numpy as np
import skimage.data
import torch
from PIL import Image

from morphogen import Pipeline
from morphogen.automata.fourier_diff_nca import WINDOW
from morphogen.core.images import grid, save_film, save_png, to_pil
from morphogen.core.keys import Key

matplotlib.use("Agg")
from matplotlib import pyplot as plt

IMAGES = Path(__file__).parent / "images"
RESULTS = Path(__file__).parents[1] / "benchmarks" / "results"


def save(figure: plt.Figure, name: str) -> None:
    """Write a figure to docs/images."""
    figure.savefig(IMAGES / f"{name}.png", dpi=110, bbox_inches="tight")
    plt.close(figure)


def perceptive_range() -> None:
    """How far the predicted noise of one cell reads after some NCA steps: the gradient over the noisy image."""
    model = Pipeline.from_pretrained("tissue").model
    counts, side = (1, 2, 4, 7, 10), 31
    figure, axes = plt.subplots(1, len(counts), figsize=(2.1 * len(counts), 2.4))
    for axis, count in zip(axes, counts, strict=True):
        total = torch.zeros(side, side)
        for seed in range(8):
            x = torch.randn(1, 3, side, side, generator=torch.Generator().manual_seed(seed), requires_grad=True)
            t = torch.tensor([model.diffusion.timesteps / 2])
            noise = model(x, t, key=Key.of([seed]), nca_steps=count).noise
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

    Pipeline.from_pretrained("tissue")(seeds=[3], height=96, width=96, num_inference_steps=50, callback=look)
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


def film_frame(images: torch.Tensor) -> Image.Image:
    """Four of the images, twice as large."""
    frame = grid(to_pil(images[:4]))
    return frame.resize((2 * frame.width, 2 * frame.height), Image.Resampling.NEAREST)


def tissue() -> None:
    """The pictures of the README: a large one, sixteen samples, a film; all of the bundled model."""
    pipeline = Pipeline.from_pretrained("tissue")
    (large,) = pipeline(seeds=[7], height=256, width=640, sampler="dpm++").images
    save_png(IMAGES / "tissue-large.png", large, {"model": "tissue", "seed": 7})
    frames: list[Image.Image] = []
    samples = pipeline(
        seeds=range(16),
        height=64,
        width=64,
        sampler="dpm++",
        callback=lambda now: frames.append(film_frame(now.images)),
    ).images
    save_png(IMAGES / "tissue-samples.png", grid(samples), {"model": "tissue", "seeds": list(range(16))})
    save_film(IMAGES / "tissue-film.webp", frames)


FIGURES = {
    "tissue": tissue,
    "perceptive-range": perceptive_range,
    "fourier-window": fourier_window,
    "denoising": denoising,
    "recipes": recipes,
}

if __name__ == "__main__":
    IMAGES.mkdir(exist_ok=True)
    for name in sys.argv[1:] or FIGURES:
        FIGURES[name]()
