"""Build the wheel, install it where only what it asks for can be imported, and try it as a user would: `make wheel`.

Its dependencies are linked from the environment that runs this instead of fetched: PyTorch with its CUDA libraries
takes 5 GB of disk, which a second copy would double.
"""

from __future__ import annotations

import json
import subprocess
import sys
import sysconfig
import tempfile
import venv
from importlib.metadata import Distribution, distribution
from pathlib import Path

import numpy as np
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from PIL import Image

ROOT = Path(__file__).resolve().parents[1]


def run(*command: str | Path, cwd: Path, env: dict[str, str] | None = None) -> str:
    """Run a command outside the checkout and give its output; stop with it where the command fails."""
    done = subprocess.run([str(part) for part in command], cwd=cwd, capture_output=True, text=True, env=env)
    if done.returncode:
        sys.exit(f"{' '.join(map(str, command))} failed with {done.returncode}:\n{done.stdout}{done.stderr}")
    if env is not None and "kernel" in done.stderr:
        sys.exit(f"{' '.join(map(str, command))} said:\n{done.stderr}")
    return done.stdout


def needed(wheel: Distribution) -> dict[str, Distribution]:
    """What the wheel asks for without extras, and what that asks for in turn, by name."""
    found: dict[str, Distribution] = {}
    waiting = [(line, "") for line in wheel.requires or []]
    seen = set()
    while waiting:
        line, extra = waiting.pop()
        requirement = Requirement(line)
        if (line, extra) in seen or (requirement.marker and not requirement.marker.evaluate({"extra": extra})):
            continue
        seen.add((line, extra))
        it = found[canonicalize_name(requirement.name)] = distribution(requirement.name)
        if not requirement.specifier.contains(it.version, prereleases=True):
            sys.exit(f"the wheel asks for {line}, and this environment has {it.version}")
        waiting += [(more, wanted) for more in it.requires or [] for wanted in ("", *requirement.extras)]
    return found


def link(packages: dict[str, Distribution], site: Path) -> None:
    """Link what distributions put into this environment's site-packages into another's."""
    here = Path(sysconfig.get_path("purelib")).resolve()
    for package in packages.values():
        for file in package.files or []:
            top = file.parts[0]
            if top not in ("..", "__pycache__") and (here / top).exists() and not (site / top).exists():
                (site / top).symlink_to(here / top)


def try_kernels(morphogen: Path, folder: Path) -> str:
    """Where no compiler is and nothing was compiled before, the wheel's kernels run, and say nothing; and those for
    several processors make pictures of a seed that are one grey level apart at most.
    """
    (folder / "nowhere").mkdir()
    bare = {"PATH": str(folder / "nowhere"), "HOME": str(folder / "home"), "OMP_NUM_THREADS": "2"}
    found = {
        entry["name"]: entry["found"] for entry in json.loads(run(morphogen, "doctor", "--json", cwd=folder, env=bare))
    }
    for name in ("rule-float32", "attention"):
        if "of this package" not in found[f"kernel {name}"] or found["compiler"] != "none":
            sys.exit(f"without a compiler, the kernel {name} is {found[f'kernel {name}']}")
    kinds = sorted(file.name.split("-")[2] for file in folder.glob("empty/**/compiled/rule-float32-*.so"))
    if "avx512" in kinds and not found["kernel rule-float32"].startswith("avx512"):
        kinds.remove("avx512")  # which this processor has not
    pictures = {}
    for kind in kinds:
        out = folder / f"by-{kind}"
        command = (morphogen, "sample", "tissue", "-n", "1", "--size", "48", "--precision", "float32", "--out", out)
        run(*command, cwd=folder, env={**bare, "MORPHOGEN_KERNEL": kind})
        with Image.open(out / "0.png") as image:
            pictures[kind] = np.asarray(image, dtype=int)
    first, *others = pictures.values()
    if any(np.abs(other - first).max() > 1 for other in others):
        sys.exit(f"the kernels for {' and '.join(kinds)} make other pictures of a seed")
    return f"kernels for {', '.join(kinds)}"


def main() -> None:
    """Exit with 0 where the wheel works."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        run(sys.executable, "-m", "build", "--wheel", "--outdir", folder, ROOT, cwd=folder)
        (wheel,) = folder.glob("*.whl")
        venv.create(folder / "empty", with_pip=True)
        scripts = folder / "empty" / ("Scripts" if sys.platform == "win32" else "bin")
        pip = (scripts / "python", "-m", "pip", "--disable-pip-version-check", "install", "--quiet", "--no-deps")
        run(*pip, wheel, cwd=folder)
        where = "import sysconfig; print(sysconfig.get_path('purelib'))"
        site = Path(run(scripts / "python", "-c", where, cwd=folder).strip())
        (installed,) = site.glob("morphogen-*.dist-info")
        packages = needed(Distribution.at(installed))
        link(packages, site)
        version = run(scripts / "morphogen", "--version", cwd=folder).strip()
        run(scripts / "morphogen", "sample", "tissue", "-n", "2", "--out", "pictures", cwd=folder)
        pictures = sorted(p.name for p in (folder / "pictures").iterdir())
        if pictures != ["0.png", "1.png", "grid.png"]:
            sys.exit(f"morphogen sample tissue wrote {pictures}")
        kernels = "no kernels"
        if not wheel.name.endswith("-any.whl"):
            kernels = try_kernels(scripts / "morphogen", folder)
        models = json.loads(run(scripts / "morphogen", "models", "--json", cwd=folder))
        size = f"{wheel.stat().st_size / 1e6:.2f} MB"
        print(
            f"{wheel.name} ({size}), {len(packages)} packages linked: {version}, {len(models)} models, "
            f"{kernels}, samples written"
        )


if __name__ == "__main__":
    main()
