"""The web UI's names of samplers and schedule types, both ways."""

import pytest

from serve_app.core.diffusion.samplers import Sampler
from serve_app.core.errors import InvalidRequest
from serve_app.ingress.a1111.names import checkpoint_name, read_sampler

OWN = Sampler.DPMPP_SDE  # the model's, in these tests


@pytest.mark.parametrize("sampler", Sampler)
def test_every_sampler_is_found_by_the_names_that_its_pictures_bear(sampler: Sampler) -> None:
    name, schedule = sampler.definition.a1111_name, sampler.spacing.a1111_name
    assert read_sampler(name, schedule, OWN) is sampler
    assert read_sampler(name.upper(), schedule.lower(), OWN) is sampler
    assert read_sampler(sampler.value, None, OWN) is sampler


@pytest.mark.parametrize(
    ("name", "schedule", "sampler"),
    [
        ("DPM++ 2M Karras", None, Sampler.DPMPP_2M_KARRAS),
        ("DPM++ 2M SDE Exponential", "", Sampler.DPMPP_2M_SDE_EXPONENTIAL),
        ("DPM++ 2M Karras", "Exponential", Sampler.DPMPP_2M_EXPONENTIAL),
        ("k_euler_a", None, Sampler.EULER_A),
        ("k_dpmpp_2m_ka", None, Sampler.DPMPP_2M_KARRAS),
        ("Euler", "karras", Sampler.EULER_KARRAS),
        ("Euler", "trailing", Sampler.EULER_TRAILING),
        ("Euler", "None", Sampler.EULER),
        (None, "Karras", Sampler.DPMPP_SDE_KARRAS),
        ("Automatic", "Karras", Sampler.DPMPP_SDE_KARRAS),
    ],
)
def test_older_names_aliases_and_schedule_types_alone_are_understood(
    name: str | None, schedule: str | None, sampler: Sampler
) -> None:
    assert read_sampler(name, schedule, OWN) is sampler


@pytest.mark.parametrize("name", [None, "", "Automatic"])
@pytest.mark.parametrize("schedule", [None, "", "Automatic"])
def test_without_a_name_the_model_has_its_own(name: str | None, schedule: str | None) -> None:
    assert read_sampler(name, schedule, OWN) is None


@pytest.mark.parametrize(
    ("name", "schedule", "path", "problem"),
    [
        ("DPM fast", None, "sampler_name", "must be one of Euler, Euler a, Heun"),
        ("DPM fast Karras", None, "sampler_name", "must be one of"),
        ("Euler", "Polyexponential", "scheduler", "must be one of Automatic, Karras"),
        ("LCM", "Karras", "scheduler", "must be one of Automatic for LCM"),
        ("Euler a", "Exponential", "scheduler", "must be one of Automatic, Simple for Euler a"),
    ],
)
def test_what_there_is_not_is_refused_with_what_there_is(
    name: str, schedule: str | None, path: str, problem: str
) -> None:
    with pytest.raises(InvalidRequest, match=problem) as refused:
        read_sampler(name, schedule, OWN)
    assert refused.value.path == path


@pytest.mark.parametrize("title", ["sdxl [31e35c80fc]", "sdxl"])
def test_the_hash_behind_a_checkpoint_is_no_part_of_its_name(title: str) -> None:
    assert checkpoint_name(title) == "sdxl"
