"""Snapshots that nobody works at: the newest ones, as many as fit, for as long as results last."""

import numpy as np

from serve_app.core.service.parked_images import MAX_PARKED_SECONDS, ParkedImages
from serve_app.core.service.tasks import ImageSnapshot
from tests.support.images import snapshot_of

LATENTS = np.zeros((4, 8, 8), np.float32)
SIZE = LATENTS.nbytes


def test_a_parked_image_is_given_away_once() -> None:
    parked, snapshot = ParkedImages(), snapshot_of("a", 3)
    parked.put(snapshot, now=0)
    assert parked.pop("a") is snapshot
    assert parked.pop("a") is None
    assert len(parked) == 0


def test_the_oldest_make_room_and_the_size_counts_pngs_inputs_and_solver_states() -> None:
    parked = ParkedImages(max_bytes=4 * SIZE)
    parked.put(snapshot_of("old", 1), now=0)
    parked.put(snapshot_of("b", 2, solver_state=(LATENTS,)), now=1)
    parked.put(ImageSnapshot(snapshot_of("c", 1).sample, bytes(SIZE // 2)), now=2)
    assert [parked.pop(id) is not None for id in ("old", "b", "c")] == [False, True, True]


def test_a_newer_snapshot_of_an_image_takes_the_place_of_the_earlier_one() -> None:
    parked = ParkedImages(max_bytes=SIZE)
    parked.put(snapshot_of("a", 1), now=0)
    newer = snapshot_of("a", 2)
    parked.put(newer, now=1)
    assert parked.pop("a") is newer


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
    assert parked.pop("a") is None
    assert parked.pop("b") is not None
