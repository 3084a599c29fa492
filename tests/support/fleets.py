"""A fleet of replicas that report images, as tests of it use it."""

from dataclasses import replace
from typing import Any

from serve_app.core.caller import Caller
from serve_app.core.capacity.cost_model import CostTable, TurnKind
from serve_app.core.capacity.fleet import Fleet
from serve_app.core.diffusion.keys import ModelKey
from serve_app.core.diffusion.sample import Sample
from serve_app.core.scheduling.work import WorkKind
from tests.support.images import COSTS, SDXL, STEP, image, report_of, segment_of
from tests.support.keys import base_key

ANIME = base_key("anime")
LOAD = TurnKind(WorkKind.LOAD, ANIME)
WITH_LOAD = replace(COSTS, seconds_by_turn={STEP: 0.1, LOAD: 7.0})
MANY = 100  # images that Serve would let a replica have


def fleet(*ids: str, max_images: int = MANY) -> Fleet:
    fleet = Fleet(4)
    fleet.set_replicas(ids, max_images=max_images)
    for id in ids:
        report(fleet, id, 1)
    return fleet


def report(
    fleet: Fleet,
    id: str,
    number: int,
    *samples: Sample[Any],
    models: tuple[ModelKey, ...] = (SDXL,),
    costs: CostTable = WITH_LOAD,
    profile: str = "h200",
    measured: dict[Caller, float] | None = None,
) -> None:
    made = report_of(
        number, *samples, models=models, costs=costs, profile=profile, measured=measured
    )
    assert fleet.apply_report(id, made.to_wire(), 0.0)


def rank(fleet: Fleet, sample: Sample[Any]) -> list[str]:
    return fleet.rank(sample, segment_of(sample))


def rank_wide(fleet: Fleet) -> list[str]:
    """Return the replicas for a new image of a size that no other image has."""
    return rank(fleet, image("new", width=832))


def send(fleet: Fleet, to: str, *samples: Sample[Any]) -> None:
    for sample in samples:
        fleet.send(to, sample, segment_of(sample))
