"""The notebook of the first hour runs from top to bottom."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

NOTEBOOK = Path(__file__).resolve().parents[1] / "examples" / "first-hour.ipynb"


RUN = """
import sys, nbclient, nbformat
notebook = nbformat.read(sys.argv[1], as_version=4)
nbclient.NotebookClient(notebook, timeout=600, kernel_name="python3").execute()
nbformat.write(notebook, "ran.ipynb")
"""


@pytest.mark.slow
def test_the_first_hour(tmp_path: Path) -> None:
    """In a process of its own, as Jupyter would run it: no cell raises, and the samples are pictures."""
    env = {**os.environ, "HF_HUB_OFFLINE": "1", "IPYTHONDIR": str(tmp_path / "ipython")}
    command = [sys.executable, "-c", RUN, str(NOTEBOOK)]
    ran = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, env=env)
    assert ran.returncode == 0, ran.stderr
    cells = json.loads((tmp_path / "ran.ipynb").read_text(encoding="utf-8"))["cells"]
    pictures = [o for cell in cells for o in cell.get("outputs", []) if "image/png" in o.get("data", {})]
    assert len(pictures) == 5
    assert (tmp_path / "run" / "model.safetensors").exists()


def test_it_is_kept_without_outputs() -> None:
    cells = json.loads(NOTEBOOK.read_text(encoding="utf-8"))["cells"]
    assert not any(cell.get("outputs") for cell in cells)
