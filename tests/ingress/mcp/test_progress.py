"""What a client hears of a job that is not done yet."""

from serve_app.core.diffusion.spec import Stage
from serve_app.core.service.outlook import Outlook
from serve_app.ingress.mcp.progress import ProgressNotes


class Heard:
    """A client that has asked for notes."""

    def __init__(self) -> None:
        self.notes: list[tuple[float, float | None, str]] = []

    async def report_progress(
        self, progress: float, total: float | None = None, message: str | None = None
    ) -> None:
        self.notes.append((progress, total, message or ""))


def at(step: int, position: int = 0, eta: float | None = None) -> Outlook:
    return Outlook(Stage.BASE, step, 20, position, eta=eta)


async def test_each_place_in_the_queue_is_a_note_and_none_is_lower_than_the_last() -> None:
    heard = Heard()
    notes = ProgressNotes(heard, "j", 1)
    for position in (5, 5, 4, 6, 2, 1):
        await notes.add(0, at(0, position))
    await notes.add(0, at(1, eta=7.6))
    taken = [progress for progress, _, _ in heard.notes]
    assert taken == sorted(set(taken))
    assert taken[-2] < taken[-1] == 1
    assert [message for _, _, message in heard.notes] == [
        *(f"job j: waits for base as number {position}" for position in (5, 4, 2, 1)),
        "job j: step 1 of 20, about 8 s left",
    ]
    assert {total for _, total, _ in heard.notes} == {20}


async def test_an_image_that_waits_for_the_refiner_says_how_far_it_is() -> None:
    heard = Heard()
    await ProgressNotes(heard, "j", 1).add(0, Outlook(Stage.REFINER, 16, 20, 1))
    ((taken, _, message),) = heard.notes
    assert message == "job j: step 16 of 20, waits for refiner as number 1"
    assert 16 < taken < 17


async def test_steps_of_several_images_are_added() -> None:
    heard = Heard()
    notes = ProgressNotes(heard, "j", 3)
    for number, step in ((0, 4), (1, 3), (0, 5)):
        await notes.add(number, at(step))
    assert [(progress, total) for progress, total, _ in heard.notes] == [(4, 60), (7, 60), (8, 60)]
    assert heard.notes[1][2] == "job j, image 1: step 3 of 20"


async def test_there_is_no_total_where_nobody_knows_how_many_images_there_are() -> None:
    heard = Heard()
    await ProgressNotes(heard, "j").add(2, at(4))
    assert heard.notes == [(4, None, "job j, image 2: step 4 of 20")]
