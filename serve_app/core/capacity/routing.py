"""Which replicas have a place for an image, and which of them it goes to.

That is the one that finishes it soonest and delays others least. Pure functions of numbers, used by
the service's fleet and by the simulator.
"""

from collections.abc import Mapping, Sequence
from math import ceil

from serve_app.core.caller import Caller

MAX_QUEUED_BATCHES = 3  # batches that a replica may have images for, including the running one
# Batches that it may have besides, one for each batch key, up to this many, of images that fill up
# a batch.
MAX_FILLING_BATCHES = 12
# An idle replica's seconds count a little less: measured step times differ by chance.
_IDLE_DISCOUNT = 0.9
# The weight of a second of the replica's time, relative to a second of the image's own waiting.
MARGINAL_WEIGHT = 2.0


def max_queued_images(batch_images: int) -> int:
    """Return the number of images that a replica may have, if it steps `batch_images` together.

    An image that is bound to a replica too early stays behind that replica's queue, however many
    other replicas become free.
    """
    return MAX_QUEUED_BATCHES * batch_images


def max_places(batch_images: int, keys: int = MAX_FILLING_BATCHES) -> int:
    """Return the number of images with which a replica has no place for any caller.

    `keys` is how many batch keys its images have, and the new one.
    """
    return _filling_places(batch_images, keys) + _reserved_places(batch_images, keys)


def max_ongoing_images(batch_images: int) -> int:
    """Return the number of images at which a replica refuses more, since senders choose apart."""
    return max_places(batch_images) + batch_images


def has_place(
    batch_images: int, images: Mapping[Caller, int], caller: Caller, same_key: int, keys: int
) -> bool:
    """Return whether a replica that has these images may get one more of the caller.

    `same_key` is how many of them have the new image's batch key and steps to take, and `keys` how
    many batch keys such images have, and the new one. Callers with images on a replica share its
    `max_queued_images` places by weight: places go to whichever ingress takes them, so that a
    caller with an ingress of its own would otherwise have more of them than its share. Of another's
    share only its images and one batch more are kept for it: a heavy caller with little work
    reserves no more than it can soon use. A lone caller never gets more than these places. Others
    also get

    - the places up to `max_places`, if they have fewer images there than their share of the last
      batch of these, or two: a caller so never waits behind what another one has bound to the
      replica;
    - their share of the others of these, if the image fills up a batch of its key. A caller has
      turns of its own for images of a key that the others don't have; if these were part-empty,
      each image would be charged more, and fewer of them sent, for ever. So there is one batch more
      for each key.
    """
    total, own, weights = 0, 0, caller.weight
    for other, count in images.items():
        total += count
        if other.name == caller.name:
            own += count
        elif count:
            weights += other.weight
    if total >= max_places(batch_images, keys):
        return False

    def is_within(places: int) -> bool:
        """Return whether the caller has less than its share of these places."""
        if own < ceil(places * caller.weight / weights):
            return True
        return own < places - sum(
            min(ceil(places * other.weight / weights), count + batch_images)
            for other, count in images.items()
            if count and other.name != caller.name
        )

    if own < ceil(_reserved_places(batch_images, keys) * caller.weight / weights):
        return True
    if total < max_queued_images(batch_images) and is_within(max_queued_images(batch_images)):
        return True
    if total == own or same_key >= batch_images:
        return False
    filling = _filling_places(batch_images, keys)
    return total < filling and is_within(filling)


def _filling_places(batch_images: int, keys: int) -> int:
    return (MAX_QUEUED_BATCHES + min(keys, MAX_FILLING_BATCHES)) * batch_images


def _reserved_places(batch_images: int, keys: int) -> int:
    """Return the places of callers who would wait behind others' images.

    Images of one batch often end together, and those that are sent instead come a little later.
    Where all images have one key, others' would take the steps in between, so there are two batches
    of these places. A caller with a key of its own keeps the turns that it has not had yet.
    """
    return (2 if keys == 1 else 1) * batch_images


# A replica that may get an image: its id, the seconds until it has done all its work, and those
# that the image adds.
Candidate = tuple[str, float, float]


def rank_replicas(candidates: Sequence[Candidate], last_chosen: Mapping[str, int]) -> list[str]:
    """Return the replicas' ids, the best one first.

    Among equals the replica that was chosen least recently is first; `last_chosen` grows with each
    choice.

    The work that a replica already has delays the image. The work that the image adds delays the
    image and all images that come after it, so it counts twice. In the simulator, with 256 GPUs at
    85 % load, a weight of 2 fills the batches as well as a weight of 3, with shorter waits; a
    weight of 1 leaves them half empty. While any replica is idle no later image has to wait, so
    added work counts once, and the idle replica is taken unless another is clearly sooner.
    """
    last = last_chosen.get
    is_busy = all(seconds for _, seconds, _ in candidates)
    weight = MARGINAL_WEIGHT if is_busy else 1.0
    ranked = sorted(
        (
            round(seconds + weight * added if seconds else _IDLE_DISCOUNT * (weight * added), 6),
            last(id, 0),
            id,
        )
        for id, seconds, added in candidates
    )
    return [id for *_, id in ranked]
