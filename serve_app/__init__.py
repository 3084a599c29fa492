"""Aura Serve: SDXL base and refiner as separately scaled, step-level batched Ray Serve stages."""

from importlib.metadata import version

__version__ = version("aura-serve")
