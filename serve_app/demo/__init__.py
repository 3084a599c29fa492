"""The demo: scenes of plain shapes, a judge that reads them, and the checkpoint that draws them.

Knows no Ray, no HTTP and no engine: what it ships are ordinary diffusers folders.
"""
