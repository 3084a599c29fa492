"""Whether a token for the hub lies here, without asking the hub, and without reading it.

Knows nothing of repositories: whether one needs a token is seen when it is fetched.
"""

import os
from pathlib import Path

_VARIABLES = ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN")


def is_logged_in() -> bool:
    """Whether the environment has a token, or `hf auth login` left one."""
    from huggingface_hub import constants

    file = Path(constants.HF_TOKEN_PATH)
    return any(os.environ.get(name) for name in _VARIABLES) or (
        file.is_file() and file.stat().st_size > 0
    )
