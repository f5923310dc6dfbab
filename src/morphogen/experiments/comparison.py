"""`compare`: train and measure every model of a spec, go on where it was interrupted, and write it all down."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from morphogen.core.errors import InputError, Interrupted
from morphogen.core.files import json_bytes, read_json, replace_file
from morphogen.core.progress import Progress
from morphogen.core.request import SamplingRequest
from morphogen.core.validation import validate
from morphogen.experiments.comparison_records import TrialRecord
from morphogen.experiments.comparison_spec import Measured, Spec, Trial, fingerprint, trials
from morphogen.metrics.evaluate import EvaluationSettings, evaluate
from morphogen.metrics.features import cache_folder
from morphogen.models import load_model
from morphogen.training.logs import last_record
from morphogen.training.loop import train
from morphogen.training.run_folder import RunFolder
from morphogen.training.signals import StopSignals

_FIGURES = "figures.json"
_POLL_S = 1.0
_PARENT = "MORPHOGEN_COMPARE_PARENT"


def run_comparison(spec: Spec, out: Path, device: str = "auto", gpus: Sequence[str] = (), quiet: bool = False) -> None:
    """Train and measure whatever of a comparison is not done yet.

    gpus: numbers of the devices that share the work, each taking the next model; with none, this process does one
    after the other. Raises Interrupted with everything finished so far kept, and InputError where a model cannot be
    trained or measured.
    """
    todo = [trial for trial in trials(spec, out) if finished(trial, spec) is None]
    total = len(spec.models) * len(spec.seeds)
    with locked(out), Progress("comparing", total, "runs", total - len(todo), quiet) as progress:
        if gpus:
            _on_devices(spec, todo, out, gpus, progress)
            return
        for number, trial in enumerate(todo):
            with _watched(progress, [trial], total - len(todo) + number):
                do(trial, spec, device)
            progress.update(total - len(todo) + number + 1, f"{trial.label} done")


def do(trial: Trial, spec: Spec, device: str) -> TrialRecord:
    """Train a model, or go on with it, and measure it; what is written down of it."""
    if trial.config.training.devices.compile:
        import torch._dynamo

        torch._dynamo.reset()  # its limit of compilations counts those of earlier models too
    trial.folder.parent.mkdir(parents=True, exist_ok=True)
    trained = train(trial.config.on_device(device), trial.folder, quiet=True)
    measured, where = spec.evaluate, _device(device)
    how = EvaluationSettings(
        count=measured.images,
        networks=measured.networks,
        lpips=measured.lpips,
        part=measured.part,
        real_images=measured.real_images,
        train_images=measured.train_images,
        pairs=measured.pairs,
        request=_request(trial, measured),
        batch_size=measured.batch_size,
        device=where,
        cache=cache_folder(),
        quiet=True,
    )
    model = load_model(trial.folder).to(where)
    results = evaluate(model, None, trial.folder, None, how, trial.folder / "evaluation")
    timing = last_record(RunFolder(trial.folder).timing)
    record = TrialRecord(
        fingerprint=fingerprint(trial, measured),
        name=trial.entry.name,
        seed=trial.seed,
        parameters=model.parameter_count(),
        steps=trained.step,
        training_images=trained.images,
        seconds_per_step=None if timing is None else timing["elapsed_s"] / timing["step"],
        held_out_noise_error=trained.noise_error,
        results=results,
    )
    replace_file(trial.folder / _FIGURES, json_bytes(record.as_json()))
    return record


def finished(trial: Trial, spec: Spec) -> TrialRecord | None:
    """The record of a trial, or None where it is not done with these very settings."""
    path = trial.folder / _FIGURES
    if not path.is_file():
        return None
    try:
        record = validate(TrialRecord, read_json(path), str(path))
    except InputError:  # damaged: measured again
        return None
    return record if record.fingerprint == fingerprint(trial, spec.evaluate) else None


def _request(trial: Trial, measured: Measured) -> SamplingRequest:
    """The part of a spec's request that the trial's model can follow."""
    diffusion = _predicts_noise(trial)
    return SamplingRequest(
        sampler=trial.entry.sampler or (measured.sampler if diffusion else None),
        steps=measured.sampling_steps if diffusion else None,
        guidance=measured.guidance if _takes_labels(trial) else 1.0,
        precision=measured.precision,
    )


def _takes_labels(trial: Trial) -> bool:
    return bool(trial.config.read_labels().names)


def _predicts_noise(trial: Trial) -> bool:
    from morphogen.models import family_class, find_preset

    return bool(family_class(find_preset(trial.config.model).family).predicts_noise)


def _device(name: str) -> str:
    from morphogen.training.devices import pick_device

    return str(pick_device(name))


@contextmanager
def locked(out: Path) -> Iterator[None]:
    """Hold a comparison's folder, so that two never work in it."""
    try:
        out.mkdir(parents=True, exist_ok=True)
        lock = FileLock(out / ".lock")
        lock.acquire(timeout=0)
    except Timeout:
        raise InputError(f"another process is comparing in {out}; wait for it or name another folder") from None
    except OSError as error:
        raise InputError(f"--out {out} cannot be written: {error.strerror or error}") from None
    try:
        yield
    finally:
        lock.release()


