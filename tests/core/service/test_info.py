from dataclasses import replace

from serve_app.core.diffusion.schedule import NoiseConfig
from serve_app.core.service.info import (
    Condition,
    Health,
    License,
    LoraFacts,
    ModelFacts,
    ServiceFacts,
)

SDXL = ModelFacts("sdxl", 512, NoiseConfig())


def test_models_know_their_legal_sizes() -> None:
    assert SDXL.sizes.for_aspect("1:1") == (512, 512)


def test_health_is_a_value() -> None:
    assert Health(Condition.READY, "", {"base": 1}, 0.0) == Health(
        Condition.READY, "", {"base": 1}, 0.0
    )


def test_other_licences_are_other_terms() -> None:
    facts = ServiceFacts((SDXL,), None, "cpu", "fp32", 2)
    license = License("sdxl", "RAIL", "", (), "text")
    one = replace(facts, licenses=(license,))
    other = replace(facts, licenses=(replace(license, text="another"),))
    assert len({facts.terms, one.terms, other.terms}) == 3
    assert one.terms == replace(one, device="cuda").terms


def test_models_are_found_by_name_and_the_first_is_the_default() -> None:
    few = replace(SDXL, name="few", refined=False)
    facts = ServiceFacts((SDXL, few), "sdxl-refiner", "cpu", "fp32", 2)
    assert (facts.model, facts.names) == (SDXL, ("sdxl", "few"))
    assert facts.named("few") == few
    assert facts.named("none") is None
    assert [facts.refines(model) for model in facts.models] == [True, False]
    assert not replace(facts, refiner=None).refines(SDXL)


def test_loras_are_found_by_name() -> None:
    ink = LoraFacts("ink", ("sdxl",), 0.8)
    facts = ServiceFacts((SDXL,), None, "cpu", "fp32", 2, loras=(ink,))
    assert facts.lora("ink") == ink
    assert facts.lora("sdxl") is None
