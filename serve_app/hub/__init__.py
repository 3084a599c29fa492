"""Weights from a model hub: what a repository holds, which files are needed, a verified download.

No torch, no Ray, no terminal. huggingface_hub is imported inside the functions that use it, because
it reads HF_ENDPOINT, HF_HOME and its other environment variables at import time.
"""
