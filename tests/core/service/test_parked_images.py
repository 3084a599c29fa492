"""Snapshots that nobody works at: the newest ones, as many as fit, for as long as results last."""

from dataclasses import replace

import numpy as np

from serve_app.core.service.parked_images import MAX_PARKED_SECONDS, ParkedImages
from serve_app.core.service.suspicion import Suspicion
from serve_app.core.service.tasks import ImageSnapshot
from tests.support.images import snapshot_of

LATENTS = np.zeros((4, 8, 8), np.float32)
SIZE = LATENTS.nbytes


def test_a_parked_image_is_there_until_it_is_at_work_again() -> None:
    parked, snapshot = ParkedImages(), snapshot_of("a", 3)
    parked.put(snapshot, now=0)
    parked.drop_older(snapshot_of("b", 9))
    parked.drop_older(snapshot_of("a", 2))  # a sender that was cut off has an older one
    assert parked.get("a") is snapshot
    parked.drop_older(snapshot_of("a", 3))
    assert parked.get("a") is None
    assert len(parked) == 0


def test_the_oldest_make_room_and_the_size_counts_pngs_inputs_and_solver_states() -> None:
    parked = ParkedImages(max_bytes=4 * SIZE)
    parked.put(snapshot_of("old", 1), now=0)
    parked.put(snapshot_of("b", 2, solver_state=(LATENTS,)), now=1)
    parked.put(ImageSnapshot(snapshot_of("c", 1).sample, bytes(SIZE // 2)), now=2)
    assert [parked.get(id) is not None for id in ("old", "b", "c")] == [False, True, True]


def test_of_two_snapshots_of_an_image_the_one_with_more_steps_is_kept() -> None:
    parked = ParkedImages(max_bytes=SIZE)
    parked.put(snapshot_of("a", 1), now=0)
    newer = snapshot_of("a", 2)
    parked.put(newer, now=1)
    parked.put(snapshot_of("a", 1), now=2)
    kept = parked.get("a")
    assert kept is not None
    assert kept.sample is newer.sample


def test_what_does_not_fit_at_all_is_not_kept() -> None:
    parked = ParkedImages(max_bytes=SIZE - 1)
    parked.put(snapshot_of("a", 1), now=0)
    assert len(parked) == 0


def test_snapshots_are_kept_as_long_as_results_are() -> None:
    parked = ParkedImages()
    parked.put(snapshot_of("a", 1), now=0)
    parked.put(snapshot_of("b", 1), now=10)
    parked.forget(MAX_PARKED_SECONDS)
    assert len(parked) == 2
    parked.forget(MAX_PARKED_SECONDS + 1)
    assert parked.get("a") is None
    assert parked.get("b") is not None


def test_the_gravest_record_of_an_image_is_kept_whichever_snapshot_is() -> None:
    for first, second in ((9, 3), (3, 9)):
        parked = ParkedImages()
        for index, deaths in ((first, 0), (second, 2), (first, 1)):
            parked.put(replace(snapshot_of("a", index), suspicion=Suspicion(deaths)), now=0)
        kept = parked.get("a")
        assert kept is not None
        assert (kept.sample.index, kept.suspicion.deaths) == (9, 2)
