"""Read the files of the extensions in MODELS_FILE whole, for values that are not finite."""

from collections.abc import Sequence

from serve_app.config.catalog import CatalogExtension
from serve_app.config.settings import Settings
from serve_app.core.errors import CheckpointError
from serve_app.doctor.finding import Finding, edit_command, fail, fine, problem_of
from serve_app.runtime.checkpoints.extension_kinds import EXTENSION_KINDS, ExtensionKindEntries


def check_extensions(
    settings: Settings,
    extensions: Sequence[CatalogExtension],
    kinds: ExtensionKindEntries = EXTENSION_KINDS,
) -> Finding:
    """Check the numbers in the files of extensions; their names and shapes are checked before."""
    # It imports torch, which takes seconds.
    from serve_app.runtime.extensions.registry import runtime_kinds

    readers = runtime_kinds(kinds)
    for extension in extensions:
        key = extension.info.key
        try:
            readers[key.kind].check_values(extension.file)
        except CheckpointError as error:
            fix = edit_command(settings.models_file) if settings.models_file else "MODELS_FILE="
            return fail("extensions", f"the {key}: {problem_of(error)}", fix)
    return fine("extensions", f"{len(extensions)} read, and every value is finite")
