"""Image diffusion with neural cellular automata."""

from __future__ import annotations

from morphogen._version import VERSION as __version__

__all__ = ["__version__"]
