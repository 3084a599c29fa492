from pathlib import Path

import pytest
import torch
from torch import nn

from serve_app.demo.training.__main__ import origin_of
from serve_app.demo.training.training_run import TrainingRun

TARGET = torch.tensor([[1.0, -2.0, 0.5]])


def run(folder: Path, steps: int = 60, seed: int = 1, commit: str = "a") -> TrainingRun:
    origin = {"seed": seed, "commit": commit}
    return TrainingRun("line", steps, 0.05, 0.0, 0.9, folder, origin, save_every=0.0)


def network() -> nn.Linear:
    torch.manual_seed(0)
    return nn.Linear(3, 1)


def loss_of(net: nn.Linear, step: int) -> torch.Tensor:
    x = torch.randn(16, 3, generator=torch.Generator().manual_seed(step))
    loss: torch.Tensor = (net(x) - x @ TARGET.T).square().mean()
    return loss


def test_a_run_learns(tmp_path: Path) -> None:
    net = network()
    run(tmp_path, 400).train({"line": net}, lambda step: loss_of(net, step))
    assert torch.allclose(net.weight, TARGET, atol=0.05)


def test_an_interrupted_run_ends_with_the_weights_of_an_uninterrupted_one(tmp_path: Path) -> None:
    whole = network()
    run(tmp_path / "whole").train({"line": whole}, lambda step: loss_of(whole, step))

    def until_interrupted(net: nn.Linear, step: int) -> torch.Tensor:
        if step == 35:
            raise KeyboardInterrupt
        return loss_of(net, step)

    broken = network()
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "cut").train({"line": broken}, lambda step: until_interrupted(broken, step))
    again = network()
    steps = []

    def count(step: int) -> torch.Tensor:
        steps.append(step)
        return loss_of(again, step)

    resumed = run(tmp_path / "cut", commit="b")
    resumed.train({"line": again}, count)
    assert steps == list(range(35, 60))
    for key, value in whole.state_dict().items():
        assert torch.equal(value, again.state_dict()[key])
    assert resumed.finished({})["made"] == [
        {"from step": 0, "seed": 1, "commit": "a"},
        {"from step": 35, "seed": 1, "commit": "b"},
    ]


def test_a_finished_run_does_not_train_again(tmp_path: Path) -> None:
    net = network()
    run(tmp_path).train({"line": net}, lambda step: loss_of(net, step))
    later = network()
    run(tmp_path).train({"line": later}, lambda step: pytest.fail("it learns once more"))
    assert torch.equal(later.weight, net.weight)


def test_the_learning_rate_warms_up_and_falls(tmp_path: Path) -> None:
    rates = [run(tmp_path, 1000).rate_at(step) for step in (0, 50, 100, 500, 999)]
    assert rates[0] < rates[1] < rates[2] > rates[3] > rates[4] > 0
    assert rates[4] == pytest.approx(0.02 * 0.05, rel=0.01)


def test_a_run_with_another_seed_does_not_continue(tmp_path: Path) -> None:
    net = network()
    run(tmp_path).train({"line": net}, lambda step: loss_of(net, step))
    with pytest.raises(ValueError, match="started with seed 1, not 2"):
        run(tmp_path, seed=2).train({"line": net}, lambda step: loss_of(net, step))


def test_only_a_finished_run_can_be_packed(tmp_path: Path) -> None:
    net = network()
    with pytest.raises(ValueError, match="has not started"):
        run(tmp_path).finished({"line": net})
    run(tmp_path, 20).train({"line": net}, lambda step: loss_of(net, step))
    with pytest.raises(ValueError, match="at step 20 of 60"):
        run(tmp_path).finished({"line": net})
    assert run(tmp_path, 20).finished({"line": network()})["steps"] == 20


def test_the_origin_of_the_weights_can_be_read_again(tmp_path: Path) -> None:
    net, origin = network(), origin_of(1)
    noted = TrainingRun("line", 3, 0.05, 0.0, 0.9, tmp_path, origin, save_every=0.0)
    noted.train({"line": net}, lambda step: loss_of(net, step))
    assert noted.finished({})["made"] == [{"from step": 0, **origin}]
    assert origin["torch"] == torch.__version__
