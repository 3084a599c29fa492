import os

import pytest

from serve_app.bench.cpu.alone import NotMeasured, run_alone


def test_work_for_which_memory_is_lacking_is_not_begun() -> None:
    with pytest.raises(NotMeasured, match=r"^needs 9\d{5}\.\d GiB of memory, \d+\.\d are free$"):
        run_alone(os.getpid, needed=1e15)


def test_work_runs_in_a_process_of_its_own_and_one_that_is_killed_ends_nothing_else() -> None:
    assert run_alone(os.getpid, needed=0) != os.getpid()
    with pytest.raises(NotMeasured, match="its process was killed"):
        run_alone(os.abort, needed=0)
