"""The classes behind the extension kinds of `runtime/checkpoints/extension_kinds.py`."""

from collections.abc import Mapping
from pkgutil import resolve_name
from typing import Any

from serve_app.runtime.checkpoints.extension_kinds import ExtensionKindEntries
from serve_app.runtime.extensions.contract import ExtensionKind

ExtensionKinds = Mapping[str, ExtensionKind[Any]]


def runtime_kinds(entries: ExtensionKindEntries) -> ExtensionKinds:
    """Import the class of each kind, and return one object of each."""
    return {kind: resolve_name(entry.runtime_class)() for kind, entry in entries.items()}
