"""How a call of a cloud can end that no program should make again by itself: it costs money."""

from serve_app.core.errors import DeadlineExceeded, UpstreamError


class WastedCall(UpstreamError):
    """A call that may have cost something, or that would end like this again, brought no image."""

    is_final = True


class CallCutOff(DeadlineExceeded):
    """The time was over while a cloud made the image, which may cost something all the same."""

    is_final = True
