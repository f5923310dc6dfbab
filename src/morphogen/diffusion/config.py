"""The settings of a diffusion: how noise grows over time, what is predicted, which loss trains it."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

ScheduleName = Literal["cosine", "linear", "scaled_linear", "sigmoid"]
Target = Literal["noise", "v"]
Loss = Literal["mse", "l1", "mse+l1", "huber", "mse+vb"]
Variance = Literal["fixed", "learned"]


class DiffusionConfig(BaseModel):
    """A model carries these, because its weights make sense only under them."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    timesteps: int = Field(300, ge=2, le=10_000, description="T: timesteps are 0..T-1")
    schedule: ScheduleName = Field("cosine", description="how the noise level grows with the timestep")
    predict: Target = Field("noise", description="what the network puts out; v is converted to noise")
    loss: Loss = Field("mse+l1", description="what training minimises, over the network's own target")
    variance: Variance = Field(
        "fixed", description="of an ancestral step: fixed, or learned, which the loss mse+vb trains (models that can)"
    )

    @model_validator(mode="after")
    def _variance_is_trained(self) -> DiffusionConfig:
        if (self.variance == "learned") != (self.loss == "mse+vb"):
            raise ValueError(
                f"variance is {self.variance} and loss is {self.loss}; learned and mse+vb go together, and only they"
            )
        return self
