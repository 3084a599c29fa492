"""`aura doctor --invariance`, on the demo."""

from io import StringIO

from rich.console import Console

from serve_app.cli.invariance import print_tables
from serve_app.core.diffusion.spec import Stage
from serve_app.doctor.invariance import SizeBits, examine
from serve_app.runtime.checkpoints.checkpoint import Checkpoint
from serve_app.runtime.memory.device import open_device
from serve_app.runtime.operator_bits import OperatorCalls


def test_every_operator_of_the_unet_is_compared_and_so_is_the_whole(
    checkpoints: dict[Stage, Checkpoint],
) -> None:
    device = open_device("cpu", precision="fp32", xformers=False, cpu_threads=2)
    (found,) = examine(checkpoints[Stage.BASE], device, images=2, sizes=[(64, 48)])
    assert (found.width, found.height, found.rows, found.counts) == (64, 48, 4, (1, 2))
    calls = {name: operator.calls for name, operator in found.operators.items()}
    # Time and size embeddings have two layers each, and every residual block projects the first.
    assert calls["linear, one line a row"] == 15
    assert calls["attention"] == 14
    assert calls["linear, many lines a row"] == 84  # prepacked or not
    assert calls["convolution 3x3"] + calls["convolution 1x1"] == 35
    assert set(found.kept) <= {1, 2}
    for operator in found.operators.values():
        assert set(operator.changed) == {1, 2}
        assert all(0 <= changed <= operator.calls for changed in operator.changed.values())


def test_the_table_has_a_line_for_each_operator_and_one_for_the_whole() -> None:
    operators = {
        "attention": OperatorCalls(14, {1: 0, 2: 0}),
        "linear, one line a row": OperatorCalls(15, {1: 15, 2: 3}),
    }
    console = Console(width=80, record=True, file=StringIO())
    print_tables([SizeBits(104, 152, 4, (1, 2), operators, (2,))], console)
    title, head, *lines = (line.split() for line in console.export_text().splitlines() if line)
    assert " ".join(title) == "104x152: a row's bits, compared with 4 rows"
    assert head == ["operator", "calls", "1", "row", "2", "rows"]
    assert lines == [
        ["attention", "14", "same", "same"],
        ["linear,", "one", "line", "a", "row", "15", "all", "differ", "3", "differ"],
        ["whole", "UNet,", "one-line", "layers", "by", "row", "differ", "same"],
    ]
