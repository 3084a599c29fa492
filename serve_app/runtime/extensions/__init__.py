"""Kinds of extension of a base model: LoRA, and in time others, one file and registry line each."""
