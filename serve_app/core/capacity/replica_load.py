"""`ReplicaLoad`: what one replica has to do, how long that takes, and for whom it has places.

A replica steps one batch key at a time, a batch of images together, and a step of several images
takes less than as many steps of one. So the time that a replica needs is not the sum over its
images. No clock.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from serve_app.core.caller import Caller
from serve_app.core.capacity.routing import has_place, max_places


@dataclass(frozen=True, slots=True)
class KeyLoad:
    """The images of one batch key on a replica."""

    steps: int  # that all of them still have to take, together
    max_steps: int  # the maximum over the images
    step_seconds: float  # seconds of one step of a full batch
    alone_seconds: float  # seconds of one step of one image
    stepping: int = 0  # images that have steps to take

    def seconds(self, batch_images: int) -> float:
        """Return the seconds until all are done: never less than the longest image takes."""
        return self._seconds(self.steps, self.max_steps, batch_images)

    def added_seconds(self, steps: int, batch_images: int) -> float:
        """Return the seconds that one more image of `steps` steps adds.

        They are few where a batch has a free place.
        """
        most = steps if steps > self.max_steps else self.max_steps  # computed for every replica
        return self._seconds(self.steps + steps, most, batch_images) - self.seconds(batch_images)

    def add(self, *steps: int) -> "KeyLoad":
        """Return the load with more images, each of so many steps."""
        return KeyLoad(
            self.steps + sum(steps),
            max(self.max_steps, *steps),
            self.step_seconds,
            self.alone_seconds,
            self.stepping + sum(left > 0 for left in steps),
        )

    def _seconds(self, steps: int, max_steps: int, batch_images: int) -> float:
        """Return the seconds of so many steps, in batches that are as full as they can be.

        Each further image of a batch lengthens its step by as much.
        """
        turns = steps / batch_images
        if turns < max_steps:
            turns = max_steps
        if batch_images == 1:
            return turns * self.step_seconds
        alone = min(self.alone_seconds, self.step_seconds)  # measured apart, they differ by chance
        further = (self.step_seconds - alone) / (batch_images - 1)
        return turns * (alone - further) + steps * further


class ReplicaLoad:
    """The images of one replica at one time, which every decision asks: it is computed once."""

    def __init__(
        self,
        batch_images: int,
        loads_by_key: Mapping[str, KeyLoad],
        callers: Mapping[Caller, int],
    ) -> None:
        """Compute it; `batch_images` step together, and `callers` have so many images each."""
        self.images = sum(callers.values())
        self.loads_by_key = loads_by_key  # by batch key, encoded
        self.seconds = sum(load.seconds(batch_images) for load in loads_by_key.values())
        self._batch_images, self._callers = batch_images, callers
        self._names = frozenset(caller.name for caller, count in callers.items() if count)
        self._keys = sum(load.stepping > 0 for load in loads_by_key.values())
        self._places = max_places(batch_images, self._keys)
        self._places_with_another_key = max_places(batch_images, self._keys + 1)
        # Answers of `has_place` to callers with images: by name and weight, whether any image has
        # the new one's key, and whether a batch of that key has room.
        self._answers = dict[tuple[str, float, bool, bool], bool]()

    @property
    def is_full(self) -> bool:
        """Whether there is no place for any caller, whatever the image."""
        return self.images >= self._places_with_another_key

    def has_place(self, caller: Caller, batch_key: str) -> bool:
        """Return whether the caller may have one more image of this key: see `has_place`."""
        load = self.loads_by_key.get(batch_key)
        same_key = load.stepping if load else 0
        if self.images >= (self._places if same_key else self._places_with_another_key):
            return False
        if caller.name not in self._names:
            return True
        question = caller.name, caller.weight, same_key > 0, same_key < self._batch_images
        answer = self._answers.get(question)
        if answer is None:
            keys = self._keys + (not same_key)
            answer = has_place(self._batch_images, self._callers, caller, same_key, keys)
            self._answers[question] = answer
        return answer

    def added_seconds(self, batch_key: str, steps: int, alone: float) -> float:
        """Return the seconds that one more image adds; `alone` if no other has its key."""
        load = self.loads_by_key.get(batch_key)
        return load.added_seconds(steps, self._batch_images) if load else alone
