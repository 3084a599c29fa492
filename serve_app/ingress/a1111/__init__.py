"""The A1111 door: the API of AUTOMATIC1111's Stable Diffusion web UI."""
