"""Does painted detail beat interpolation? `python benchmarks/upscaling.py RUN DATA --factor 2 --name faces`.

Held-out images are shrunk, enlarged again and compared with what they were, in PSNR and SSIM (higher is better) and,
with `--vgg FILE` (VGG-16's convolutions under torchvision's names, safetensors) and the `lpips` package, in LPIPS
(lower is better). Two ways to shrink: `area` averages squares of pixels, as a camera or an editor does; `sample` keeps
one pixel of each square, which is what the published scheme takes the given pixels for. Interpolation is centred on
where the pixels then lie. Interrupted, it begins again.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from skimage.metrics import peak_signal_noise_ratio, structural_similarity

from morphogen import Pipeline
from morphogen.data.config import DataConfig
from morphogen.data.dataset import build_dataset

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
    parser.add_argument("data")
    parser.add_argument("--name", required=True, help="of the result's file")
    parser.add_argument("--part", default="test")
    parser.add_argument("--split", default="auto")
    parser.add_argument("--size", type=int, default=64, help="of the original images")
    parser.add_argument("--downscale", type=float, default=1.0, help="shrink the data by this first, as in training")
    parser.add_argument("--factor", type=int, default=2)
    parser.add_argument("--images", type=int, default=32)
    parser.add_argument("--settings", nargs="+", default=["noise=0.9"], help="noise=0.5,blend=0.1,added_only=0 ...")
    parser.add_argument("--sampling-steps", type=int, default=50)
    parser.add_argument("--vgg")
    parser.add_argument("--precision", choices=("float32", "bfloat16"), default="bfloat16")
    parser.add_argument("--pictures", type=Path, help="a folder for the images compared")
    chosen = parser.parse_args()
    size = (chosen.size, chosen.size)
    config = DataConfig(source=chosen.data, size=size, downscale=chosen.downscale, split=chosen.split)
    held_out = build_dataset(config, chosen.part)
    texture = len(held_out) < chosen.images  # few images, of which patches are taken
    count = chosen.images if texture else min(chosen.images, len(held_out))
    images = [held_out.fixed(i)[0].permute(1, 2, 0).numpy() for i in range(count)]
    pipeline = Pipeline.from_pretrained(chosen.run)
    perceived = lpips_distance(chosen.vgg) if chosen.vgg else None
    table = []
    for how in ("area", "sample"):
        small = [np.ascontiguousarray(shrink(i, chosen.factor, how)) for i in images]
        results = {name: [interpolate(s, chosen.factor, way, how) for s in small] for name, way in WAYS.items()}
        for text in chosen.settings:
            settings = {k: float(v) for k, _, v in (part.partition("=") for part in text.split(","))}
            begun = time.perf_counter()
            with torch.autocast("cpu", torch.bfloat16, chosen.precision == "bfloat16"):
                made = pipeline.upscale(
                    list(small),
                    chosen.factor,
                    seeds=[0],
                    num_inference_steps=chosen.sampling_steps,
                    **{k: bool(v) if k in ("added_only", "clean") else v for k, v in settings.items()},
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
            means = {k: [float(np.mean(v)), float(np.std(v) / np.sqrt(len(v)))] for k, v in scores.items()}
            table.append({"shrunk": how, "method": name, **means})
            shown = "  ".join(f"{k} {v[0]:.4g} +- {v[1]:.2g}" for k, v in means.items())
            print(f"{how:>7} {name:>40}  {shown}", flush=True)
            if chosen.pictures:
                chosen.pictures.mkdir(parents=True, exist_ok=True)
                sheet = np.concatenate([np.concatenate([a, b], axis=1) for a, b in pairs[:8]])
                Image.fromarray(sheet).save(chosen.pictures / f"{how}-{name.replace(' ', '-')}.png")
    RESULTS.mkdir(exist_ok=True)
    kept = {k: getattr(chosen, k) for k in ("size", "downscale", "factor", "part", "sampling_steps", "precision")}
    facts = {"model": Path(chosen.run).name, "data": Path(chosen.data).name, "images": count, **kept}
    network = Path(chosen.vgg).stem if chosen.vgg else None
    result = {**facts, "lpips_network": network, "mean_and_standard_error": table}
    (RESULTS / f"upscaling-{chosen.name}.json").write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
