"""`GeminiClient`: calls of `generateContent` over HTTPS, each bounded in time and size.

The key is in a header alone. No redirect is followed, which would carry it elsewhere, and no proxy
variable of the environment is read, which would show it to whoever set that.
"""

import asyncio
import random

import httpx2

from serve_app import __version__
from serve_app.cloud.gemini_errors import RETRIABLE, TOO_MANY, error_of, retry_seconds
from serve_app.cloud.gemini_options import GeminiOptions
from serve_app.core.cloud_errors import WastedCall
from serve_app.core.errors import AuraError, UpstreamError
from serve_app.core.service.metrics import CLOUD_CALLS, Meter

_MAX_ANSWER = 96 << 20  # bytes; a 4K image in base64 has some 30 MiB at most
_MAX_ERROR = 64 << 10  # bytes that are read of an error


class CloudBusy(Exception):
    """The cloud takes no more calls now; `seconds` if it says until when."""

    def __init__(self, seconds: int | None) -> None:
        super().__init__("the cloud takes no more calls")
        self.seconds = seconds


class _MayRetry(Exception):
    """A call that failed before it can have cost anything."""

    def __init__(self, error: AuraError) -> None:
        super().__init__(str(error))
        self.error = error


class GeminiClient:
    """The connections of one process to the Gemini API, kept between calls."""

    def __init__(self, options: GeminiOptions, meter: Meter) -> None:
        self._options = options
        self._meter = meter
        self._http = httpx2.AsyncClient(
            trust_env=False,
            follow_redirects=False,
            timeout=httpx2.Timeout(options.read_timeout_s, connect=options.connect_timeout_s),
            limits=httpx2.Limits(max_connections=options.max_calls),
        )

    async def generate(self, body: bytes) -> bytes:
        """Return what the model answers to a request's JSON.

        Cancelling it closes the connection. Raises `CloudBusy`, `UpstreamError`, which is a
        `WastedCall` where no call is made again, or `ModelUnavailable` if the operator must act.
        """
        for attempt in range(self._options.retries):
            try:
                return await self._call(body)
            except _MayRetry:
                pause = self._options.retry_pause_s * 2**attempt
            await asyncio.sleep(pause * random.uniform(0.75, 1.25))
        try:
            return await self._call(body)
        except _MayRetry as failure:
            raise failure.error from None

    async def close(self) -> None:
        """Close the connections."""
        await self._http.aclose()

    async def _call(self, body: bytes) -> bytes:
        """Return the answer of one call, and record how it ended unless it is cancelled."""
        try:
            answer = await self._send(body)
        except CloudBusy:
            self._meter.record(CLOUD_CALLS, outcome="busy")
            raise
        except (AuraError, _MayRetry):
            self._meter.record(CLOUD_CALLS, outcome="failed")
            raise
        self._meter.record(CLOUD_CALLS, outcome="answered")
        return answer

    async def _send(self, body: bytes) -> bytes:
        options = self._options
        try:
            async with (
                asyncio.timeout(options.timeout_s),
                self._http.stream(
                    "POST",
                    options.generate_url,
                    content=body,
                    headers={
                        "Content-Type": "application/json",
                        "Accept-Encoding": "identity",  # what is short must not unfold to much
                        "User-Agent": f"aura-serve/{__version__}",
                        **options.headers,
                    },
                ) as response,
            ):
                status = response.status_code
                content = await _read(response, _MAX_ANSWER if status == 200 else _MAX_ERROR)
        except (httpx2.ConnectError, httpx2.ConnectTimeout):
            raise _MayRetry(UpstreamError("the cloud can't be reached")) from None
        except (TimeoutError, httpx2.TimeoutException):
            raise WastedCall(f"the cloud did not answer in {options.timeout_s:g} s") from None
        except httpx2.HTTPError:
            raise WastedCall("the connection to the cloud broke") from None
        if status == 200:
            if content is None:
                raise WastedCall("the cloud's answer is too long")
            return content
        if status == TOO_MANY:
            raise CloudBusy(retry_seconds(response.headers.get("retry-after"), content or b""))
        error = error_of(status, content or b"")
        raise _MayRetry(error) if status in RETRIABLE else error


async def _read(response: httpx2.Response, limit: int) -> bytes | None:
    """Return the body of a response; None if it is longer than `limit` bytes."""
    content = bytearray()
    async for piece in response.aiter_bytes():
        content += piece
        if len(content) > limit:
            return None
    return bytes(content)
