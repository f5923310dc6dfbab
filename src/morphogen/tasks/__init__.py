"""What a trained model is for: Pipeline, and one short function a task over a denoiser and a sampler."""
