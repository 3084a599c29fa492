"""Write `serve_app/config/serve_schema.json` from the schema of the Ray Serve that is installed.

Run it after every change of Ray: `python scripts/generate_serve_schema.py`. The result is a JSON
Schema that refuses unknown keys, which Serve itself ignores, so that `aura` can check a serve
config without Ray. A test compares the file with what this script makes.
"""

import json
from pathlib import Path
from typing import Any

from ray.serve.schema import ServeDeploySchema

FILE = Path(__file__).parents[1] / "serve_app" / "config" / "serve_schema.json"
_PROSE = {"title", "description", "default"}
_NULL = {"type": "null"}
_PORT = {"minimum": 1, "maximum": 65535}
_CHECKED_BY_RAY: dict[
    tuple[str, str], dict[str, Any]
] = {  # in validators, which a JSON Schema does not show
    ("HTTPOptionsSchema", "port"): _PORT,
    ("gRPCOptionsSchema", "port"): _PORT,
    ("ServeApplicationSchema", "name"): {"minLength": 1},
    ("ServeApplicationSchema", "autoscaling_policy"): {
        "anyOf": [{"$ref": "#/$defs/AutoscalingPolicy"}, _NULL]
    },
    ("ControllerOptions", "runtime_env"): {
        "anyOf": [{"type": "object", "properties": {"env_vars": {"type": "object"}}}, _NULL]
    },
    ("DeploymentSchema", "num_replicas"): {
        "anyOf": [
            {"type": "integer", "exclusiveMinimum": 0},
            {"type": "string", "enum": ["auto"]},
            _NULL,
        ]
    },
    ("DeploymentSchema", "max_replicas_per_node"): {"minimum": 1, "maximum": 100},
    ("TracingConfig", "sampling_ratio"): {"minimum": 0, "maximum": 1},
}
_REFUSED_BY_RAY = {("ServeApplicationSchema", "host"), ("ServeApplicationSchema", "port")}


def generate() -> dict[str, Any]:
    """Return the schema."""
    schema = ServeDeploySchema.model_json_schema()
    for section, key in _REFUSED_BY_RAY:
        del schema["$defs"][section]["properties"][key]
    for (section, key), checks in _CHECKED_BY_RAY.items():
        properties = schema["$defs"][section]["properties"]
        properties[key] = checks if "anyOf" in checks else properties[key] | checks
    strict: dict[str, Any] = _strict(schema, schema["$defs"])
    return strict


def _strict(node: Any, defs: dict[str, Any]) -> Any:
    """Return a node without prose, whose sections refuse unknown keys."""
    if isinstance(node, list):
        return [_strict(part, defs) for part in node]
    if not isinstance(node, dict):
        return node
    node = {
        key: {name: _strict(part, defs) for name, part in value.items()}
        if key in ("properties", "$defs")
        else _strict(value, defs)
        for key, value in node.items()
        if key not in _PROSE
    }
    if "properties" in node:
        node["additionalProperties"] = False
    if "anyOf" in node:
        node["anyOf"] = _most_specific(node["anyOf"], defs)
        if len(node["anyOf"]) == 1:
            return node["anyOf"][0]
    return node


def _most_specific(options: list[dict[str, Any]], defs: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the options without those that Ray parses into another option.

    These are a plain object or string beside the section or enumeration that it stands for.
    """
    referred = {
        defs[option["$ref"].rpartition("/")[2]]["type"] for option in options if "$ref" in option
    }
    return [option for option in options if option.get("type") not in referred]


if __name__ == "__main__":
    FILE.write_text(json.dumps(generate(), indent=1) + "\n")
