"""`UniqueKeyLoader`: a YAML loader that refuses duplicate keys."""

from typing import Any

import yaml


class UniqueKeyLoader(yaml.SafeLoader):
    """PyYAML's safe loader, which by itself silently keeps the last of two equal keys."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        """Return the mapping of a node. Raises `YAMLError` for a duplicate key."""
        if isinstance(node, yaml.MappingNode):  # PyYAML refuses other nodes tagged as a map
            lines: dict[str, int] = {}
            for key, _ in node.value:
                if not isinstance(key, yaml.ScalarNode):
                    continue
                line = key.start_mark.line + 1
                if first := lines.get(key.value):
                    raise yaml.YAMLError(
                        f"duplicate key {key.value} in line {line}, first in line {first}"
                    )
                lines[key.value] = line
        return super().construct_mapping(node, deep)
