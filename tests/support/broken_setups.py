"""Broken set-ups: each function breaks one and returns all findings that doctor must have."""

from tests.support.broken_checkpoints import BROKEN_CHECKPOINTS, FIXED_CHECKPOINTS
from tests.support.broken_model_lists import BROKEN_MODEL_LISTS, FIXED_MODEL_LISTS
from tests.support.broken_settings import BROKEN_SETTINGS, FIXED_SETTINGS
from tests.support.setup_problems import Break

BROKEN: list[Break] = [*BROKEN_CHECKPOINTS, *BROKEN_MODEL_LISTS, *BROKEN_SETTINGS]
FIXED_AT_ONCE: list[Break] = [*FIXED_CHECKPOINTS, *FIXED_MODEL_LISTS, *FIXED_SETTINGS]
