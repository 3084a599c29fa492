"""The ways an image, or the service that makes it, can fail, as a tree by whose fault it is.

An error has fields, and nothing parses its text: what is wrong (`problem`), with what (`subject`),
what to do about it (`remedy`), and a stable name for programs (`code`). No HTTP status codes: each
door under `ingress/` maps these classes to its own.
"""

from collections.abc import Iterable
from copy import copy
from math import ceil
from typing import Any, Self


class AuraError(Exception):
    """A failure that has a name; `str(error)` may be shown to the person who can act on it.

    `problem` is a clause without a full stop, as in "must be between 0 and 2, got 7". `subject`,
    where there is one, is what it says that of: a field, a setting, a file. `remedy` is a sentence
    or a command. All three survive pickling, so an error may cross processes.
    """

    code: str = "INTERNAL"
    is_final: bool = False  # a retry can't help, though the status of the code suggests one

    def __init__(self, problem: str, *, subject: str = "", remedy: str = "") -> None:
        super().__init__(problem)
        self.problem = problem
        self.subject = subject
        self.remedy = remedy

    def __str__(self) -> str:
        sentence = f"{self.subject} {self.problem}" if self.subject else self.problem
        return f"{sentence}. {self.remedy}" if self.remedy else sentence

    def about(self, subject: str, *, remedy: str = "") -> Self:
        """Return a copy of the same class and problem, for a caller that knows more.

        The copy names another `subject`, as the setting in place of the file that it names. It
        has the given `remedy`, or else keeps its own.
        """
        error = copy(self)
        error.subject = subject
        error.remedy = remedy or self.remedy
        return error

    def __reduce__(self) -> tuple[Any, ...]:
        return _restore, (type(self), self.args, self.__dict__)


def _restore(kind: type[AuraError], args: tuple[Any, ...], fields: dict[str, Any]) -> AuraError:
    """Make a pickled error again, whatever arguments its class takes."""
    error = kind.__new__(kind)
    error.args = args
    error.__dict__.update(fields)
    return error


class CallerError(AuraError):
    """The request is at fault: sending it again unchanged can't help."""

    code = "VALIDATION_ERROR"


class InvalidRequest(CallerError):
    """A field is missing, unknown or out of range.

    `path` is the field's name in the domain (`guidance`), or its name on the wire where only a
    door knows the field; each door shows its callers its own name for it.
    """

    def __init__(self, path: str, problem: str, *, remedy: str = "") -> None:
        super().__init__(problem, subject=path, remedy=remedy)

    @property
    def path(self) -> str:
        """The field, for example `loras.0.weight`."""
        return self.subject


class InvalidImage(CallerError):
    """A base image can't be decoded, or is outside what the service takes."""

    code = "INVALID_IMAGE"


class ModelNotFound(CallerError):
    """No checkpoint has the requested name; the message lists the names there are."""

    code = "MODEL_NOT_FOUND"


def model_not_found(subject: str, available: Iterable[str]) -> ModelNotFound:
    """Return the error for a name that none of the available models or LoRAs has.

    The unknown name is not repeated: it may be a path.
    """
    return ModelNotFound(
        "is unknown",
        subject=subject,
        remedy=f"Available: {', '.join(available)}",
    )


class TermsNotAccepted(CallerError):
    """The operator requires callers to accept the models' licences first; this caller has not."""

    code = "TERMS_NOT_ACCEPTED"


class SafetyBlock(CallerError):
    """A safety filter refused the prompt, or the image that was made from it."""

    code = "SAFETY_BLOCK"


class RateLimited(CallerError):
    """The caller has used up its rate limit, or strikes; after `seconds` it may try again."""

    code = "RATE_LIMITED"

    def __init__(self, seconds: float, problem: str = "your rate limit is used up for now") -> None:
        super().__init__(problem, remedy=f"Try again in {ceil(seconds)} s")
        self.seconds = seconds


class ImageKillsReplica(CallerError):
    """A replica died while it worked on this image alone, after another had died with it."""

    code = "IMAGE_KILLS_REPLICA"
    is_final = True


class ImageTooLarge(CallerError):
    """This image alone does not fit on the device, so asking again can't help."""

    code = "IMAGE_TOO_LARGE_FOR_GPU"


class ServiceError(AuraError):
    """The service is at fault: the same request may succeed later, or elsewhere."""

    code = "OVERLOADED"


