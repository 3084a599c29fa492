from dataclasses import replace

from serve_app.core.facts import Condition, Health, License, ServiceFacts


def test_facts_know_the_legal_sizes() -> None:
    facts = ServiceFacts("sdxl", None, 512, "cpu", "fp32", 2, 30)
    assert facts.sizes.for_aspect("1:1") == (512, 512)


def test_health_is_a_value() -> None:
    assert Health(Condition.READY, "", {"base": 1}, 0.0) == Health(
        Condition.READY, "", {"base": 1}, 0.0
    )


def test_other_licences_are_other_terms() -> None:
    facts = ServiceFacts("sdxl", None, 512, "cpu", "fp32", 2, 30)
    license = License("sdxl", "RAIL", "", (), "text")
    one = replace(facts, licenses=(license,))
    other = replace(facts, licenses=(replace(license, text="another"),))
    assert len({facts.terms, one.terms, other.terms}) == 3
    assert one.terms == replace(one, device="cuda").terms
