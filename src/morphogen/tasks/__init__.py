"""The uses of a trained model: Pipeline, and one short function a task over a denoiser and a sampler."""
