"""Weights from a model hub: what is there, which files are needed, fetched whole and verified.

Knows no torch, no Ray, no terminal. huggingface_hub is imported where it is spoken to, since it
reads HF_ENDPOINT, HF_HOME and its other settings as it is imported.
"""
