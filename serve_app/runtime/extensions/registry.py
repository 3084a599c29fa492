"""The kinds of extension that a model can have: one line each."""

from collections.abc import Mapping
from typing import Any

from serve_app.core.diffusion.extensions import LORA
from serve_app.runtime.extensions.contract import ExtensionKind
from serve_app.runtime.extensions.lora import LoraKind

ExtensionKinds = Mapping[str, ExtensionKind[Any]]

EXTENSION_KINDS: ExtensionKinds = {
    LORA: LoraKind(),
}
