from pathlib import Path

import pytest
import torch
from torch import nn

from serve_app.demo.training.__main__ import origin_of
from serve_app.demo.training.training_run import TrainingRun

GOAL = torch.tensor([[1.0, -2.0, 0.5]])


def course(folder: Path, steps: int = 60, seed: int = 1, commit: str = "a") -> TrainingRun:
    origin = {"seed": seed, "commit": commit}
    return TrainingRun("line", steps, 0.05, 0.0, 0.9, folder, origin, save_every=0.0)


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Linear(3, 1)


def lesson(net: nn.Module, step: int) -> torch.Tensor:
    x = torch.randn(16, 3, generator=torch.Generator().manual_seed(step))
    return (net(x) - x @ GOAL.T).square().mean()


def test_a_course_learns(tmp_path: Path) -> None:
    net = network()
    course(tmp_path, 400).train({"line": net}, lambda step: lesson(net, step))
    assert torch.allclose(net.weight, GOAL, atol=0.05)


def test_an_interrupted_course_ends_with_the_weights_of_an_unbroken_one(tmp_path: Path) -> None:
    whole = network()
    course(tmp_path / "whole").train({"line": whole}, lambda step: lesson(whole, step))

    def until_the_lights_go_out(net: nn.Module, step: int) -> torch.Tensor:
        if step == 35:
            raise KeyboardInterrupt
        return lesson(net, step)

    broken = network()
    with pytest.raises(KeyboardInterrupt):
        course(tmp_path / "cut").train(
            {"line": broken}, lambda step: until_the_lights_go_out(broken, step)
        )
    again = network()
    steps = []

    def count(step: int) -> torch.Tensor:
        steps.append(step)
        return lesson(again, step)

    resumed = course(tmp_path / "cut", commit="b")
    resumed.train({"line": again}, count)
    assert steps == list(range(35, 60))
    for key, value in whole.state_dict().items():
        assert torch.equal(value, again.state_dict()[key])
    assert resumed.finished({})["made"] == [
        {"from step": 0, "seed": 1, "commit": "a"},
        {"from step": 35, "seed": 1, "commit": "b"},
    ]


def test_a_finished_course_is_taken_as_it_is(tmp_path: Path) -> None:
    net = network()
    course(tmp_path).train({"line": net}, lambda step: lesson(net, step))
    later = network()
    course(tmp_path).train({"line": later}, lambda step: pytest.fail("it learns once more"))
    assert torch.equal(later.weight, net.weight)


def test_the_learning_rate_warms_up_and_falls(tmp_path: Path) -> None:
    rates = [course(tmp_path, 1000).rate_at(step) for step in (0, 50, 100, 500, 999)]
    assert rates[0] < rates[1] < rates[2] > rates[3] > rates[4] > 0
    assert rates[4] == pytest.approx(0.02 * 0.05, rel=0.01)


def test_a_course_of_another_seed_is_not_gone_on_with(tmp_path: Path) -> None:
    net = network()
    course(tmp_path).train({"line": net}, lambda step: lesson(net, step))
    with pytest.raises(ValueError, match="begun with seed 1, not 2"):
        course(tmp_path, seed=2).train({"line": net}, lambda step: lesson(net, step))


def test_only_a_finished_course_is_packed(tmp_path: Path) -> None:
    net = network()
    with pytest.raises(ValueError, match="has not begun"):
        course(tmp_path).finished({"line": net})
    course(tmp_path, 20).train({"line": net}, lambda step: lesson(net, step))
    with pytest.raises(ValueError, match="at step 20 of 60"):
        course(tmp_path).finished({"line": net})
    assert course(tmp_path, 20).finished({"line": network()})["steps"] == 20


def test_what_the_command_notes_of_itself_can_be_read_again(tmp_path: Path) -> None:
    net, origin = network(), origin_of(1)
    noted = TrainingRun("line", 3, 0.05, 0.0, 0.9, tmp_path, origin, save_every=0.0)
    noted.train({"line": net}, lambda step: lesson(net, step))
    assert noted.finished({})["made"] == [{"from step": 0, **origin}]
    assert origin["torch"] == torch.__version__
