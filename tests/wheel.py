"""Build the wheel, install it into an empty environment, and try it as a user would. Run by `make wheel`."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import venv
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def run(*command: str | Path, cwd: Path) -> str:
    """Run a command outside the checkout and give its output; stop with it where the command fails."""
    done = subprocess.run([str(part) for part in command], cwd=cwd, capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"{' '.join(map(str, command))} failed with {done.returncode}:\n{done.stdout}{done.stderr}")
    return done.stdout


def main() -> None:
    """Exit with 0 where the wheel works."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        run(sys.executable, "-m", "build", "--wheel", "--outdir", folder, ROOT, cwd=folder)
        (wheel,) = folder.glob("*.whl")
        venv.create(folder / "empty", with_pip=True)
        scripts = folder / "empty" / ("Scripts" if sys.platform == "win32" else "bin")
        pip = (scripts / "python", "-m", "pip", "--disable-pip-version-check", "install", "--quiet")
        run(*pip, "--constraint", ROOT / "constraints.txt", wheel, cwd=folder)
        version = run(scripts / "morphogen", "--version", cwd=folder).strip()
        run(scripts / "morphogen", "sample", "tissue", "-n", "2", "--out", "pictures", cwd=folder)
        pictures = sorted(p.name for p in (folder / "pictures").iterdir())
        if pictures != ["0.png", "1.png", "grid.png"]:
            sys.exit(f"morphogen sample tissue wrote {pictures}")
        models = json.loads(run(scripts / "morphogen", "models", "--json", cwd=folder))
        print(f"{wheel.name} ({wheel.stat().st_size / 1e6:.2f} MB): {version}, {len(models)} models, samples written")


if __name__ == "__main__":
    main()
