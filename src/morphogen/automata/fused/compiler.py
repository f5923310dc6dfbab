"""Compiling the kernels: which there are, for which processors, by which compiler. The wheel's build reads this file by
itself, so it needs nothing but Python.
"""

from __future__ import annotations

import functools
import hashlib
import os
import platform
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

FOLDER = Path(__file__).parent
COMPILED = FOLDER / "compiled"  # where a wheel has them
CHECKSUM = 16  # letters of the SHA-256 that a library's name ends in
_FLAGS = ("-std=c++17", "-O2", "-ffp-contract=off", "-fvisibility=hidden", "-shared", "-fPIC", "-pthread")
_AVX512 = ("avx512f", "avx512bw", "avx512dq", "avx512vl", "avx512_bf16")


SLOWER = "it takes 4 to 10 times as long without"
_INSTALL = {
    "debian": "apt-get install g++",
    "fedora": "dnf install gcc-c++",
    "rhel": "dnf install gcc-c++",
    "suse": "zypper install gcc-c++",
    "arch": "pacman -S gcc",
    "alpine": "apk add g++",
}


def how_to_install() -> str:
    """How to get a C++ compiler on this system."""
    if sys.platform == "darwin":
        return "to install a compiler: xcode-select --install"
    if sys.platform == "win32":
        return "the kernel needs Linux or macOS; WSL has it"
    try:
        facts = platform.freedesktop_os_release()
    except OSError:
        facts = {}
    for system in (facts.get("ID", ""), *facts.get("ID_LIKE", "").split()):
        if system in _INSTALL:
            return f"to install one: {_INSTALL[system]}"
    return "to install one: your system's package of g++ or clang++"


class Unavailable(Exception):
    """Why the kernel cannot be used here, in words for the user."""


class NoCompiler(Unavailable):
    """Nothing is compiled here, and there is no compiler. named: what was looked for."""

    def __init__(self, named: str) -> None:
        super().__init__(f"there is no C++ compiler ({named}); {SLOWER}; {how_to_install()}")


@dataclass(frozen=True)
class Kernel:
    """A library to be compiled: its source, the headers that it includes, and what is defined."""

    name: str
    files: tuple[str, ...]
    definitions: tuple[str, ...] = ()

    def digest(self) -> str:
        """A hash of the sources and the flags, in twelve letters."""
        sources = [(FOLDER / name).read_bytes() for name in self.files]
        return hashlib.sha256(b"\0".join([*sources, *map(str.encode, (*_FLAGS, *self.definitions))])).hexdigest()[:12]


@dataclass(frozen=True)
class Variant:
    """Instructions that a kernel is compiled for. needs: flags of the processor, as Linux names them."""

    name: str
    flags: tuple[str, ...]
    machines: tuple[str, ...] = ()
    needs: tuple[str, ...] = ()
    bfloat16: bool = False

    def runs_here(self) -> bool:
        """Whether this processor has them."""
        return platform.machine().lower() in self.machines and set(self.needs) <= processor_flags()


_RULE = ("kernel.cpp", "abi.h", "products.h", "rule.h", "forward.h", "backward.h")
KERNELS = {
    "rule-float32": Kernel("rule-float32", _RULE, ("-DNCA_FLOAT32",)),
    "rule-bfloat16": Kernel("rule-bfloat16", _RULE),
    "attention": Kernel("attention", ("attention.cpp", "abi.h", "products.h"), ("-DNCA_FLOAT32",)),
}
_X86, _ARM = ("x86_64", "amd64"), ("aarch64", "arm64")
# What wheels hold, the best first.
VARIANTS = (
    Variant(
        "avx512",
        ("-mavx2", "-mfma", *(f"-m{name.replace('_', '')}" for name in _AVX512)),
        _X86,
        ("avx2", "fma", *_AVX512),
        bfloat16=True,
    ),
    Variant("avx2", ("-mavx2", "-mfma"), _X86, ("avx2", "fma")),
    Variant("neon", (), _ARM),
)


@functools.cache
def processor_flags() -> frozenset[str]:
    """The instruction sets of the processor, as Linux names them; empty on other systems."""
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:
        return frozenset()
    line = next((line for line in text.splitlines() if line.startswith(("flags", "Features"))), ":")
    return frozenset(line.split(":", 1)[1].split())


@functools.cache
def native() -> Variant:
    """Everything that this processor has, for what is compiled where it runs."""
    has_bfloat16 = set(_AVX512) <= processor_flags()
    # Older compilers don't know newer processors by name.
    flags = ("-march=native", *(f"-m{name.replace('_', '')}" for name in _AVX512 if has_bfloat16))
    return Variant("native", flags, bfloat16=has_bfloat16)


def compiler() -> str:
    """The C++ compiler: $CXX, or c++, g++ or clang++. Raises NoCompiler if there is none."""
    named = os.environ.get("CXX")
    for name in [named] if named else ["c++", "g++", "clang++"]:
        found = shutil.which(name)
        if found:
            return found
    raise NoCompiler(named or "c++, g++ or clang++")


@functools.cache
def compiler_version(path: str) -> str:
    """The first line that a compiler says of itself."""
    try:
        ran = subprocess.run([path, "--version"], capture_output=True, text=True, errors="replace", timeout=60)
    except (OSError, subprocess.SubprocessError):
        return ""
    return (ran.stdout.splitlines() or [""])[0]


def compile_kernel(kernel: Kernel, variant: Variant, out: Path, extra: tuple[str, ...] = ()) -> None:
    """Compile into a file. Raises Unavailable, with the compiler's own reason, where that fails."""
    if sys.platform == "win32":
        raise Unavailable(f"the fast kernel needs GCC or Clang, which Windows has not; {SLOWER}; {how_to_install()}")
    path = compiler()
    flags = (*_FLAGS, *variant.flags, *kernel.definitions, *extra)
    command = [path, *flags, "-o", str(out), str(FOLDER / kernel.files[0])]
    ran = subprocess.run(command, capture_output=True, text=True, errors="replace")
    if ran.returncode:
        reason = next((line for line in ran.stderr.splitlines() if "error" in line), "no reason given")
        raise Unavailable(f"{path} could not compile the fast kernel: {reason}")
