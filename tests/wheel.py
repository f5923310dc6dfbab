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

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parents[1]


def run(*command: str | Path, cwd: Path) -> str:
    """Run a command outside the checkout and give its output; stop with it where the command fails."""
    done = subprocess.run([str(part) for part in command], cwd=cwd, capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"{' '.join(map(str, command))} failed with {done.returncode}:\n{done.stdout}{done.stderr}")
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
        models = json.loads(run(scripts / "morphogen", "models", "--json", cwd=folder))
        size = f"{wheel.stat().st_size / 1e6:.2f} MB"
        print(
            f"{wheel.name} ({size}), {len(packages)} packages linked: {version}, {len(models)} models, samples written"
        )


if __name__ == "__main__":
    main()
