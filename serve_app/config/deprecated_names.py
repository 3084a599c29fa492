"""Old names that are understood for one release: settings, args and the autoscaling policy.

Code that reads an old name logs a warning that gives the new one.
"""

import logging
from collections.abc import Mapping
from typing import Any

from serve_app.core.capacity.autoscaler import DEPRECATED_TARGET_NAMES

SETTINGS = {
    "RATE_LIMIT": "RATE_LIMIT_MPSTEPS_PER_MINUTE",
    "RATE_BURST": "RATE_BURST_MPSTEPS",
    "MAX_BODY_MB": "MAX_BODY_MIB",
    "SNAPSHOT_EVERY": "SNAPSHOT_INTERVAL_STEPS",
    "IMAGE_COUNT": "DEFAULT_IMAGE_COUNT",
    "PROMPT_MAX_CHARS": "MAX_PROMPT_CHARS",
    "MODELS_IN_MEMORY": "MAX_LOADED_MODELS",
    "LORAS_IN_MEMORY": "MAX_LOADED_LORAS",
}
ARGS = {"both": "combined"}
POLICIES = {
    "serve_app.deployments.autoscaling:OwedWork": (
        "serve_app.deployments.autoscaling:OwedWorkAutoscaler"
    ),
}

_log = logging.getLogger(__name__)


def warn_deprecated(old: str, new: str, *, where: str) -> None:
    """Log that an old name was read, where it was read, and what to write instead."""
    _log.warning("%s: %s is deprecated and will be removed: use %s", where, old, new)


def with_current_keys(
    section: Mapping[Any, Any], renamed: Mapping[str, str], *, where: str
) -> dict[Any, Any]:
    """Return a section with its old keys renamed, and warn of each.

    An old key beside its new one stays, so that validation refuses it as unknown.
    """
    current = {}
    for key, value in section.items():
        new = renamed.get(key)
        if new is None or new in section:
            current[key] = value
        else:
            warn_deprecated(key, new, where=where)
            current[new] = value
    return current


def with_current_names(config: Mapping[str, Any], builder: str, *, where: str) -> dict[str, Any]:
    """Return a serve config with the current names in the applications of a builder.

    What has the wrong type is left alone: validation refuses it.
    """
    applications = config.get("applications")
    if not isinstance(applications, list):
        return dict(config)
    return {
        **config,
        "applications": [
            _application_with_current_names(entry, where)
            if isinstance(entry, dict) and entry.get("import_path") == builder
            else entry
            for entry in applications
        ],
    }


def _application_with_current_names(application: Mapping[str, Any], where: str) -> dict[str, Any]:
    current = dict(application)
    args = current.get("args")
    if isinstance(args, dict):
        args = with_current_keys(args, ARGS, where=where)
        settings = args.get("settings")
        if isinstance(settings, dict):
            args["settings"] = with_current_keys(settings, SETTINGS, where=where)
        current["args"] = args
    policy = current.get("autoscaling_policy")
    if isinstance(policy, dict):
        current["autoscaling_policy"] = _policy_with_current_names(policy, where)
    return current


def _policy_with_current_names(policy: Mapping[str, Any], where: str) -> dict[str, Any]:
    current = dict(policy)
    function = policy.get("policy_function")
    new = POLICIES.get(function) if isinstance(function, str) else None
    if new:
        warn_deprecated(str(function), new, where=where)
        current["policy_function"] = new
    if isinstance(policy.get("policy_kwargs"), dict) and current.get("policy_function") in {
        *POLICIES.values()
    }:
        current["policy_kwargs"] = with_current_keys(
            policy["policy_kwargs"], DEPRECATED_TARGET_NAMES, where=where
        )
    return current
