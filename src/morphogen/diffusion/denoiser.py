"""A model that predicts the noise in a noisy image, and what follows from that alone: training and generating."""

from __future__ import annotations

import torch
from torch import Tensor

from morphogen.core.errors import InputError
from morphogen.core.evaluation import Evaluation
from morphogen.core.keys import Key
from morphogen.core.model import Batch, Callback
from morphogen.core.random import Purpose
from morphogen.core.request import SamplingRequest
from morphogen.diffusion import condition, objective
from morphogen.diffusion.predictor import NoisePredictor
from morphogen.diffusion.request import resolve
from morphogen.diffusion.sampling import sample


class Denoiser(NoisePredictor):
    """Base of the denoisers: a subclass implements `evaluate`, and training and sampling are the same for all."""

    def hide_labels(self, labels: Tensor, key: Key) -> Tensor:
        """Rows (B, K) as training shows them to the model, some of them hidden."""
        return labels

    def training_loss(self, batch: Batch, key: Key) -> Tensor:
        images, maps = batch.images, None if batch.maps is None else self.grid_maps(batch.maps)
        t = objective.draw_timesteps(self.diffusion, key, images.device)
        noise = key.normals(Purpose.TRAINING_NOISE, images.shape[1], (images.shape[2], images.shape[3]), images.device)
        x = objective.add_noise(self.diffusion, images, noise, t)
        labels = None
        if batch.labels is not None and self.labels.names:
            self.check_labels(batch.labels, len(images))
            labels = self.hide_labels(batch.labels, key)
        seen = objective.network_input(self.diffusion, x, t)
        told = None if self.condition is None else condition.in_training(self.condition, images, key, maps)
        prediction = self.evaluate(seen, t, Evaluation(key, labels, condition=told))
        output = prediction.noise.float()
        loss = objective.prediction_error(self.diffusion, output, images, noise, x, t)
        if prediction.variance is not None:
            loss = loss + objective.variational_bound(
                self.diffusion, images, x, t, output.detach(), prediction.variance.float()
            )
        return loss

    def generate(
        self,
        key: Key,
        size: tuple[int, int] | None = None,
        request: SamplingRequest = SamplingRequest(),
        labels: Tensor | None = None,
        callback: Callback | None = None,
        maps: Tensor | None = None,
    ) -> Tensor:
        if self.condition is not None and self.condition.has_picture:
            raise InputError(
                f"this {self.family} is a level of a pyramid and is told what the level before has painted; name the "
                "run of all levels"
            )
        grid = self.grid_size(size)
        told = None
        if maps is not None:
            self.check_maps(maps, len(key), size)
            assert self.condition is not None
            told = condition.of_map(
                self.condition, self.grid_maps(maps), torch.empty(len(key), 1, *grid, device=self.device)
            )
        images = sample(
            self,
            key,
            grid,
            request,
            labels=labels,
            clip=self.latents is None,
            callback=callback,
            condition=told,
        )
        return self.to_pixels(images)

    def resolve(self, request: SamplingRequest) -> SamplingRequest:
        return resolve(request, self)
