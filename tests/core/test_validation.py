"""What a user reads who has mistyped a setting."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import BaseModel, ConfigDict, Field, model_validator

from morphogen.core.errors import InputError
from morphogen.core.validation import table, validate


class Inner(BaseModel):
    model_config = ConfigDict(extra="forbid")

    learning_rate: float = Field(1e-3, gt=0)


class Outer(BaseModel):
    model_config = ConfigDict(extra="forbid")

    steps: int = Field(10, ge=1, le=100)
    training: Inner = Inner()

    @model_validator(mode="after")
    def _odd(self) -> Outer:
        if self.steps == 13:
            raise ValueError("Steps of 13 bring bad luck")
        return self


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"setps": 3}, "where: there is no setting 'setps'; did you mean 'steps'?"),
        ({"colour": 3}, "where: there is no setting 'colour'; known are steps, training"),
        (
            {"training": {"learning_rat": 1}},
            "where: there is no setting 'training.learning_rat'; did you mean 'learning_rate'?",
        ),
        ({"training": {"x": 1}}, "where: there is no setting 'training.x'; known are learning_rate"),
        ({"steps": 101}, "where: steps: input should be less than or equal to 100 (got 101)"),
        (
            {"steps": "many"},
            "where: steps: input should be a valid integer, unable to parse string as an integer (got 'many')",
        ),
        (
            {"training": {"learning_rate": -1.0}},
            "where: training.learning_rate: input should be greater than 0 (got -1.0)",
        ),
        ({"steps": 13}, "where: steps of 13 bring bad luck"),
        ([1], "where should be a table of settings, not [1]"),
        (None, "where should be a table of settings, not None"),
    ],
)
def test_messages(values: Any, message: str) -> None:
    with pytest.raises(InputError) as caught:
        validate(Outer, values, "where")
    assert str(caught.value) == message
    assert caught.value.exit_code == 2


def test_right_values_pass() -> None:
    config = validate(Outer, {"steps": 100, "training": {"learning_rate": 0.5}}, "where")
    assert (config.steps, config.training.learning_rate) == (100, 0.5)
    assert table({"a": 1}, "where", ("a", "b")) == {"a": 1}


def test_unknown_table() -> None:
    with pytest.raises(InputError, match="where: there is no setting 'c'; known are a, b"):
        table({"a": 1, "c": 2}, "where", ("a", "b"))
