"""`GeminiOptions`: where Gemini is, by which key, and how much of it may be used at once."""

from dataclasses import dataclass

from pydantic import SecretStr

PROVIDER = "Google"
MODEL_NAME = "gemini"  # of requests; `GeminiOptions.model` is Google's own name
_API = "v1beta"


@dataclass(frozen=True, slots=True)
class GeminiOptions:
    """The configuration of the Gemini API, by value.

    The key is of a type that neither a repr nor a log shows. `timeout_s` is for a whole call,
    `connect_timeout_s` and `read_timeout_s` for its connection and each pause in its response.
    After a failure that can't have cost anything, a call is made again, at most `retries` times.
    """

    api_key: SecretStr
    model: str
    base_url: str
    image_size: str = "1K"
    max_calls: int = 4  # at once
    timeout_s: float = 120.0
    connect_timeout_s: float = 10.0
    read_timeout_s: float = 120.0
    retries: int = 2
    retry_pause_s: float = 0.5  # before the first retry; twice as long before the next one

    @property
    def model_url(self) -> str:
        """The address of the model's description, whose GET costs nothing."""
        return f"{self.base_url}/{_API}/models/{self.model}"

    @property
    def generate_url(self) -> str:
        """The address of the method that makes images."""
        return f"{self.model_url}:generateContent"

    @property
    def headers(self) -> dict[str, str]:
        """The header that carries the key, which must stand nowhere else."""
        return {"x-goog-api-key": self.api_key.get_secret_value()}
