"""The work: checkpoints to modules, prompts to embeddings, steps on a device, latents to pixels.

Torch and diffusers live here. Knows no Ray and no HTTP: runs on a laptop, in a test, on a bare GPU.
"""
