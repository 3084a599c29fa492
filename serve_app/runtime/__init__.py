"""Everything that runs on torch and diffusers: checkpoints, networks, memory, and the engine.

No Ray, no HTTP: it runs in a test, on a laptop or on a bare GPU alike.
"""
