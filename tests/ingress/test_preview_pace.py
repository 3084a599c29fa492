"""Which previews are sent of an image, whatever its steps are and however far it is known to be."""

from serve_app.core.diffusion.spec import Stage
from serve_app.core.service.job_events import ImageProgress
from serve_app.core.service.outlook import Outlook
from serve_app.ingress.preview_pace import PreviewPace


def steps_shown(pace: PreviewPace, steps: int, number: int = 0) -> list[int]:
    """Return the steps of an image after which a preview is sent: there is one of each."""
    shown = []
    for step in range(steps):
        pace.note(ImageProgress(number, Outlook(Stage.BASE, step, steps, 0, 0.0, 1.0)))
        if pace.take(number) is not None:
            shown.append(step)
    return shown


def test_an_image_of_few_steps_shows_all_of_them() -> None:
    assert steps_shown(PreviewPace(32), 30) == list(range(30))


def test_an_image_of_many_steps_shows_some_evenly_up_to_its_end() -> None:
    shown = steps_shown(PreviewPace(10), 100)
    assert shown == list(range(0, 100, 10))


def test_each_image_has_its_own_previews_and_no_more_when_it_begins_again() -> None:
    pace = PreviewPace(10)
    for number in range(2):
        assert len(steps_shown(pace, 100, number)) == 10
        assert steps_shown(pace, 100, number) == []


def test_partial_images_lie_between_the_beginning_and_the_end() -> None:
    assert steps_shown(PreviewPace(3, skips_first=True), 100) == [25, 50, 75]


def test_none_are_sent_where_none_are_wanted() -> None:
    assert (
        steps_shown(PreviewPace(0), 10) == steps_shown(PreviewPace(0, skips_first=True), 10) == []
    )
