"""The folder of a tokenizer, checked without loading it. No torch, no transformers."""

from pathlib import Path

from serve_app.core.errors import CheckpointError
from serve_app.runtime.checkpoints.network_folder import read_json

_WHOLE = "tokenizer.json"
_VOCABULARY, _MERGES = "vocab.json", "merges.txt"
_OPTIONS = ("tokenizer_config.json", "special_tokens_map.json")
TOKENIZER_FILES = (_WHOLE, _VOCABULARY, _MERGES, *_OPTIONS)  # those that are read


def check_tokenizer(folder: Path, vocab_size: int) -> None:
    """Check that a CLIP tokenizer has its files, and no more tokens than its text encoder.

    Raises `CheckpointError`.
    """
    present = {file.name for file in folder.iterdir() if file.is_file()}
    name = folder.name
    if _WHOLE not in present:
        for needed in (_VOCABULARY, _MERGES):
            if needed not in present:
                raise CheckpointError(f"lacks {name}/{needed}")
    for options in (_WHOLE, *_OPTIONS):
        if options in present:
            read_json(folder.parent, f"{name}/{options}")
    if _VOCABULARY in present:
        tokens = read_json(folder.parent, f"{name}/{_VOCABULARY}").values()
        if not all(type(token) is int and 0 <= token < vocab_size for token in tokens):
            raise CheckpointError(
                f"has a {name}/{_VOCABULARY} with other tokens than its text encoder, which has "
                f"{vocab_size}"
            )
