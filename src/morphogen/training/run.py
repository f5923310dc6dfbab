"""Training from Python, and a run to look at: `morphogen.train` and `morphogen.Run`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from PIL import Image

from morphogen.data.config import DataConfig
from morphogen.models import load_model
from morphogen.training.config import RunConfig
from morphogen.training.logs import read_records
from morphogen.training.loop import train as train_run
from morphogen.training.recipes import resolve
from morphogen.training.run_folder import RunFolder, read_run
from morphogen.training.settings import merge

if TYPE_CHECKING:
    from morphogen.core.model import Model


class Run:
    """A run's folder: its settings, its figures, its samples, its model."""

    def __init__(self, path: str | Path) -> None:
        """Raises InputError if there is no run."""
        self.path = Path(path)
        self.config: RunConfig = read_run(self.path)

    def __repr__(self) -> str:
        return f"Run({str(self.path)!r}, step {self.step})"

    @property
    def step(self) -> int:
        """Steps taken."""
        records = read_records(RunFolder(self.path).metrics)
        return int(records[-1]["step"]) if records else 0

    def metrics(self) -> dict[str, list[float | None]]:
        """The log of all steps as a table of columns: `pandas.DataFrame(run.metrics())`.

        step, images, loss, gradient_norm, learning_rate, and held_out_noise_error, None where it was not measured.
        """
        records = read_records(RunFolder(self.path).metrics)
        columns = dict.fromkeys(name for record in records for name in record)
        return {name: [record.get(name) for record in records] for name in columns}

    def samples(self) -> dict[int, Image.Image]:
        """The grids of samples that were drawn on the way, by step."""
        found: dict[int, Image.Image] = {}
        for file in sorted(RunFolder(self.path).samples.glob("step-*.png")):
            with Image.open(file) as image:
                found[int(file.stem.removeprefix("step-"))] = image.copy()
        return found

    def load(self) -> Model:
        """The averaged model. Raises InputError where none has been saved yet."""
        return load_model(self.path)

    def resume(self, *, data: str | Path | None = None, progress: bool = True, **settings: object) -> Run:
        """Go on with the training, for more `steps=` or `minutes=`, or elsewhere (`data=`, `device=`).

        Raises what `train` raises.
        """
        source = {} if data is None else {"data": {"source": str(data)}}
        return _train(self.path, self.path / "run.json", merge(_tables(settings), source), progress)


def train(data: str | Path, *, out: str | Path, progress: bool = True, **settings: object) -> Run:
    """Train a model on images, or go on with the run in `out`, like `morphogen train DATA --out OUT`.

    data: a folder, zip, slide, or the name of a set. settings: what the command has flags for (model="diff-nca-small",
    size=64, steps, minutes, batch_size, recipe, seed, fit, domain, labels, device, ...), and tables of all others:
    `training={"optimizer": {"learning_rate": 1e-3}}`, `architecture={"nca_steps": 20}`, `diffusion={...}`.
    progress: show a bar and remarks on standard error.

    Returns the run. Raises InputError for wrong settings or data and for a run with other settings, and Interrupted,
    with everything saved, at Ctrl-C.
    """
    flags = merge(_tables(settings), {"data": {"source": str(data)}})
    return _train(Path(out), None, flags, progress)


def _train(out: Path, config_file: Path | None, flags: Mapping[str, object], progress: bool) -> Run:
    config = resolve(flags, config_file, before=RunFolder(out).recorded(), where="morphogen.train")
    train_run(config, out, quiet=not progress)
    return Run(out)


def _tables(settings: Mapping[str, object]) -> dict[str, object]:
    """Keywords as the tables of a configuration: those of data and training by their own names, too."""
    flags: dict[str, object] = {}
    for name, value in settings.items():
        table: tuple[str, ...] = ()
        if name in DataConfig.model_fields:
            table = ("data",)
        elif name in ("steps", "minutes", "batch_size", "seed"):
            table = ("training",)
        elif name in ("device", "precision"):
            table = ("training", "devices")
        nested: Any = {name: str(value) if isinstance(value, Path) else value}
        for part in reversed(table):
            nested = {part: nested}
        if value is not None:
            flags = merge(flags, nested)
    return flags
