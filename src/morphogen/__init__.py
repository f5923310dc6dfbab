"""Image diffusion with neural cellular automata: small models that paint any size.

import morphogen
pipeline = morphogen.Pipeline.from_pretrained("tissue")
images = pipeline(seeds=range(4), height=96, width=128).images
run = morphogen.train("my-images", model="diff-nca-small", out="run", minutes=10)
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from morphogen._version import VERSION as __version__

if TYPE_CHECKING:
    from morphogen.metrics.measure import evaluate
    from morphogen.models import create_model, load_model
    from morphogen.tasks.pipeline import Pipeline
    from morphogen.training.run import Run, train

_WHERE = {
    "Pipeline": "morphogen.tasks.pipeline",
    "create_model": "morphogen.models",
    "load_model": "morphogen.models",
    "Run": "morphogen.training.run",
    "evaluate": "morphogen.metrics.measure",
    "train": "morphogen.training.run",
}
__all__ = ["Pipeline", "Run", "__version__", "create_model", "evaluate", "load_model", "train"]


def __getattr__(name: str) -> Any:
    """Import what needs torch only when it is asked for, so that `morphogen --help` answers at once."""
    if name not in _WHERE:
        raise AttributeError(f"module 'morphogen' has no attribute '{name}'")
    import importlib

    return getattr(importlib.import_module(_WHERE[name]), name)
