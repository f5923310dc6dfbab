"""The compiled kernels: those of the wheel where it has them for this processor, else compiled here, once.

A library's name ends in its checksum, which is verified before it is loaded: a truncated file would end the process.
What was compiled is named by its sources, its flags, the processor and the compiler's version too; if there is no
compiler, what any compiler made is taken.
"""

from __future__ import annotations

import ctypes
import functools
import hashlib
import os
import platform
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, Generic, ParamSpec

from morphogen._version import VERSION
from morphogen.automata.fused.abi import declare
from morphogen.automata.fused.compiler import (
    CHECKSUM,
    COMPILED,
    KERNELS,
    VARIANTS,
    Kernel,
    Unavailable,
    Variant,
    compile_kernel,
    compiler,
    compiler_version,
    native,
    processor_flags,
)
from morphogen.core.cache import cache_folder, is_writable, private_folder
from morphogen.core.errors import InputError
from morphogen.core.files import sha256, sync_folder, write_durably
from morphogen.core.notices import say_once
from morphogen.core.request import Precision

CHOICE = "MORPHOGEN_KERNEL"


def _whole(folder: Path, name: str) -> Path | None:
    """The library of this name whose content is what it was when it was put there, if there is one."""
    for library in sorted(folder.glob(f"{name}-*.so")):
        try:
            if library.stem.endswith(f"-{sha256(library)[:CHECKSUM]}"):
                return library
        except (InputError, OSError):
            continue
        say_once(f"note: the compiled kernel {library} is damaged, and is not used")
    return None


def packaged(kernel: Kernel, variant: Variant) -> Path | None:
    """The library of a kernel in the wheel, if it has it."""
    return _whole(COMPILED, f"{kernel.name}-{variant.name}-{kernel.digest()}")


def chosen_variant() -> Variant:
    """The instructions that kernels use: $MORPHOGEN_KERNEL, else the best that the wheel has for this processor, else
    all that the processor has, compiled here.

    Raises InputError where the variable names something else, or what this processor has not.
    """
    name = os.environ.get(CHOICE)
    if name:
        known = {variant.name: variant for variant in (*VARIANTS, native())}
        if name not in known:
            raise InputError(f"{CHOICE} is {name!r}; it should be one of {', '.join(known)}")
        if name != "native" and not known[name].runs_here():
            raise InputError(f"{CHOICE} is {name!r}, which this processor has not; leave it unset")
        return known[name]
    there = [v for v in VARIANTS if v.runs_here() and packaged(KERNELS["rule-float32"], v)]
    return there[0] if there else native()


def has_bfloat16() -> bool:
    """Whether the kernel multiplies bfloat16 numbers in pairs here (AVX512-BF16)."""
    return chosen_variant().bfloat16


_P = ParamSpec("_P")


class _Once(Generic[_P]):
    """A function whose result is kept, and what it raises too: a compiler that fails is not asked again."""

    def __init__(self, load: Callable[_P, ctypes.CDLL]) -> None:
        self._load = load
        self._found: dict[Any, ctypes.CDLL | Unavailable] = {}
        functools.update_wrapper(self, load)

    def __call__(self, *arguments: _P.args, **named: _P.kwargs) -> ctypes.CDLL:
        if arguments not in self._found:
            try:
                self._found[arguments] = self._load(*arguments, **named)
            except Unavailable as reason:
                self._found[arguments] = reason
        result = self._found[arguments]
        if isinstance(result, Unavailable):
            raise result
        return result

    def cache_clear(self) -> None:
        """Forget everything."""
        self._found.clear()


@_Once
def load_kernel(precision: Precision) -> ctypes.CDLL:
    """The update rule's kernel, compiled at the first use on this machine where need be (some seconds).

    Raises Unavailable, saying why, where that cannot be.
    """
    if precision == "bfloat16" and not has_bfloat16():
        raise Unavailable("this processor has no bfloat16 products (AVX512-BF16)")
    return _load(KERNELS[f"rule-{precision}"])


@_Once
def load_attention() -> ctypes.CDLL:
    """The kernel of the attention to neighbours, likewise."""
    return _load(KERNELS["attention"])


def _load(kernel: Kernel) -> ctypes.CDLL:
    library = find_library(kernel, chosen_variant())
    try:
        return declare(ctypes.CDLL(str(library)))
    except OSError as error:
        raise Unavailable(f"the compiled kernel {library} cannot be used: {error}") from None


def kernel_folder() -> Path:
    """Where compiled kernels can be put: the cache, or where that cannot be written to a folder for the time being.

    Raises OSError if there is neither.
    """
    folder = cache_folder("kernels")
    return folder if is_writable(folder) else private_folder("kernels")


def find_library(kernel: Kernel, variant: Variant) -> Path:
    """A library that can be loaded, compiled if there is none. Raises Unavailable, saying why, where that fails."""
    there = packaged(kernel, variant)
    if there is not None:
        return there
    words = (VERSION, kernel.digest(), *variant.flags, platform.machine(), *sorted(processor_flags()))
    name = f"{kernel.name}-{hashlib.sha256(' '.join(words).encode()).hexdigest()[:16]}"
    try:
        folders = list(dict.fromkeys((cache_folder("kernels"), kernel_folder())))
    except OSError as error:
        raise Unavailable(f"there is no folder to keep the compiled kernel in: {error}") from None
    try:
        path = compiler()
    except Unavailable:
        found = next((there for folder in folders if (there := _whole(folder, name))), None)
        if found is None:
            raise
        return found
    name += "-" + hashlib.sha256(f"{path} {compiler_version(path)}".encode()).hexdigest()[:8]
    for folder in folders:
        if (there := _whole(folder, name)) is not None:
            return there
    if len(folders) > 1:
        say_once(f"note: {folders[0]} cannot be written to; the compiled kernel is kept in {folders[1]}")
    try:
        return _compile_into(folders[-1], name, kernel, variant)
    except OSError as error:
        raise Unavailable(f"the compiled kernel cannot be kept in {folders[-1]}: {error.strerror or error}") from None


def _compile_into(folder: Path, name: str, kernel: Kernel, variant: Variant) -> Path:
    """Compile, and put the whole library into place at once, so that several processes may do so at a time."""
    say_once("note: compiling the fast kernel for this processor; once, about 10 seconds")
    for damaged in folder.glob(f"{name}-*.so"):
        damaged.unlink(missing_ok=True)
    with tempfile.TemporaryDirectory(dir=folder) as made:
        staged = Path(made) / "kernel.so"
        compile_kernel(kernel, variant, staged)
        write_durably(staged, staged.read_bytes())
        library = folder / f"{name}-{sha256(staged)[:CHECKSUM]}.so"
        staged.replace(library)
    sync_folder(folder)
    return library
