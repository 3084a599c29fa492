"""Which replica an image goes to: the one that finishes it soonest and delays others least.

A replica steps one batch key at a time, a batch of images together, and padded lanes cost as much
as used ones. So the time that a replica needs is not the sum over its images. Pure functions of
numbers, used by the service's fleet and by the simulator.
"""

from collections.abc import Hashable, Iterable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from math import ceil

from serve_app.core.caller import Caller

MAX_QUEUED_BATCHES = 3  # batches that a replica may have images for, including the running one
# Batches that it may have besides: of images that fill up a batch, and of callers who would wait
# behind others' images. Two of the former, since SDXL images have few sizes that are much used.
FILLING_BATCHES, RESERVED_BATCHES = 2, 1
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


def max_places(batch_images: int) -> int:
    """Return the number of images with which a replica has no place for any caller."""
    return (MAX_QUEUED_BATCHES + FILLING_BATCHES + RESERVED_BATCHES) * batch_images


def max_ongoing_images(batch_images: int) -> int:
    """Return the number of images at which a replica refuses more, since senders choose apart."""
    return max_places(batch_images) + batch_images


def has_place(
    batch_images: int, images: Mapping[Caller, int], caller: Caller, same_key: int
) -> bool:
    """Return whether a replica that has these images may get one more of the caller.

    `same_key` is how many of them have the new image's batch key and steps to take. Callers with
    images on a replica share its `max_queued_images` places by weight: places go to whichever
    ingress takes them, so that a caller with an ingress of its own would otherwise have more of
    them than its share. A lone caller never gets more than these. Others also get

    - the places up to `max_places`, if they have fewer images there than their share of a batch: a
      caller so never waits behind what another one has bound to the replica;
    - all but the last batch of these, if they have less than two batches there and the image fills
      up one of its key. A caller has turns of its own for images of a key that the others don't
      have; if these were part-empty, each image would be charged more, and fewer of them sent, for
      ever. Two batches, since images that only wait to be decoded fill none.
    """
    total, own, weights = 0, 0, caller.weight
    for other, count in images.items():  # asked for every replica whenever an image is sent
        total += count
        if other.name == caller.name:
            own += count
        elif count:
            weights += other.weight
    if total >= max_places(batch_images):
        return False
    ordinary = max_queued_images(batch_images)
    shared = ordinary if total < ordinary else batch_images
    if own < ceil(shared * caller.weight / weights):
        return True
    fills = same_key < batch_images and own < 2 * batch_images
    return fills and total < (MAX_QUEUED_BATCHES + FILLING_BATCHES) * batch_images


@dataclass(frozen=True, slots=True)
class KeyLoad:
    """The images of one batch key on a replica."""

    steps: int  # that all of them still have to take, together
    max_steps: int  # the maximum over the images
    step_seconds: float  # seconds of one step, however many images take it together
    stepping: int = 0  # images that have steps to take

    def seconds(self, batch_images: int) -> float:
        """Return the seconds until all are done: never less than the longest image takes."""
        return max(self.steps / batch_images, self.max_steps) * self.step_seconds

    def add(self, steps: int) -> "KeyLoad":
        """Return the load with one more image of `steps` steps."""
        return KeyLoad(
            self.steps + steps,
            max(self.max_steps, steps),
            self.step_seconds,
            self.stepping + (steps > 0),
        )


@dataclass(frozen=True)
class ReplicaLoad:
    """What a replica has to do, as a candidate for an image."""

    id: str
    batch_images: int  # that step together
    loads_by_key: Mapping[Hashable, KeyLoad]  # by batch key
    model_load_seconds: float = 0.0  # seconds until it has the image's model

    @cached_property
    def seconds(self) -> float:
        """Seconds until the replica has done all its work."""
        return sum(load.seconds(self.batch_images) for load in self.loads_by_key.values())

    def with_key(self, key: Hashable, step_seconds: float) -> "ReplicaLoad":
        """Return a copy that has an entry for this batch key, empty if there was none."""
        if key in self.loads_by_key:
            return self
        return replace(self, loads_by_key={**self.loads_by_key, key: KeyLoad(0, 0, step_seconds)})

    def marginal_seconds(self, key: Hashable, steps: int) -> float:
        """Return the seconds that one more image adds.

        They are few where a batch of its key has a free place.
        """
        load = self.loads_by_key[key]
        added = load.add(steps).seconds(self.batch_images) - load.seconds(self.batch_images)
        return self.model_load_seconds + added


def rank_replicas(
    replicas: Iterable[ReplicaLoad], last_chosen: Mapping[str, int], key: Hashable, steps: int
) -> list[str]:
    """Return the replicas' ids, the best one first, for an image of `steps` steps.

    Every replica must have an entry for the image's batch key. Among equals the replica that was
    chosen least recently is first; `last_chosen` grows with each choice.

    The work that a replica already has delays the image. The work that the image adds delays the
    image and all images that come after it, so it counts twice. In the simulator, with 256 GPUs at
    85 % load, a weight of 2 fills the batches as well as a weight of 3, with shorter waits; a
    weight of 1 leaves them half empty. While any replica is idle no later image has to wait, so
    added work counts once, and the idle replica is taken unless another is clearly sooner.
    """
    replicas = list(replicas)
    weight = MARGINAL_WEIGHT if all(replica.seconds for replica in replicas) else 1.0

    def score(replica: ReplicaLoad) -> float:
        seconds = replica.seconds + weight * replica.marginal_seconds(key, steps)
        return round(seconds if replica.seconds else _IDLE_DISCOUNT * seconds, 6)

    ranked = sorted(
        (score(replica), last_chosen.get(replica.id, 0), replica.id) for replica in replicas
    )
    return [id for *_, id in ranked]
