"""The ways an image, or the service that makes it, can end badly, named by whose fault it is.

Knows no status codes: `ingress/errors.py` maps these names to HTTP in one table.
Every error carries one sentence for the person who can act on it.
"""


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


class ServiceError(AuraError):
    """The service is at fault: the same request may succeed later, or elsewhere."""


class ReplicaLost(ServiceError):
    """The process that worked on the image is gone; its last snapshot can be continued."""


class ProfileChanged(ServiceError):
    """A snapshot was made under another numeric profile: the image must start again."""


class OutOfMemory(ServiceError):
    """The device had no room for a step of this image."""


class EngineFault(ServiceError):
    """A turn of the engine failed; the stack is in the replica's log."""


class Loading(ServiceError):
    """A stage has no replica ready yet."""


class Draining(ServiceError):
    """The service is finishing what it accepted and takes nothing new."""


class DeadlineExceeded(AuraError):
    """The image was not ready within the time its caller allowed."""


class OperatorError(AuraError):
    """The installation is at fault: a setting, a checkpoint, a device."""


class SettingsError(OperatorError):
    """A setting is unknown, misspelt or illegal."""


class CheckpointError(OperatorError):
    """A checkpoint folder is missing, incomplete, or not safetensors."""


class DeviceError(OperatorError):
    """The device that was promised is not there."""
