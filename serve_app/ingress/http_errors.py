"""Errors that only HTTP has: keys, hosts, origins, bodies and idempotency keys."""

from serve_app.core.errors import CallerError


class Unauthorized(CallerError):
    """An API key is required, and is missing or wrong."""

    code = "UNAUTHORIZED"


class ForbiddenOrigin(CallerError):
    """A browser page whose origin is not on the list sent the request."""

    code = "FORBIDDEN_ORIGIN"


class ForbiddenHost(CallerError):
    """The Host header is not on the list, which may mean DNS rebinding."""

    code = "FORBIDDEN_HOST"


class InvalidJson(CallerError):
    """The body is not JSON that can be read in only one way."""

    code = "INVALID_JSON"


class BodyTimeout(CallerError):
    """The next piece of the body did not arrive in time."""

    code = "REQUEST_TIMEOUT"


class PayloadTooLarge(CallerError):
    """The body is longer than `limit` bytes."""

    code = "PAYLOAD_TOO_LARGE"

    def __init__(self, limit: int) -> None:
        super().__init__(f"the body is over the limit of {limit / 2**20:g} MiB")


class InvalidEncoding(CallerError):
    """The body is not what its Content-Encoding says."""


class UnsupportedMediaType(CallerError):
    """The route does not take a body of this media type or content coding."""

    code = "UNSUPPORTED_MEDIA_TYPE"


class NotAcceptable(CallerError):
    """The Accept header allows nothing that the request could return."""

    code = "NOT_ACCEPTABLE"


class IdempotencyConflict(CallerError):
    """The Idempotency-Key was used before with another body."""

    code = "IDEMPOTENCY_CONFLICT"
