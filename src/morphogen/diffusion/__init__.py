"""Schedules, the training objective and samplers: over the denoiser contract, knowing no model."""
