"""The demo: scenes of plain shapes, a checkpoint that draws them, and a reader that checks them.

No Ray, no HTTP. The checkpoint is two ordinary diffusers folders.
"""
