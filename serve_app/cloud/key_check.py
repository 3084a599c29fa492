"""Whether Gemini takes a key and has a model, found out by a call that costs nothing."""

from dataclasses import dataclass

import httpx2

from serve_app.cloud.gemini_options import GeminiOptions

_TIMEOUT_S = 5.0


@dataclass(frozen=True, slots=True)
class KeyResponse:
    """What the description of the model was answered with; no status without a response."""

    status: int | None
    problem: str = ""  # why there is none


def probe(options: GeminiOptions) -> KeyResponse:
    """Get the model's description with the key, from the configured address and nowhere else."""
    try:
        with httpx2.Client(trust_env=False, follow_redirects=False, timeout=_TIMEOUT_S) as client:
            return KeyResponse(client.get(options.model_url, headers=options.headers).status_code)
    except httpx2.TimeoutException:
        return KeyResponse(None, f"there is no answer within {_TIMEOUT_S:g} s")
    except httpx2.HTTPError as error:
        return KeyResponse(None, type(error).__name__)
