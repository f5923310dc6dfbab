"""Baselines behind the same contracts: U-Nets, DiT, latent diffusion and a variational automaton."""
