"""The table of samplers: complete, and with no name twice."""

from collections import Counter

import pytest

from serve_app.core.diffusion.samplers import TABLE, Sampler, SigmaSpacing, Solver


def test_every_row_and_spacing_is_a_sampler_and_nothing_else_is() -> None:
    names = [row.name(spacing) for row in TABLE for spacing in row.spacings]
    assert Counter(names) == Counter(Sampler)


def test_every_solver_has_one_row() -> None:
    assert Counter(row.solver for row in TABLE) == Counter(Solver)


@pytest.mark.parametrize(
    ("name", "solver", "spacing"),
    [
        ("euler", Solver.EULER, SigmaSpacing.CHECKPOINT),
        ("euler_a", Solver.EULER_A, SigmaSpacing.CHECKPOINT),
        ("euler_a_trailing", Solver.EULER_A, SigmaSpacing.TRAILING),
        ("dpmpp_sde_karras", Solver.DPMPP_SDE, SigmaSpacing.KARRAS),
        ("dpmpp_2m_sde_exponential", Solver.DPMPP_2M_SDE, SigmaSpacing.EXPONENTIAL),
    ],
)
def test_a_name_is_the_solver_and_then_the_spacing(
    name: str, solver: Solver, spacing: SigmaSpacing
) -> None:
    assert (Sampler(name).solver, Sampler(name).spacing) == (solver, spacing)


def test_other_tools_know_each_solver_and_spacing_by_a_name_of_its_own() -> None:
    assert len({row.a1111_name for row in TABLE}) == len(TABLE)
    assert len({spacing.a1111_name for spacing in SigmaSpacing}) == len(SigmaSpacing)
