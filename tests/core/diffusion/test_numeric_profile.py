from dataclasses import fields, replace
from typing import Any

from serve_app.core.diffusion.numeric_profile import NumericProfile, default_precision
from serve_app.core.diffusion.spec import Stage

PROFILE = NumericProfile(
    stage=Stage.BASE,
    device="cpu AVX512",
    dtype="float32",
    vae_dtype="float32",
    attention="sdpa",
    lanes=8,
    memory_savings=(),
    cpu_threads=2,
    torch="2.13.0",
    model="sdxl",
    libraries=("diffusers 0.42.0",),
)


def test_every_field_changes_the_name() -> None:
    for field in fields(PROFILE):
        value = getattr(PROFILE, field.name)
        other: Any = (
            Stage.REFINER if field.name == "stage" else 4 if isinstance(value, int) else "x"
        )
        assert replace(PROFILE, **{field.name: other}).name != PROFILE.name


def test_equal_profiles_have_equal_names() -> None:
    assert replace(PROFILE).name == PROFILE.name
    assert PROFILE.name.startswith("base-float32-8-")


def test_a_profile_without_lanes_is_not_strict() -> None:
    fast = replace(PROFILE, lanes=0)
    assert PROFILE.strict
    assert not fast.strict
    assert "-fast-" in fast.name


def test_only_a_cpu_computes_in_full_precision_by_default() -> None:
    assert [default_precision(device) for device in ("cpu", "cuda", "mps")] == [
        "fp32",
        "fp16",
        "fp16",
    ]
