"""The systems that `aura bench serve` measures, one file each, and what they are run with."""
