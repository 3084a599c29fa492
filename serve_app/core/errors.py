"""The ways an image, or the service that makes it, can end badly, named by whose fault it is.

Knows no status codes: `ingress/errors.py` maps these names to HTTP in one table.
Every error carries one sentence for the person who can act on it.
"""

from math import ceil


class AuraError(Exception):
    """Any failure with a name of ours; `str(error)` is a sentence that may be shown."""


class CallerError(AuraError):
    """The request is at fault: sending it again unchanged can't help."""


class InvalidRequest(CallerError):
    """A field is missing, unknown or out of range; `path` names it as the caller wrote it."""

    def __init__(self, path: str, problem: str) -> None:
        super().__init__(path, problem)
        self.path = path
        self.problem = problem

    def __str__(self) -> str:
        return f"{self.path} {self.problem}"


class InvalidImage(CallerError):
    """A base image that can't be decoded, or is outside what the service takes."""


class ModelNotFound(CallerError):
    """A model name that is not in the registry; the sentence lists the names there are."""


class Unauthorized(CallerError):
    """No key, or a wrong one, where one is needed."""


class ForbiddenOrigin(CallerError):
    """A browser page of an origin that is not on the list asks."""


class ForbiddenHost(CallerError):
    """The Host header names a host that is not on the list: perhaps DNS rebinding."""


class TermsNotAccepted(CallerError):
    """The operator asks every caller to accept the models' licences first; this one has not."""


class SafetyBlock(CallerError):
    """A safety filter refused the prompt, or the picture that came of it."""


class IdempotencyConflict(CallerError):
    """The Idempotency-Key was used before, with another body."""


class JobNotFound(CallerError):
    """No job has this id, or somebody else's has: the two are told alike."""


class JobCancelled(CallerError):
    """The job was cancelled by its owner while this call waited for it."""


class JobFailed(AuraError):
    """The job that this call waited for has failed, with the code and the sentence it was told."""

    def __init__(self, code: str, sentence: str) -> None:
        super().__init__(code, sentence)
        self.code = code
        self.sentence = sentence

    def __str__(self) -> str:
        return self.sentence


class RateLimited(CallerError):
    """The caller has used up its own allowance; in `seconds` there is enough for this request."""

    def __init__(self, seconds: float) -> None:
        super().__init__(seconds)
        self.seconds = seconds

    def __str__(self) -> str:
        return f"your allowance is used up for now: ask again in {ceil(self.seconds)} s"


class PayloadTooLarge(CallerError):
    """The body is longer than the service takes."""


class UnsupportedMediaType(CallerError):
    """The body is of a type that this address does not take."""


class ImageTooLarge(CallerError):
    """This image alone does not fit on the device, so asking again can't help."""


class ServiceError(AuraError):
    """The service is at fault: the same request may succeed later, or elsewhere."""


class ReplicaLost(ServiceError):
    """The process that worked on the image is gone; its last snapshot can be continued."""


class ProfileChanged(ServiceError):
    """A snapshot was made under another numeric profile: the image must start again."""


class OutOfMemory(ServiceError):
    """The device had no room for a step of this image."""


class ModelUnavailable(ServiceError):
    """A model that is in the registry can't be loaded where it is wanted; the log says why."""


class EngineFault(ServiceError):
    """A turn of the engine failed; the stack is in the replica's log."""


class Loading(ServiceError):
    """A stage has no replica ready yet."""


class Draining(ServiceError):
    """The service is finishing what it accepted and takes nothing new."""


class Overloaded(ServiceError):
    """What was accepted already takes longer than this caller allows."""


class LedgerAway(ServiceError):
    """The service's memory of jobs can't be asked just now; pictures are made all the same."""


class DeadlineExceeded(AuraError):
    """The image was not ready within the time its caller allowed."""


class OperatorError(AuraError):
    """The installation is at fault: a setting, a checkpoint, a device."""


class SettingsError(OperatorError):
    """A setting is unknown, misspelt or illegal; `variable` is its name as it stands there."""

    def __init__(self, sentence: str, variable: str = "", meant: str = "") -> None:
        super().__init__(sentence)
        self.variable = variable
        self.meant = meant  # the right name of a misspelt one


class CheckpointError(OperatorError):
    """A checkpoint folder is missing, incomplete, or not safetensors."""


class ConfigsError(CheckpointError):
    """A single file has no whole folder that lends it configs and tokenizers."""


class DownloadError(OperatorError):
    """Weights can't be fetched, or are not what their repository promises."""


class DeviceError(OperatorError):
    """The device that was promised is not there."""


class DeviceFull(OperatorError):
    """The device has no room for one image, whatever is given up."""
