"""What the wheel holds beside Python: the kernels, compiled for each kind of processor that they are made for.

Everything else is in pyproject.toml. Where they cannot be compiled, the wheel has none, and they are compiled at the
first use.
"""

from __future__ import annotations

import hashlib
import importlib.util
import os
import platform
import sys
from pathlib import Path
from types import ModuleType

from setuptools import Distribution, setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_py import build_py

FUSED = Path(__file__).parent / "src" / "morphogen" / "automata" / "fused"
# A wheel is for other machines too, whose C++ library may be older.
STATIC = ("-static-libstdc++", "-static-libgcc") if sys.platform == "linux" else ()


def load_compiler() -> ModuleType:
    """automata/fused/compiler.py by itself: the package needs PyTorch."""
    spec = importlib.util.spec_from_file_location("morphogen_compiler", FUSED / "compiler.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # where its dataclasses look for themselves
    spec.loader.exec_module(module)
    return module


class BuildWithKernels(build_py):
    """The package's files, and the compiled kernels."""

    compiled: bool = False

    def run(self) -> None:
        super().run()
        if self.editable_mode or sys.platform == "win32":
            return
        compiler, machine = load_compiler(), platform.machine().lower()
        folder = Path(self.build_lib) / "morphogen" / "automata" / "fused" / "compiled"
        folder.mkdir(parents=True, exist_ok=True)
        for stale in folder.glob("*.so"):
            stale.unlink()
        try:
            for variant in (variant for variant in compiler.VARIANTS if machine in variant.machines):
                for kernel in compiler.KERNELS.values():
                    if kernel.name == "rule-bfloat16" and not variant.bfloat16:
                        continue
                    staged = folder / "kernel.so"
                    compiler.compile_kernel(kernel, variant, staged, STATIC)
                    checksum = hashlib.sha256(staged.read_bytes()).hexdigest()[: compiler.CHECKSUM]
                    staged.rename(folder / f"{kernel.name}-{variant.name}-{kernel.digest()}-{checksum}.so")
        except compiler.Unavailable as reason:
            if os.environ.get("MORPHOGEN_WHEEL") == "compiled":
                raise SystemExit(f"the kernels are to be in the wheel, but {reason}") from None
            for part in folder.glob("*.so"):
                part.unlink()
            self.warn(f"the wheel is made without compiled kernels: {reason}")
        BuildWithKernels.compiled = any(folder.glob("*.so"))


class PlatformWheel(bdist_wheel):
    """A wheel for this kind of machine, and any Python, where kernels are in it."""

    def run(self) -> None:
        self.run_command("build")
        self.root_is_pure = not BuildWithKernels.compiled
        super().run()

    def get_tag(self) -> tuple[str, str, str]:
        tag = super().get_tag()
        return tag if self.root_is_pure else ("py3", "none", tag[2])


class KernelDistribution(Distribution):
    """What is compiled belongs among the files of a platform."""

    def has_ext_modules(self) -> bool:
        return BuildWithKernels.compiled


setup(distclass=KernelDistribution, cmdclass={"build_py": BuildWithKernels, "bdist_wheel": PlatformWheel})
