"""Evaluation of a run, a model or a folder of images, into a folder whose results are never replaced unseen."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast, get_args

from morphogen.core.errors import InputError
from morphogen.core.model import Model
from morphogen.core.output_files import check_results, same_place
from morphogen.core.request import SamplingRequest
from morphogen.data.source import Part
from morphogen.metrics.evaluate import EvaluationSettings
from morphogen.metrics.evaluate import evaluate as evaluate_into
from morphogen.metrics.feature_network import FeatureNetwork
from morphogen.metrics.features import cache_folder
from morphogen.metrics.function_network import FeatureFunction
from morphogen.metrics.networks import DEFAULT_NETWORK
from morphogen.metrics.records import EvaluationResults
from morphogen.models import find_model, load_model
from morphogen.training.run import Run

_FILES = ("results.json", "report.html")
Network = str | FeatureNetwork | FeatureFunction


def evaluate(
    model: str | Path | Run | None = None,
    *,
    data: str | Path | None = None,
    images: str | Path | None = None,
    out: str | Path | None = None,
    num_images: int = 2048,
    networks: Network | Sequence[Network] = DEFAULT_NETWORK,
    lpips: str = "auto",
    part: Part = "test",
    seed: int = 0,
    sampler: str | None = None,
    num_inference_steps: int | None = None,
    guidance_scale: float = 1.0,
    batch_size: int = 32,
    device: str = "cpu",
    overwrite: bool = False,
    progress: bool = True,
    **data_settings: Any,
) -> EvaluationResults:
    """Measure a model, like `morphogen evaluate`: FID, KID, diversity, precision and recall, and memorisation.

    model: a run, its folder, a bundled name or a hub id; none where `images`, a folder or zip, are measured instead.
    data: the real images, by default the run's. out: the folder for results.json and report.html, by default
    `evaluation` in the run. networks: a name as for --network, a module or function of images, or several. Other
    settings are those of `Pipeline` and, of the real images, of --size, --fit, --split, --fold, --labels, --downscale.
    Returns what results.json holds. Raises InputError for anything that cannot be measured.
    """
    if (model is None) == (images is None):
        raise InputError("name either a run or a model, or give images=FOLDER")
    if part not in get_args(Part):
        raise InputError(f"part is {part!r}; it should be test, val or train")
    folder = None if model is None else find_model(model.path if isinstance(model, Run) else model)
    named = isinstance(networks, Sequence) and not isinstance(networks, str)
    plan = EvaluationSettings(
        count=num_images,
        networks=tuple(cast(Sequence[Network], networks)) if named else (cast(Network, networks),),
        lpips=lpips,
        part=part,
        seed=seed,
        request=SamplingRequest(sampler, num_inference_steps, guidance_scale, precision="auto"),
        batch_size=batch_size,
        device=device,
        cache=cache_folder(),
        quiet=not progress,
        data_settings=data_settings,
    )
    loaded = None if folder is None else load_model(folder).to(device)
    where, given = (None if path is None else Path(path) for path in (out, images))
    return measure(loaded, folder, given, None if data is None else str(data), plan, where, overwrite)[0]


def measure(
    model: Model | None,
    folder: Path | None,
    images: Path | None,
    data: str | None,
    settings: EvaluationSettings,
    out: Path | None = None,
    overwrite: bool = False,
) -> tuple[EvaluationResults, Path]:
    """Evaluate into a folder, which is returned too: `out`, or a run's own. Raises InputError where it holds others."""
    is_run = folder is not None and (folder / "run.json").is_file()
    target = out or (folder / "evaluation" if is_run and folder is not None else Path("evaluation"))
    # In the run's own folder it is that run's, wherever that has been moved to.
    asked: dict[str, object] = {"model": same_place(folder) if out is not None or not is_run else None}
    asked |= {"images": same_place(images), "data": same_place(data)}
    asked |= {"part": settings.part, "n": settings.count if images is None else None}
    asked |= {"seed": settings.seed if images is None else None}
    asked |= {"sampler": settings.request.sampler, "sampling_steps": settings.request.steps}
    asked = {k: v for k, v in asked.items() if v is not None}
    check_results(target, _FILES, lambda found: _made_with(found, tuple(asked)), asked, overwrite)
    return evaluate_into(model, images, folder, data, settings, target), target


def _made_with(found: dict[str, Any], asked: tuple[str, ...]) -> dict[str, object] | None:
    """What an evaluation in results.json was of, as far as that was asked; None for results of anything else."""
    model, generated, data = (found.get(key) for key in ("model", "generated", "data"))
    if not isinstance(generated, dict) or not isinstance(data, dict) or "figures" not in found:
        return None
    of = {
        "model": same_place(model.get("folder")) if isinstance(model, dict) else None,
        "images": same_place(generated.get("folder")),
        "n": generated.get("images"),
        "data": same_place(data.get("source")),
        "part": data.get("part"),
        "seed": generated.get("first_seed", 0),  # which results of earlier versions do not say
        "sampler": generated.get("sampler"),
        "sampling_steps": generated.get("sampling_steps"),
    }
    return {key: of[key] for key in asked}
