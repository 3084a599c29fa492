"""How a call of a cloud can end that no program should make again by itself: it costs money."""

from collections.abc import Mapping

from serve_app.core.errors import (
    AuraError,
    DeadlineExceeded,
    ModelUnavailable,
    Overloaded,
    ServiceError,
    UpstreamError,
)


class WastedCall(UpstreamError):
    """A call that may have cost something, or that would end like this again, brought no image."""

    is_final = True


class CallCutOff(DeadlineExceeded):
    """The time was over while a cloud made an image, which may cost something all the same."""

    is_final = True


class BusyAfterCalls(ServiceError):
    """A cloud that took some calls of the job took no more of them."""

    code = Overloaded.code
    is_final = True


class UnavailableAfterCalls(ModelUnavailable):
    """A cloud that took some calls of the job refused others of them."""

    is_final = True


_FINAL: Mapping[type[AuraError], type[AuraError]] = {
    UpstreamError: WastedCall,
    DeadlineExceeded: CallCutOff,
    Overloaded: BusyAfterCalls,
    ModelUnavailable: UnavailableAfterCalls,
}


def after_calls(failure: AuraError) -> AuraError:
    """Return a failure of a job that has made calls which may have cost something.

    Whoever sent the job again would buy those again.
    """
    kind = _FINAL.get(type(failure))
    if kind is None:
        return failure
    return kind(failure.problem, subject=failure.subject, remedy=failure.remedy)
