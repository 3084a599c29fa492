"""`aura bench cpu`: ways to run the UNet at full size, and the engine against stock diffusers."""
