"""`aura doctor --invariance`: print which numbers of rows keep the bits of a row."""

from collections.abc import Iterable

from rich.console import Console
from rich.table import Table

from serve_app.cli.console import OK, REFUSED, console, print_error
from serve_app.cli.local_images import configured_device
from serve_app.config.catalog import find_checkpoints, max_batch_images
from serve_app.config.settings import Settings
from serve_app.core.errors import AuraError, DeviceFull
from serve_app.doctor.invariance import SizeBits, examine
from serve_app.runtime.memory.device import is_out_of_memory


def invariance() -> int:
    """Print a table for each size of image, for the first base model; return the exit code.

    The device is that of `aura generate`. The number of CPU threads decides bits too: replicas have
    another number where they share the processors, unless MODEL_CPU_THREADS sets it.
    """
    try:
        settings = Settings.read()
        model = find_checkpoints(settings).models[0].checkpoint
        device = configured_device(settings)
        images = max_batch_images(settings, device.torch_device.type)
        with console.status("running the UNet in batches"):
            found = list(examine(model, device, images))
    except AuraError as error:
        print_error(error)
        return REFUSED
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
        print_error(DeviceFull("the UNet and its batches don't fit in the device's memory"))
        return REFUSED
    dtype = str(device.dtype).removeprefix("torch.")
    threads = f", CPU threads: {device.cpu_threads}" if device.torch_device.type == "cpu" else ""
    console.print(f"{model.name} on {device.kind}, {dtype}{threads}\n")
    print_tables(found, console)
    return OK


def print_tables(found: Iterable[SizeBits], console: Console) -> None:
    """Print which operators change a row's bits, by the number of rows."""
    for size in found:
        title = f"{size.width}x{size.height}: a row's bits, compared with {size.rows} rows"
        table = Table(title=title, title_justify="left", box=None, header_style="dim")
        table.add_column("operator")
        table.add_column("calls", justify="right")
        for count in size.counts:
            table.add_column("1 row" if count == 1 else f"{count} rows", justify="right")
        for name, operator in sorted(size.operators.items()):
            cells = (_cell(operator.changed[count], operator.calls) for count in size.counts)
            table.add_row(name, str(operator.calls), *cells)
        kept = ("same" if count in size.kept else "differ" for count in size.counts)
        table.add_row("whole UNet, one-line layers by row", "", *kept, style="bold")
        console.print(table)
        console.print()


def _cell(changed: int, calls: int) -> str:
    return "same" if not changed else f"{changed} differ" if changed < calls else "all differ"