class ReplicaLost(ServiceError):
    """The process that worked on the image is gone; the last snapshot can be continued."""

    code = "REPLICA_LOST"


class ProfileChanged(ServiceError):
    """A snapshot was made under another numeric profile: the image must start again."""

    code = "REPLICA_LOST"


class ReplicaUnwell(ProfileChanged):
    """A replica fails its own self-test: its numbers, snapshots included, can't be trusted."""


class OutOfMemory(ServiceError):
    """The device had no memory for a step of this image."""

    code = "OUT_OF_MEMORY"


class ModelUnavailable(ServiceError):
    """A listed model can't be loaded on the replica that needs it; the log says why."""

    code = "MODEL_UNAVAILABLE"


class EngineFault(ServiceError):
    """An engine turn failed; the stack is in the replica's log."""

    code = "INTERNAL"


class Loading(ServiceError):
    """A stage has no replica ready yet."""

    code = "LOADING"


class Draining(ServiceError):
    """The service finishes what it accepted and takes nothing new."""

    code = "DRAINING"


class Overloaded(ServiceError):
    """What was accepted before takes too long; after `retry_after` seconds there should be room."""

    def __init__(self, problem: str, *, retry_after: int = 1) -> None:
        super().__init__(problem)
        self.retry_after = retry_after


class UpstreamError(ServiceError):
    """A cloud that was to make the image failed, or answered with what can't be used."""

    code = "UPSTREAM_ERROR"


class LedgerAway(ServiceError):
    """The ledger can't be reached just now; images without a key are made all the same."""

    code = "LEDGER_UNAVAILABLE"


class LedgerFault(LedgerAway):
    """The ledger's disk or database refuses a call, as a full disk does; another may succeed.

    `problem` and `remedy` name no path and no address, because callers read them.
    """


class LedgerBroken(LedgerFault):
    """No call of the ledger can succeed before its disk or database is mended or back."""


class LedgerDamaged(LedgerBroken):
    """What the ledger's file holds is not what was written to it."""


class DeadlineExceeded(AuraError):
    """The image was not ready within the time its caller allowed.

    The service was slower than predicted when it was accepted, so the same request may succeed.
    """

    code = "DEADLINE_EXCEEDED"


class DeadlineImpossible(DeadlineExceeded):
    """Not even an idle service makes the image within the time its caller allows."""

    is_final = True


class NumericFault(AuraError):
    """The numbers of this image are not finite, on a replica that is well.

    Neither caller nor service did wrong, and the same request ends like this again: at the device's
    precision, this prompt, this guidance or these LoRAs overflow.
    """

    code = "NUMERIC_FAULT"
    is_final = True


class OperatorError(AuraError):
    """The installation is at fault: a setting, a checkpoint, a device."""


class SettingsError(OperatorError):
    """A setting is unknown, misspelt or has an illegal value.

    `subject` is the setting with its value, or the file and the key that are wrong. `variable` is
    the setting's name as it was written; `suggestion` the name that was probably meant.
    """

    def __init__(
        self,
        problem: str,
        variable: str = "",
        suggestion: str = "",
        *,
        subject: str = "",
        remedy: str = "",
    ) -> None:
        super().__init__(problem, subject=subject, remedy=remedy)
        self.variable = variable
        self.suggestion = suggestion


class CheckpointError(OperatorError):
    """A checkpoint is missing, incomplete, or not safetensors."""


class WeightsNotFinite(CheckpointError):
    """A tensor of a checkpoint or an extension holds NaN or infinite values."""

    code = "WEIGHTS_NOT_FINITE"


class SchedulerNotSupported(CheckpointError):
    """A checkpoint's scheduler states noise that is not understood."""


class ConfigsError(CheckpointError):
    """A single-file checkpoint has no complete folder to take configs and tokenizers from."""


class OutputNotFinite(OperatorError):
    """A network's output is not finite when it is loaded, although its weights are.

    The reason is an overflow, or bad hardware. For an image's output see `NumericFault`.
    """

    code = "NUMERIC_FAULT"


class LedgerInUse(OperatorError):
    """Another service has the ledger's file or schema, and two would run each other's jobs."""


class DownloadError(OperatorError):
    """Weights can't be fetched, or are not what their repository promises."""


class DeviceError(OperatorError):
    """The configured device is not there."""


class DeviceFull(OperatorError):
    """The device has no memory for one image, with every memory saving applied."""
