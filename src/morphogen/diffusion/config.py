"""The settings of a diffusion: how noise grows over time, what is predicted, which loss trains it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

ScheduleName = Literal["cosine", "linear", "scaled_linear", "sigmoid"]
Output = Literal["noise", "v", "clean", "edm"]
LossOn = Literal["noise", "v", "clean"]
Loss = Literal["mse", "l1", "mse+l1", "huber", "mse+vb"]
Variance = Literal["fixed", "learned"]


class DiffusionConfig(BaseModel):
    """A model carries these, because its weights make sense only under them."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    timesteps: int = Field(300, ge=2, le=10_000, description="T: timesteps are 0..T-1")
    schedule: ScheduleName = Field("cosine", description="how the noise level grows with the timestep")
    output: Output = Field(
        "noise",
        description="what the network puts out: the noise, v, the clean image, or what EDM's preconditioning makes the "
        "clean image of",
    )
    loss_on: LossOn = Field("noise", description="what the error is taken on, whatever the network puts out")
    loss: Loss = Field("mse+l1", description="how the error is measured")
    sigma_data: float = Field(
        0.5, gt=0, le=100, description="standard deviation of the images' values, which EDM's preconditioning uses"
    )
    variance: Variance = Field(
        "fixed", description="of an ancestral step: fixed, or learned, which the loss mse+vb trains (models that can)"
    )

    @model_validator(mode="before")
    @classmethod
    def _one_name_for_both(cls, values: object) -> Any:
        """Read `predict`, which stood for output and loss_on together in files of version 0.1."""
        if not isinstance(values, Mapping) or "predict" not in values:
            return values
        predict = values["predict"]
        if predict not in ("noise", "v"):
            raise ValueError(f"predict is {predict!r}; it should be noise or v, or better: set output and loss_on")
        return {**{k: v for k, v in values.items() if k != "predict"}, "output": predict, "loss_on": predict}

    @model_validator(mode="after")
    def _variance_is_trained(self) -> DiffusionConfig:
        if (self.variance == "learned") != (self.loss == "mse+vb"):
            raise ValueError(
                f"variance is {self.variance} and loss is {self.loss}; learned and mse+vb go together, and only they"
            )
        return self
