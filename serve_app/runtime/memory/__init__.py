"""The device and its memory: memory plans, offloading, the cache of loaded models."""
