"""`Loader`: YAML in which a key stands once. Knows no file and no keys."""

from typing import Any

import yaml


class UniqueKeyLoader(yaml.SafeLoader):
    """PyYAML's safe loader, which would take the last of two equal keys without a word."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        """As PyYAML does, but raises `YAMLError` for a key that stood above already."""
        if isinstance(node, yaml.MappingNode):  # what else is tagged as a map, PyYAML refuses
            lines: dict[str, int] = {}
            for key in (one for one, _ in node.value if isinstance(one, yaml.ScalarNode)):
                line = key.start_mark.line + 1
                if key.value in lines:
                    above = lines[key.value]
                    raise yaml.YAMLError(
                        f"{key.value} in line {line} stands in line {above} already"
                    )
                lines[key.value] = line
        return super().construct_mapping(node, deep)
