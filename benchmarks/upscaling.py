"""Does painted detail beat interpolation? `python benchmarks/upscaling.py RUN DATA --factor 2 --name faces`.

Held-out images are shrunk, enlarged again and compared with what they were, in PSNR and SSIM (higher is better) and,
with `--vgg FILE` (VGG-16's convolutions under torchvision's names, safetensors) and the `lpips` package, in LPIPS, and
with `--network FILE` (an ONNX feature network of (N, 3, 299, 299) in [0, 1]) in the Fréchet distance of their quarters
to those of the originals, beside the floor, other real images (lower is better). `off` is how many grey levels the
result, shrunk by area, is from the given picture on average. `--images-of FILE` takes crops of one large image instead
of DATA's held-out part. Two ways to shrink: `area` averages squares of pixels, as a camera or an editor does; `sample`
keeps one pixel of each square, which is what the published scheme takes the given pixels for. Interpolation is centred
on where the pixels then lie. Interrupted, it begins again.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

import numpy as np
import torch
import yaml
from PIL import Image
from recipes import features
from skimage.metrics import peak_signal_noise_ratio, structural_similarity

from morphogen import Pipeline
from morphogen.data.config import DataConfig
from morphogen.data.dataset import build_dataset
from morphogen.metrics.distances import frechet_distance

RESULTS = Path(__file__).parent / "results"
WAYS = {"nearest": Image.Resampling.NEAREST, "bicubic": Image.Resampling.BICUBIC, "lanczos": Image.Resampling.LANCZOS}


def shrink(image: np.ndarray, factor: int, how: str) -> np.ndarray:
    """An image (H, W, 3) of 1 / factor the size."""
    if how == "sample":
        return image[::factor, ::factor]
    height, width = (n // factor for n in image.shape[:2])
    return np.asarray(Image.fromarray(image).resize((width, height), Image.Resampling.BOX))


def interpolate(small: np.ndarray, factor: int, way: Image.Resampling, how: str) -> np.ndarray:
    """An image enlarged by Pillow. Of sampled pixels, each lies at the corner of its square and not in the middle."""
    padded = np.pad(small, ((8, 8), (8, 8), (0, 0)), mode="edge")  # so that shifting reads what lies there
    height, width = padded.shape[:2]
    shift = 0.5 - 0.5 / factor if how == "sample" and way != Image.Resampling.NEAREST else 0.0
    box = (shift, shift, width - 1 + shift, height - 1 + shift)
    large = Image.fromarray(padded).resize(((width - 1) * factor, (height - 1) * factor), way, box=box)
    inner = np.asarray(large)[8 * factor :, 8 * factor :]
    return inner[: small.shape[0] * factor, : small.shape[1] * factor]


def back_projected(small: np.ndarray, factor: int, how: str) -> np.ndarray:
    """Lanczos, and once what its shrunk picture lacks, enlarged likewise (Irani and Peleg, 1991)."""
    large = interpolate(small, factor, WAYS["lanczos"], how).astype(np.float64)
    lacking = small.astype(np.float64) - shrink_exactly(large, factor, how)
    planes = [
        np.asarray(
            Image.fromarray(lacking[..., c].astype(np.float32)).resize(large.shape[1::-1], Image.Resampling.LANCZOS)
        )
        for c in range(3)
    ]
    return (large + np.stack(planes, axis=2)).round().clip(0, 255).astype(np.uint8)


def shrink_exactly(image: np.ndarray, factor: int, how: str) -> np.ndarray:
    """As `shrink`, without rounding."""
    if how == "sample":
        return image[::factor, ::factor].astype(np.float64)
    height, width = (n // factor for n in image.shape[:2])
    return image.reshape(height, factor, width, factor, -1).mean(axis=(1, 3), dtype=np.float64)


def quarters(images: list[np.ndarray]) -> np.ndarray:
    """The four quarters of each of some images of one size (H, W, 3)."""
    half = images[0].shape[0] // 2, images[0].shape[1] // 2
    return np.stack([i[y : y + half[0], x : x + half[1]] for i in images for y in (0, half[0]) for x in (0, half[1])])


def crops(file: str, count: int, side: int, seed: int) -> list[np.ndarray]:
    """Crops of one large image that are not glass: at least half of each is coloured."""
    whole = np.asarray(Image.open(file).convert("RGB"))
    draw, found = np.random.default_rng(seed), []
    while len(found) < count:
        y, x = (int(draw.integers(0, n - side + 1)) for n in whole.shape[:2])
        part = whole[y : y + side, x : x + side]
        if (part.min(axis=2) < 220).mean() >= 0.5:
            found.append(np.ascontiguousarray(part))
    return found


def lpips_distance(weights: str):  # type: ignore[no-untyped-def]
    """A function of two uint8 images (H, W, 3): LPIPS, version 0.1's VGG heads on the weights of a file."""
    import lpips
    from safetensors.torch import load_file

    network = lpips.LPIPS(net="vgg", pnet_rand=True, verbose=False).eval()
    given = {k.removeprefix("features."): v.float() for k, v in load_file(weights).items() if "features." in k}
    for part in [getattr(network.net, f"slice{i}") for i in range(1, 6)]:
        for number, layer in part.named_children():
            if isinstance(layer, torch.nn.Conv2d):
                layer.load_state_dict({k: given[f"{number}.{k}"] for k in ("weight", "bias")})

    def distance(a: np.ndarray, b: np.ndarray) -> float:
        x, y = (torch.from_numpy(i.copy()).permute(2, 0, 1)[None] / 127.5 - 1 for i in (a, b))
        with torch.no_grad():
            return float(network(x, y))

    return distance


