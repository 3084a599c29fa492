"""The findings that a broken set-up must have."""

from collections.abc import Callable

from tests.support.setups import SetUp

Problem = tuple[str, str, str, str]  # check, verdict, message and fix
SLOW: Problem = (
    "device",
    "WARN",
    "the CPU, because torch sees no GPU: SDXL will be slow without a GPU of 12 GB or more, and "
    "faster with fewer steps and smaller images",
    'aura generate "a fox" --steps 12',
)
NO_TOKEN: Problem = (
    "hub",
    "WARN",
    "no Hugging Face token is stored: a gated repository answers 403 until you accept its terms on "
    "its page and log in",
    "hf auth login",
)
Break = Callable[[SetUp], list[Problem]]
