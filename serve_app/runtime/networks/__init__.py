"""The networks of a stage: loading, text encoders, denoiser, VAE, LoRA adapters, safety checker."""
