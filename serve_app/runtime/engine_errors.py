"""What a failed turn means to the callers of its samples. No scheduler and no threads."""

from serve_app.core.errors import AuraError, EngineFault, ImageTooLarge, OutOfMemory
from serve_app.runtime.memory.device import is_out_of_memory


def to_domain_error(error: Exception) -> AuraError:
    """Return the error as an `AuraError` that reveals nothing of the replica's internals."""
    if is_out_of_memory(error):
        return OutOfMemory("the device has no room for this image now")
    if isinstance(error, AuraError):
        return error
    return EngineFault("a step failed")


def image_too_large() -> ImageTooLarge:
    """Return the error of an image that ran out of memory twice in a turn of its own."""
    return ImageTooLarge(
        "this image alone does not fit on the device",
        remedy="Ask for a smaller one; the service's operator can lower MODEL_MAX_BATCH_SIZE or "
        "use MODEL_PRECISION=fp16",
    )
