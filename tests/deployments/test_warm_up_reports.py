"""What is known of a replica that compiles its models and can't be asked yet."""

from typing import Any

from serve_app.core.service.warm_ups import OnWarmUp, WarmUp
from serve_app.deployments.ledger import Ledger
from serve_app.deployments.stage_config import ModelSource
from serve_app.deployments.stage_replica import StageReplica
from serve_app.runtime.memory.model_cache import ModelCache
from tests.support.analytic_model import ConstantDenoiser, analytic_model
from tests.support.local_stage import cpu_stage


class LedgerHandle:
    """A handle whose calls are kept, and made later."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, WarmUp]] = []

    @property
    def note_warm_up(self) -> "LedgerHandle":
        return self

    def remote(self, replica: str, warm_up: WarmUp) -> None:
        self.calls.append((replica, warm_up))


def starting_replica(ledger: LedgerHandle | None) -> StageReplica:
    """Return a replica whose model has two kinds of step to compile."""
    model = analytic_model(ConstantDenoiser())

    def compile_both(on_progress: OnWarmUp) -> None:
        for done in range(3):
            on_progress(WarmUp("sdxl", done, 2))

    model.warm_up = compile_both
    handle: Any = ledger
    config = cpu_stage([ModelSource("demo", None)])
    return StageReplica(config, load=lambda _: ModelCache.of(model), ledger=handle)


async def test_health_says_how_far_a_replica_is_that_starts() -> None:
    handle, ledger = LedgerHandle(), Ledger(None)
    starting_replica(handle).close()
    seen = []
    for call in handle.calls:
        await ledger.note_warm_up(*call)
        seen.append((await ledger.health()).warm_ups)
    assert seen == [(WarmUp("sdxl", 0, 2),), (WarmUp("sdxl", 1, 2),), ()]
    ledger.close()


async def test_every_replica_has_a_name_of_its_own() -> None:
    first, second = LedgerHandle(), LedgerHandle()
    for handle in (first, second):
        starting_replica(handle).close()
    assert {id for id, _ in first.calls}.isdisjoint(id for id, _ in second.calls)


def test_a_replica_without_a_ledger_reports_to_nobody() -> None:
    starting_replica(None).close()