def main() -> None:
    """Upscale, compare, print a table, write results/upscaling-NAME.json."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run", help="a trained model")
    parser.add_argument("data", nargs="?")
    parser.add_argument("--images-of", help="one large image, of which crops are taken")
    parser.add_argument("--name", required=True, help="of the result's file")
    parser.add_argument("--part", default="test")
    parser.add_argument("--split", default="auto")
    parser.add_argument("--size", type=int, default=64, help="of the original images")
    parser.add_argument("--downscale", type=float, default=1.0, help="shrink the data by this first, as in training")
    parser.add_argument("--factor", type=int, default=2)
    parser.add_argument("--images", type=int, default=32)
    parser.add_argument("--settings", nargs="+", default=["scheme=auto"], help="scheme=projection,mean=6,noise=0.3 ...")
    parser.add_argument("--ways", nargs="+", default=["area", "sample"], choices=("area", "sample"))
    parser.add_argument("--vgg")
    parser.add_argument("--network")
    parser.add_argument("--precision", choices=("float32", "bfloat16"), default="bfloat16")
    parser.add_argument("--pictures", type=Path, help="a folder for the images compared")
    chosen = parser.parse_args()
    size = (chosen.size, chosen.size)
    if chosen.images_of:
        images = crops(chosen.images_of, chosen.images, chosen.size, 0)
        others = crops(chosen.images_of, chosen.images, chosen.size, 1)
    else:
        config = DataConfig(source=chosen.data, size=size, downscale=chosen.downscale, split=chosen.split)
        held_out = build_dataset(config, chosen.part)
        texture = len(held_out) < chosen.images  # few images, of which patches are taken
        count = chosen.images if texture else min(chosen.images, len(held_out))
        images = [held_out.fixed(i)[0].permute(1, 2, 0).numpy() for i in range(count)]
        others = images[1::2]
    count = len(images)
    real = features(quarters(images), chosen.network) if chosen.network else None
    floor = None
    if real is not None:
        floor = frechet_distance(features(quarters(others), chosen.network), real)
        print(f"floor of the Fréchet distance: {floor:.3g}", flush=True)
    pipeline = Pipeline.from_pretrained(chosen.run, precision=chosen.precision)
    perceived = lpips_distance(chosen.vgg) if chosen.vgg else None
    table = []
    for how in chosen.ways:
        small = [np.ascontiguousarray(shrink(i, chosen.factor, how)) for i in images]
        results = {name: [interpolate(s, chosen.factor, way, how) for s in small] for name, way in WAYS.items()}
        results["lanczos, back-projected"] = [back_projected(s, chosen.factor, how) for s in small]
        for text in chosen.settings:
            settings = {k: yaml.safe_load(v) for k, _, v in (part.partition("=") for part in text.split(","))}
            if settings.get("scheme") != "published":
                settings["input"] = how
            begun = time.perf_counter()
            made = pipeline.upscale(
                list(small),
                chosen.factor,
                seeds=[0],
                num_inference_steps=settings.pop("steps", None),
                **settings,
            )
            results[f"morphogen {text}"] = list(made.images)
            print(f"{how}, {text}: {(time.perf_counter() - begun) / count:.2f} s an image", flush=True)
        for name, large in results.items():
            pairs = list(zip(images, large, strict=True))
            scores = {
                "psnr": [peak_signal_noise_ratio(a, b, data_range=255) for a, b in pairs],
                "ssim": [structural_similarity(a, b, channel_axis=2, data_range=255) for a, b in pairs],
            }
            if perceived is not None:
                scores["lpips"] = [perceived(a, b) for a, b in pairs]
            scores["off"] = [
                np.abs(shrink_exactly(b, chosen.factor, how) - s).mean() for b, s in zip(large, small, strict=True)
            ]
            means = {k: [float(np.mean(v)), float(np.std(v) / np.sqrt(len(v)))] for k, v in scores.items()}
            table.append({"shrunk": how, "method": name, **means})
            if real is not None:
                table[-1]["frechet"] = frechet_distance(features(quarters(list(large)), chosen.network), real)
            shown = f"FD {table[-1]['frechet']:.3g}  " if real is not None else ""
            shown += "  ".join(f"{k} {v[0]:.4g} +- {v[1]:.2g}" for k, v in means.items())
            print(f"{how:>7} {name:>40}  {shown}", flush=True)
            if chosen.pictures:
                chosen.pictures.mkdir(parents=True, exist_ok=True)
                sheet = np.concatenate([np.concatenate([a, b], axis=1) for a, b in pairs[:8]])
                Image.fromarray(sheet).save(chosen.pictures / f"{how}-{name.replace(' ', '-')}.png")
    RESULTS.mkdir(exist_ok=True)
    kept = {k: getattr(chosen, k) for k in ("size", "downscale", "factor", "part", "precision")}
    facts = {
        "model": Path(chosen.run).name,
        "data": Path(chosen.images_of or chosen.data).name,
        "images": count,
        **kept,
    }
    network = Path(chosen.vgg).stem if chosen.vgg else None
    result = {**facts, "lpips_network": network, "frechet_floor": floor, "mean_and_standard_error": table}
    (RESULTS / f"upscaling-{chosen.name}.json").write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