@contextmanager
def _watched(progress: Progress, running: Sequence[Trial], done: int) -> Iterator[None]:
    """Show, while this lasts, how far the running trials have come, by what they log."""
    over = threading.Event()

    def watch() -> None:
        while not over.wait(_POLL_S):
            shares = [_share(trial) for trial in running]
            progress.update(done + sum(shares), "; ".join(f"{j.label}" for j in running))

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


def _share(trial: Trial) -> float:
    """How much of a trial's training is done, at most 0.9: measuring is the rest."""
    settings, folder = trial.config.training, RunFolder(trial.folder)
    try:
        if settings.steps is not None:
            step = int((last_record(folder.metrics) or {"step": 0})["step"])
            return 0.9 * min(1.0, step / settings.steps)
        elapsed = (last_record(folder.timing) or {"elapsed_s": 0.0})["elapsed_s"]
        return 0.9 * min(1.0, float(elapsed) / (60 * (settings.minutes or 1)))
    except (OSError, ValueError, KeyError):
        return 0.0


# ------------------------------------------------------------------------------------------------ several devices


def _on_devices(spec: Spec, todo: list[Trial], out: Path, gpus: Sequence[str], progress: Progress) -> None:
    """Give every device the next trial in a process of its own until none is left."""
    waiting, running = list(todo), dict[str, tuple[Trial, subprocess.Popen[bytes]]]()
    done, failed, passed_on = progress.done, list[str](), False
    _write_spec(spec, out / "spec.json")
    with StopSignals() as stop:
        while (waiting and not failed and not stop.received) or running:
            for gpu in gpus:
                if gpu not in running and waiting and not failed and not stop.received:
                    trial = waiting.pop(0)
                    running[gpu] = (trial, _start(trial, out, gpu))
            if stop.received and not passed_on:
                passed_on = True  # once: a second signal would end them before they have saved
                for _, process in running.values():
                    process.terminate()
            time.sleep(_POLL_S)
            for gpu, (trial, process) in list(running.items()):
                if process.poll() is not None:
                    del running[gpu]
                    done += 1
                    if process.returncode == 2:
                        failed.append(trial.label)
                    elif process.returncode not in (0, Interrupted.exit_code):
                        failed.append(f"{trial.label} (ended with {process.returncode})")
            active = [trial for trial, _ in running.values()]
            progress.update(done + sum(map(_share, active)), "; ".join(trial.label for trial in active))
    if failed:
        raise InputError(f"these could not be trained or measured, see above: {'; '.join(failed)}")
    if stop.received:
        raise Interrupted(f"stopped; what was finished is kept in {out}, and the same command goes on from there")


def _write_spec(spec: Spec, file: Path) -> None:
    """Write the list down for other processes. Raises InputError where the file is something else."""
    try:
        if file.exists():
            validate(Spec, read_json(file), str(file))
    except InputError:
        raise InputError(
            f"{file} is there and was not made by this command; name another --out, or move the file"
        ) from None
    replace_file(file, json_bytes(spec.model_dump()))


def _start(trial: Trial, out: Path, gpu: str) -> subprocess.Popen[bytes]:
    """A process for one trial on one device: a GPU's number, or `cpu`."""
    device = "cpu" if gpu.startswith("cpu") else "cuda"
    visible = {} if device == "cpu" else {"CUDA_VISIBLE_DEVICES": gpu}
    command = [sys.executable, "-m", "morphogen", "compare", str(out / "spec.json"), "--out", str(out)]
    command += ["--trial", f"{trial.entry.name}:{trial.seed}", "--device", device]
    environment = {**os.environ, **visible, _PARENT: str(os.getpid())}
    return subprocess.Popen(command, env=environment, start_new_session=True)  # Ctrl-C is passed on by us, once


def do_alone(spec: Spec, out: Path, label: str, device: str) -> None:
    """Do the one trial NAME:SEED, as a process of its own that stops when the one that started it is gone."""
    name, _, seed = label.rpartition(":")
    found = [trial for trial in trials(spec, out) if trial.entry.name == name and str(trial.seed) == seed]
    if not found:
        raise InputError(f"--trial {label}: the spec has no such model and seed")
    parent = int(os.environ.get(_PARENT, "0"))
    if parent:
        threading.Thread(target=_stop_without, args=(parent,), daemon=True).start()
    do(found[0], spec, device)


def _stop_without(parent: int) -> None:
    import signal

    while os.getppid() == parent:
        time.sleep(_POLL_S)
    os.kill(os.getpid(), signal.SIGTERM)
