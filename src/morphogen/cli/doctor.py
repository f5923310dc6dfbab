"""`morphogen doctor`: what this machine has, and what each missing thing costs."""

from __future__ import annotations

import os
import platform
import re
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, distribution, requires

from morphogen._version import VERSION
from morphogen.cli.options import Json
from morphogen.core.console import say, say_json

_EXTRAS = {
    "slides": "whole slides cannot be read or painted",
    "metrics": "FID, LPIPS and the like cannot be measured",
    "onnx": "networks and autoencoders in ONNX files cannot be used",
    "studio": "`morphogen serve` does not start",
    "app": "`morphogen app` does not start",
    "napari": "napari has no plugin to sample, fill and paint with",
    "datasets": "public data sets cannot be fetched",
    "tensorboard": "training writes no TensorBoard files",
    "cluster": "slides are painted on this machine alone",
}


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at. missing: what its absence costs, where it is absent, and what to do."""

    name: str
    found: str
    missing: str | None = None


def command(json_: Json = False) -> None:
    """Show what this machine has (kernels, GPU, extras, caches, threads) and what each missing thing costs."""
    findings = list(_look())
    if json_:
        say_json([asdict(finding) for finding in findings])
        return
    for finding in findings:
        say(f"{finding.name:<20} {finding.found}")
        if finding.missing:
            say(f"{'':<20} -> {finding.missing}")


def _look() -> Iterator[Finding]:
    import torch

    yield Finding("morphogen", VERSION)
    yield Finding("python", f"{platform.python_version()} on {platform.system()} {platform.machine()}")
    yield Finding("pytorch", torch.__version__)
    yield from _kernels()
    yield _gpu()
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    fewer = "not all cores are used: OMP_NUM_THREADS says so" if torch.get_num_threads() < cores // 2 else None
    yield Finding("threads", f"{torch.get_num_threads()} of PyTorch's on {cores} cores", fewer)
    yield from _extras()
    yield from _caches()


def _kernels() -> Iterator[Finding]:
    """The compiled kernels are looked for as a run would do it, and compiled if there are none."""
    from morphogen.automata.fused.build import chosen_variant, find_library, packaged
    from morphogen.automata.fused.compiler import KERNELS, Unavailable, compiler, compiler_version

    variant, there = chosen_variant(), set()
    for kernel in KERNELS.values():
        if kernel.name == "rule-bfloat16" and not variant.bfloat16:
            continue
        try:
            library = find_library(kernel, variant)
        except Unavailable as reason:
            yield Finding(f"kernel {kernel.name}", "not there", str(reason))
        else:
            there.add(kernel.name)
            source = "of this package" if library == packaged(kernel, variant) else "compiled here"
            yield Finding(f"kernel {kernel.name}", f"{variant.name}, {source}: {library}")
    automatic, cost = "bfloat16" if "rule-bfloat16" in there else "float32", None
    if not variant.bfloat16:
        cost = "this processor has no AVX512-BF16: float32 takes about twice as long as bfloat16 would"
    elif automatic == "float32":
        cost = "without the kernel a seed gives another picture than with its bfloat16"
    yield Finding("precision", f"--precision auto is {automatic} on the CPU", cost)
    try:
        path = compiler()
    except Unavailable as reason:
        yield Finding("compiler", "none", None if "rule-float32" in there else str(reason))
    else:
        yield Finding("compiler", compiler_version(path) or path)


def _gpu() -> Finding:
    import torch

    if torch.cuda.is_available():
        try:
            triton = distribution("triton").version
        except PackageNotFoundError:
            return Finding("gpu", torch.cuda.get_device_name(), "Triton is not installed: the rules run by PyTorch")
        return Finding("gpu", f"{torch.cuda.get_device_name()}, Triton {triton}")
    if torch.backends.mps.is_available():
        return Finding("gpu", "Apple's, by PyTorch (--device mps)")
    return Finding("gpu", "none that PyTorch can use", "everything runs on the CPU")


def _extras() -> Iterator[Finding]:
    """Each extra's own requirements, as the installed package names them."""
    try:
        lines = requires("morphogen") or []
    except PackageNotFoundError:  # run from a checkout that is not installed
        lines = []
    for extra, cost in _EXTRAS.items():
        needed = [re.split(r"[^\w.-]", line)[0] for line in lines if f"extra == '{extra}'" in line.replace('"', "'")]
        absent = [name for name in needed if not _is_installed(name)]
        if not absent:
            yield Finding(f"extra {extra}", "installed")
        else:
            fix = f'{cost}; to have it: pip install "morphogen[{extra}]"'
            yield Finding(f"extra {extra}", f"without {', '.join(absent)}", fix)


def _is_installed(name: str) -> bool:
    try:
        distribution(name)
    except PackageNotFoundError:
        return False
    return True


def _caches() -> Iterator[Finding]:
    from morphogen.automata.fused.build import kernel_folder
    from morphogen.core.cache import cache_folder, is_usable
    from morphogen.data.named import data_root
    from morphogen.metrics.weights import weights_folder

    folders = {
        "kernels": (cache_folder("kernels"), f"compiled kernels are kept in {kernel_folder()}, until it is emptied"),
        "features": (cache_folder("features"), "features of images are computed anew each time"),
        "weights": (weights_folder(), "networks that measure images cannot be fetched; set MORPHOGEN_WEIGHTS"),
        "datasets": (data_root(), "public data sets cannot be fetched; set MORPHOGEN_DATA"),
    }
    for name, (folder, cost) in folders.items():
        files = [file for file in folder.rglob("*") if file.is_file()] if folder.is_dir() else []
        held = f"{len(files)} files, {sum(file.stat().st_size for file in files) / 1e6:.1f} MB"
        yield Finding(f"cache {name}", f"{folder} ({held})", None if is_usable(folder) else cost)
