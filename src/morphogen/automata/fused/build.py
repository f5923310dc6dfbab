"""Compiling the kernels on the user's machine, once, and calling them."""

from __future__ import annotations

import ctypes
import functools
import hashlib
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any, Literal

from morphogen._version import VERSION
from morphogen.core.notices import say_once

Precision = Literal["bfloat16", "float32"]
_FOLDER = Path(__file__).parent
_RULE = ("kernel.cpp", "products.h", "rule.h", "forward.h", "backward.h")
_ATTENTION = ("attention.cpp", "products.h")
_FLAGS = ("-std=c++17", "-O2", "-march=native", "-ffp-contract=fast", "-shared", "-fPIC", "-pthread")
_AVX512 = ("avx512f", "avx512bw", "avx512dq", "avx512vl", "avx512_bf16")


class Unavailable(Exception):
    """Why the kernel cannot be used here, in words for the user."""


def has_bfloat16() -> bool:
    """Whether this processor multiplies bfloat16 numbers in pairs (AVX512-BF16)."""
    return set(_AVX512) <= _processor_flags()


@functools.cache
def _processor_flags() -> frozenset[str]:
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:
        return frozenset()
    line = next((line for line in text.splitlines() if line.startswith("flags")), ":")
    return frozenset(line.split(":", 1)[1].split())


def _compiler() -> str:
    named = os.environ.get("CXX")
    for name in [named] if named else ["c++", "g++", "clang++"]:
        found = shutil.which(name)
        if found:
            return found
    raise Unavailable(f"there is no C++ compiler ({named or 'c++, g++ or clang++'})")


def _cache() -> Path:
    return Path(os.environ.get("MORPHOGEN_CACHE") or Path.home() / ".cache" / "morphogen") / "kernels"


@functools.cache
def load_kernel(precision: Precision) -> ctypes.CDLL:
    """The update rule's kernel, compiled at the first use on this machine (some seconds).

    Raises Unavailable, saying why, where that cannot be.
    """
    if precision == "bfloat16" and not has_bfloat16():
        raise Unavailable("this processor has no bfloat16 products (AVX512-BF16)")
    return _declare(_load(_RULE, ["-DNCA_FLOAT32"] if precision == "float32" else []))


@functools.cache
def load_attention() -> ctypes.CDLL:
    """The kernel of the attention to neighbours, likewise."""
    return _declare_attention(_load(_ATTENTION, ["-DNCA_FLOAT32"]))


def _load(files: tuple[str, ...], definitions: list[str]) -> ctypes.CDLL:
    """The library of a source file, the first, and its headers; compiled where it isn't there. Raises Unavailable."""
    if sys.platform == "win32":
        raise Unavailable("the fast kernel needs GCC or Clang, which Windows has not")
    compiler = _compiler()
    flags = list(_FLAGS)
    if has_bfloat16():  # older compilers don't know newer processors by name
        flags += [f"-m{name.replace('_', '')}" for name in _AVX512]
    flags += definitions
    machine = " ".join((platform.machine(), *sorted(_processor_flags())))
    sources = [(_FOLDER / name).read_text(encoding="utf-8") for name in files]
    words = (VERSION, compiler, *flags, machine, *sources)
    name = hashlib.sha256("\0".join(words).encode()).hexdigest()[:24]
    library = _cache() / f"{name}.so"
    try:
        if not library.exists():
            _compile([compiler, *flags], _FOLDER / files[0], library)
        return ctypes.CDLL(str(library))
    except OSError as error:
        raise Unavailable(f"the compiled kernel cannot be used: {error.strerror or error}") from None


def _compile(command: list[str], source: Path, library: Path) -> None:
    """Compile into place at once, so that several processes may do so at a time."""
    say_once("note: compiling the fast kernel for this processor; once, about 10 seconds")
    library.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=library.parent) as folder:
        staged = Path(folder) / library.name
        ran = subprocess.run([*command, "-o", str(staged), str(source)], capture_output=True, text=True)
        if ran.returncode:
            reason = next((line for line in ran.stderr.splitlines() if "error" in line), "no reason given")
            raise Unavailable(f"{command[0]} could not compile the fast kernel: {reason}")
        staged.replace(library)


def _declare(library: ctypes.CDLL) -> ctypes.CDLL:
    pointer: Any = ctypes.c_void_p
    number: Any = ctypes.c_int
    library.nca_rule.restype = pointer
    library.nca_rule.argtypes = [number] * 4 + [pointer] * 8
    library.nca_mappings.argtypes = [pointer, number] + [pointer] * 8 + [number] + [pointer] * 2
    library.nca_free.argtypes = [pointer]
    library.nca_run.argtypes = [pointer, pointer] + [number] * 6 + [pointer] * 8 + [number] * 2
    library.nca_forward.argtypes = [*library.nca_run.argtypes, pointer, pointer]
    library.nca_history.restype = ctypes.c_int64
    library.nca_history.argtypes = [pointer] + [number] * 4
    library.nca_backward.argtypes = [*library.nca_run.argtypes, pointer, pointer, pointer]
    library.nca_fire.argtypes = [pointer] * 2 + [number] * 4 + [ctypes.c_uint64] + [pointer] * 2 + [number]
    return library


def _declare_attention(library: ctypes.CDLL) -> ctypes.CDLL:
    pointer: Any = ctypes.c_void_p
    number: Any = ctypes.c_int
    long: Any = ctypes.c_int64
    given = [pointer] * 3 + [long, pointer, long] + [number] * 4
    library.neighbours_attend.argtypes = [*given, number, pointer, pointer, number]
    library.neighbours_attend.restype = None
    library.neighbours_gradients.argtypes = [*given, *[pointer] * 5, number]
    library.neighbours_gradients.restype = None
    return library
