"""What several processes have not finished, as one number of each kind."""

from serve_app.core.service.unfinished import Unfinished


def test_what_several_processes_left_unfinished_adds_up() -> None:
    parts = (Unfinished(spooled=2), Unfinished(spooled=1, lost=3), Unfinished())
    assert sum(parts, Unfinished()) == Unfinished(spooled=3, lost=3)
