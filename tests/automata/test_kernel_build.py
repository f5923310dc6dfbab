"""Compiling, keeping and loading the kernels: what is damaged, missing, wrong or of another make."""

from __future__ import annotations

import ctypes
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from morphogen.automata.fused import abi, build, compiler, cpu_autograd
from morphogen.automata.fused.build import chosen_variant, find_library, load_attention, load_kernel
from morphogen.automata.fused.compiler import KERNELS, Unavailable
from morphogen.core.errors import InputError
from morphogen.core.evaluation import Evaluation
from morphogen.core.keys import Key
from morphogen.models import create_model

HERE = Path(__file__).parent
ATTENTION = KERNELS["attention"]  # the one that compiles in a second or two

try:
    load_kernel("float32")
    compiler.compiler()
except Unavailable as reason:
    pytest.skip(str(reason), allow_module_level=True)


@pytest.fixture
def said(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[[], str]:
    """What is said once, as if nothing had been said yet; kernels are looked for anew, during the test and after."""
    monkeypatch.setattr("morphogen.core.notices._said", set())
    for load in (load_kernel, load_attention):
        monkeypatch.setattr(load, "_found", {})
    return lambda: capsys.readouterr().err


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache that holds the attention's kernel. Read only."""
    cache = tmp_path_factory.mktemp("cache")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MORPHOGEN_CACHE", str(cache))
        find_library(ATTENTION, chosen_variant())
    return cache


@pytest.fixture
def cache(kept: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of it, in use."""
    shutil.copytree(kept, tmp_path / "cache")
    monkeypatch.setenv("MORPHOGEN_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "kernels"


def only(folder: Path) -> Path:
    (library,) = folder.glob("attention-*.so")
    return library


def attend(library: Path) -> None:
    """Use a library."""
    kernel = abi.declare(ctypes.CDLL(str(library)))
    kernel.neighbours_attend(abi.AttentionArguments(threads=1, deep=1))


@pytest.mark.parametrize("damage", ["short", "empty", "changed"])
def test_a_damaged_library_is_never_loaded(
    cache: Path, monkeypatch: pytest.MonkeyPatch, said: Callable[[], str], damage: str
) -> None:
    library = only(cache)
    content = library.read_bytes()
    middle = len(content) // 2
    library.write_bytes(
        {"short": content[:middle], "empty": b"", "changed": content[:middle] + b"\0" * 512 + content[middle + 512 :]}[
            damage
        ]
    )
    with monkeypatch.context() as without:
        without.setenv("CXX", "no-such-compiler")
        with pytest.raises(Unavailable, match="no C\\+\\+ compiler"):
            load_attention()
        assert f"{library} is damaged" in said()
    load_attention.cache_clear()
    load_attention()  # made again
    attend(only(cache))


def test_what_is_kept_needs_no_compiler(cache: Path, monkeypatch: pytest.MonkeyPatch, said: Callable[[], str]) -> None:
    monkeypatch.setenv("CXX", "no-such-compiler")
    attend(find_library(ATTENTION, chosen_variant()))
    assert said() == ""


def test_another_version_of_the_compiler_compiles_anew(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, said: Callable[[], str]
) -> None:
    newer = tmp_path / "c++"
    newer.write_text(f'#!/bin/sh\n[ "$1" = --version ] && echo "c++ 99.1" && exit\nexec {compiler.compiler()} "$@"\n')
    newer.chmod(0o755)
    monkeypatch.setenv("CXX", str(newer))
    before = only(cache)
    assert find_library(ATTENTION, chosen_variant()) != before
    assert "compiling the fast kernel" in said()


def test_where_it_is_kept(kept: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MORPHOGEN_CACHE", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    shutil.copytree(kept, tmp_path / "xdg" / "morphogen")
    assert find_library(ATTENTION, chosen_variant()) == only(tmp_path / "xdg" / "morphogen" / "kernels")


def test_a_home_that_cannot_be_written_to(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, said: Callable[[], str]
) -> None:
    (tmp_path / "home").write_text("no folder")
    for name in ("MORPHOGEN_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    build.private_folder.cache_clear()
    try:
        library = find_library(ATTENTION, chosen_variant())
    finally:
        build.private_folder.cache_clear()
    attend(library)
    assert library.is_relative_to(tmp_path) and library.parents[1].stat().st_mode & 0o777 == 0o700
    assert f"{tmp_path}/home/.cache/morphogen/kernels cannot be written to; the compiled kernel is" in said()


def test_a_folder_that_others_can_write_to_is_not_trusted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    (tmp_path / f"morphogen-{os.getuid()}").mkdir(mode=0o777)
    (tmp_path / f"morphogen-{os.getuid()}").chmod(0o777)
    build.private_folder.cache_clear()
    try:
        folder = build.private_folder("kernels")
    finally:
        build.private_folder.cache_clear()
    assert folder.parent.name != f"morphogen-{os.getuid()}" and folder.parent.stat().st_mode & 0o777 == 0o700


def test_a_variant_is_named_or_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(build.CHOICE, "sse")
    with pytest.raises(InputError, match="should be one of avx512, avx2, neon, native"):
        chosen_variant()
    monkeypatch.setenv(build.CHOICE, "neon" if compiler.VARIANTS[1].runs_here() else "avx2")
    with pytest.raises(InputError, match="which this processor has not"):
        chosen_variant()


# ------------------------------------------------------------------------------------------------ what is passed to it


def test_other_structures_are_noticed(cache: Path, monkeypatch: pytest.MonkeyPatch, said: Callable[[], str]) -> None:
    first, second, *rest = abi.AttentionArguments._fields_
    swapped = type("AttentionArguments", (abi._Structure,), {"_fields_": (second, first, *rest)})
    monkeypatch.setattr(abi, "_STRUCTURES", (*abi._STRUCTURES[:-1], swapped))
    with pytest.raises(Unavailable, match="its structures are not those of this version"):
        load_attention()


def test_what_fails_inside_is_an_exception_in_python() -> None:
    kernel, made = load_kernel("float32"), ctypes.c_void_p()
    with pytest.raises(RuntimeError, match="the embedding is wider than the kernel's"):
        kernel.nca_rule(abi.RuleWeights(channels=4, hidden=4, embedding=9), made)
    zeros = torch.zeros(4 * 9 * 16)
    weights = abi.RuleWeights(channels=4, hidden=4)
    weights.point(dict.fromkeys(("perceive", "into_hidden", "output"), zeros))
    kernel.nca_rule(weights, made)
    huge = abi.RunArguments(batch=2**20, height=2**20, width=2**10, steps=1, images=1, threads=2)
    with pytest.raises((MemoryError, RuntimeError), match="the fast kernel"):  # more than an address space holds
        kernel.nca_run(made, huge)
    kernel.nca_free(made)


@pytest.mark.parametrize("width", [5, 20])
def test_an_embedding_of_any_width(width: int) -> None:
    torch.manual_seed(0)
    model = create_model("fourier-diff-nca-small", size=(32, 33), embedding_hidden=width, nca_steps=2).eval()
    x, t, found = torch.randn(1, 3, 32, 33), torch.full((1,), 170.0), []
    for precision in (None, "float32"):
        assert model.compute_in(precision) is None  # type: ignore[arg-type]
        with torch.no_grad():
            found.append(model(x, t, Evaluation(Key.of([0]))).noise)
    assert (found[1] - found[0]).norm() < 1e-5 * found[0].norm()  # sums in another order


# ---------------------------------------------------------------------------------------------- held against the plain


def test_a_kernel_that_computes_wrongly_is_not_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("morphogen.automata.fused.kernel_folder", lambda: tmp_path)
    model = create_model("diff-nca", size=(8, 8), channels=8, hidden=12, nca_steps=2).eval()
    with monkeypatch.context() as wrong:
        wrong.setattr(cpu_autograd, "LEAKY_SLOPE", 0.5)
        assert "computes wrongly on this machine" in str(model.compute_in("float32"))
        assert model.acceleration is None and model.computed_in == "float32 by PyTorch on cpu"
        assert not list(tmp_path.iterdir())
        assert "computes wrongly" in str(model.train().compute_in("float32"))
    for training, known in ((False, 1), (False, 1), (True, 2)):  # gradients are a check of their own
        assert model.train(training).compute_in("float32") is None
        assert len(list(tmp_path.iterdir())) == known
    assert model.computed_in == "float32 by the fast kernel on cpu"
    with monkeypatch.context() as broken:  # known to be right, so not looked at again
        broken.setattr("morphogen.automata.fused.deviation", lambda *_: 1.0)
        assert model.compute_in("float32") is None


def test_under_sanitizers() -> None:
    """About 20 seconds on an idle machine, the first time; what was compiled is kept."""
    found = subprocess.run([compiler.compiler(), "-print-file-name=libasan.so"], capture_output=True, text=True)
    library = Path(found.stdout.strip())
    if not library.is_absolute():
        pytest.skip("the compiler has no AddressSanitizer")
    # What Python keeps to its end is no concern here. The sanitizer asks for the C++ library that throws.
    threw = subprocess.run([compiler.compiler(), "-print-file-name=libstdc++.so.6"], capture_output=True, text=True)
    preloaded = f"{library} {threw.stdout.strip()}"
    environment = {"ASAN_OPTIONS": "detect_leaks=0", "LD_PRELOAD": preloaded, "OMP_NUM_THREADS": "1"}
    ran = subprocess.run(
        [sys.executable, HERE / "sanitized_kernels.py"], env=os.environ | environment, capture_output=True, text=True
    )
    assert ran.returncode == 0 and "nothing found" in ran.stdout, ran.stderr[-4000:]
