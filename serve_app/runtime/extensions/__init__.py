"""Kinds of extension of a base model: LoRA, and in time others, each in a file of its own."""
