"""What was written beside a LoRA's tensors: by how much its products are scaled.

peft puts it into `adapter_config.json`, and diffusers, for each network, into the metadata of the
file. Trainers that do neither put an alpha beside each layer, or leave it at the rank. No torch.
"""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from serve_app.core.errors import CheckpointError
from serve_app.runtime.checkpoints.model_layers import NETWORKS
from serve_app.runtime.checkpoints.network_folder import read_json

PEFT_FILE, PEFT_CONFIG = "adapter_model.safetensors", "adapter_config.json"
DIFFUSERS_FILE = "pytorch_lora_weights.safetensors"
_METADATA = "lora_adapter_metadata"  # diffusers' key, whose value is JSON


@dataclass(frozen=True, slots=True)
class LoraConfig:
    """The scale of a network's layers: alpha / rank, or alpha / sqrt(rank)."""

    alpha: float
    alpha_pattern: Mapping[str, float] = field(default_factory=dict)  # of some, by peft's patterns
    use_rslora: bool = False  # whether it is divided by the root of the rank

    def alpha_of(self, layer: str) -> float:
        """Return the alpha of a layer, as `peft.utils.get_pattern_key` chooses it."""
        for pattern, alpha in self.alpha_pattern.items():
            if re.match(rf"(.*\.)?({pattern})$", layer):
                return alpha
        return self.alpha


LoraConfigs = Mapping[str, LoraConfig]  # by network


def read_lora_configs(path: Path, metadata: Mapping[str, str]) -> LoraConfigs:
    """Return the configs of a LoRA file, or none. Raises `CheckpointError` for an unreadable one.

    An adapter_config.json counts when it is beside peft's own file, or its folder has no other.
    """
    if _METADATA in metadata:
        try:
            values = json.loads(metadata[_METADATA])
            by_network = {
                network: {
                    key.removeprefix(f"{network}."): value
                    for key, value in values.items()
                    if key.startswith(f"{network}.")
                }
                for network in NETWORKS
            }
            return {name: _read(values) for name, values in by_network.items() if values}
        except (AttributeError, TypeError, ValueError, re.error):
            raise CheckpointError(f"has unreadable metadata ({_METADATA})") from None
    if not (path.parent / PEFT_CONFIG).is_file():
        return {}
    if path.name != PEFT_FILE and len(list(path.parent.glob(f"*{path.suffix}"))) > 1:
        return {}
    values = read_json(path.parent, PEFT_CONFIG)
    try:
        return dict.fromkeys(NETWORKS, _read(values))
    except (AttributeError, TypeError, ValueError, re.error):
        raise CheckpointError(f"has an unreadable {PEFT_CONFIG} beside it") from None


def _read(values: Mapping[str, Any]) -> LoraConfig:
    """Return the config that peft wrote; LoHa and LoKr call their alpha so."""
    alpha = values.get("lora_alpha", values.get("alpha", values.get("r")))
    patterns = {
        str(key): float(value) for key, value in (values.get("alpha_pattern") or {}).items()
    }
    for pattern in patterns:
        re.compile(pattern)
    return LoraConfig(float(alpha), patterns, bool(values.get("use_rslora")))
