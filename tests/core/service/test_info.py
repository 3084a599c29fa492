from dataclasses import replace

from serve_app.core.diffusion.schedule import NoiseConfig
from serve_app.core.service.info import (
    Health,
    HealthStatus,
    License,
    LoraInfo,
    ModelInfo,
    ServiceInfo,
)

SDXL = ModelInfo("sdxl", 512, NoiseConfig())


def test_models_know_their_legal_sizes() -> None:
    assert SDXL.sizes.for_aspect("1:1") == (512, 512)


def test_health_is_a_value() -> None:
    assert Health(HealthStatus.READY, "", {"base": 1}, 0.0) == Health(
        HealthStatus.READY, "", {"base": 1}, 0.0
    )


def test_other_licences_are_other_terms() -> None:
    facts = ServiceInfo((SDXL,), None, "cpu", "fp32", 2)
    license = License("sdxl", "RAIL", "", (), "text")
    one = replace(facts, licenses=(license,))
    other = replace(facts, licenses=(replace(license, text="another"),))
    assert len({facts.terms_digest, one.terms_digest, other.terms_digest}) == 3
    assert one.terms_digest == replace(one, device="cuda").terms_digest


def test_models_are_found_by_name_and_the_first_is_the_default() -> None:
    few = replace(SDXL, name="few", can_be_refined=False)
    facts = ServiceInfo((SDXL, few), "sdxl-refiner", "cpu", "fp32", 2)
    assert (facts.default_model, facts.model_names) == (SDXL, ("sdxl", "few"))
    assert facts.find_model("few") == few
    assert facts.find_model("none") is None
    assert [facts.can_refine(model) for model in facts.models] == [True, False]
    assert not replace(facts, refiner=None).can_refine(SDXL)


def test_loras_are_found_by_name() -> None:
    ink = LoraInfo("ink", ("sdxl",), 0.8)
    facts = ServiceInfo((SDXL,), None, "cpu", "fp32", 2, loras=(ink,))
    assert facts.find_lora("ink") == ink
    assert facts.find_lora("sdxl") is None
