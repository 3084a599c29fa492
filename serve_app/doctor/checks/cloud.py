"""The cloud: whether a key is set, whether Gemini takes it, and what it will be used for.

The model's description is fetched, which costs nothing; no image is made.
"""

import os
from collections.abc import Callable, Iterator, Mapping

from serve_app.cloud.gemini_options import GeminiOptions
from serve_app.cloud.key_check import KeyResponse
from serve_app.config.cloud_model import gemini_options
from serve_app.config.cloud_settings import has_unused_key
from serve_app.config.settings import Settings
from serve_app.doctor.finding import Finding, fail, fine, skip, warn

_CHECK = "cloud"
_OFFLINE = "HF_HUB_OFFLINE"  # by which this machine is told to stay offline


def check_cloud(
    settings: Settings,
    probe: Callable[[GeminiOptions], KeyResponse],
    environ: Mapping[str, str] = os.environ,
) -> Iterator[Finding]:
    """Check the key of the cloud, if there is one."""
    options = gemini_options(settings)
    if options is None:
        if has_unused_key(environ):
            yield fine(
                _CHECK,
                "nothing is sent to a cloud: GEMINI_API_KEY of the environment counts as "
                "AURA_GEMINI_API_KEY alone",
            )
        return
    if environ.get(_OFFLINE, "").lower() in ("1", "true", "on", "yes"):
        yield skip(_CHECK, f"the key is not checked: {_OFFLINE} is set")
        return
    response = probe(options)
    match response.status:
        case 200:
            use = "all images" if settings.is_cloud_default else "images of the model gemini"
            yield fine(
                _CHECK,
                f"Gemini takes the key and has {options.model}, which makes {use}, for money",
            )
        case 404:
            problem = f"GEMINI_MODEL={options.model} is no model that Gemini has for this key"
            yield fail(_CHECK, problem, f"GEMINI_MODEL={Settings().gemini_model}")
        case 400 | 401 | 403:
            problem = f"GEMINI_API_KEY is refused by {options.base_url} ({response.status})"
            yield fail(_CHECK, problem, "GEMINI_API_KEY=")
        case status:
            found = response.problem or f"it answers with status {status}"
            url = options.base_url
            yield warn(_CHECK, f"GEMINI_BASE_URL={url} is of no use now: {found}", f"curl -v {url}")
