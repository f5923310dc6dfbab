from __future__ import annotations

import subprocess
import sys

import pytest
from pydantic import ValidationError

from morphogen.data.config import DataConfig


@pytest.mark.parametrize(
    ("given", "size"),
    [(64, (64, 64)), ("64", (64, 64)), ("64x96", (64, 96)), ((8, 4096), (8, 4096)), ([32, 48], (32, 48))],
)
def test_sizes(given: object, size: tuple[int, int]) -> None:
    config = DataConfig.model_validate({"source": "x", "size": given})
    assert config.size == size
    assert DataConfig.model_validate_json(config.model_dump_json()) == config


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("size", 4),
        ("size", "64x"),
        ("size", "10000000000x8"),
        ("size", True),
        ("size", (64, 64, 64)),
        ("source", ""),
        ("fit", "squash"),
        ("background", "whitish"),
        ("downscale", 0.5),
        ("downscale", float("nan")),
        ("mpp", 0),
        ("mpp", float("nan")),
        ("stain_jitter", -0.1),
        ("stain_jitter", 1.5),
        ("max_bad", -1),
        ("fold", -1),
        ("fold", 0),
        ("colour", "cmyk"),
        ("colr", "rgb"),
    ],
)
def test_wrong_settings_are_refused_by_name(field: str, value: object) -> None:
    with pytest.raises(ValidationError, match=field):
        DataConfig.model_validate({"source": "x", field: value})


def test_settings_that_contradict_each_other() -> None:
    with pytest.raises(ValidationError, match="mpp 1 and downscale 2 both say"):
        DataConfig(source="x", mpp=1, downscale=2)
    with pytest.raises(ValidationError, match=r"stain_jitter 0\.1 varies rgb images"):
        DataConfig(source="x", stain_jitter=0.1, colour="gray")


def test_importing_the_configuration_is_light() -> None:
    heavy = "[m for m in ('torch', 'skimage', 'openslide', 'numpy') if m in sys.modules]"
    code = f"import sys, morphogen.data.config as c; c.DataConfig(source='x'); print({heavy})"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "[]"
