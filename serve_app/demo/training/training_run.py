"""A training run: steps of AdamW that continue where they were interrupted.

The caller gives a loss for every step. Everything random in it must come from the step's number, so
that an interrupted run ends with the weights of an uninterrupted one.
"""

import json
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from math import cos, pi
from pathlib import Path
from typing import Any

import torch
from torch import nn

_WARM_UP, _LOG_EVERY = 100, 50  # steps
_CLIP = 1.0


@dataclass(frozen=True, slots=True)
class TrainingRun:
    """Cosine learning rate after a warm-up, gradients clipped at norm 1, weights averaged."""

    name: str
    steps: int
    rate: float  # the highest learning rate
    decay: float  # weight decay
    ema_decay: float  # of the averaged weights, per step
    folder: Path  # of the state and the log
    origin: Mapping[str, Any]  # what decides the weights: seed, commit, versions
    save_every: float = 300.0  # seconds

    @property
    def seed(self) -> int:
        """The seed of everything random."""
        return int(self.origin["seed"])

    def train(
        self, networks: Mapping[str, nn.Module], loss: Callable[[int], torch.Tensor]
    ) -> dict[str, dict[str, torch.Tensor]]:
        """Train, and return the averaged weights by network; the networks get them too.

        Raises `ValueError` if the run was started with another seed.
        """
        weights = [p for net in networks.values() for p in net.parameters() if p.requires_grad]
        optimizer = torch.optim.AdamW(
            weights, lr=self.rate, betas=(0.9, 0.99), weight_decay=self.decay
        )
        average = {name: _copied(net.state_dict()) for name, net in networks.items()}
        start, made = self._resume(networks, optimizer, average)
        started = saved = time.monotonic()
        tally: list[float] = []
        for step in range(start, self.steps):
            for group in optimizer.param_groups:
                group["lr"] = self.rate_at(step)
            optimizer.zero_grad(set_to_none=True)
            value = loss(step)
            value.backward()
            nn.utils.clip_grad_norm_(weights, _CLIP)
            optimizer.step()
            self._update_average(networks, average, step)
            tally.append(float(value.detach()))
            if (step + 1) % _LOG_EVERY == 0:
                now = time.monotonic()
                self._log(step + 1, sum(tally) / len(tally), (now - started) / (step + 1 - start))
                tally.clear()
            if time.monotonic() - saved > self.save_every or step + 1 == self.steps:
                self._save(networks, optimizer, average, step + 1, made)
                saved = time.monotonic()
        for name, net in networks.items():
            net.load_state_dict(average[name])
        return average

    def rate_at(self, step: int) -> float:
        """Return the learning rate of a step: a warm-up, then a cosine."""
        if step < _WARM_UP:
            return self.rate * (step + 1) / _WARM_UP
        return self.rate * (0.02 + 0.98 * (1 + cos(pi * step / self.steps)) / 2)

    def _update_average(
        self,
        networks: Mapping[str, nn.Module],
        average: dict[str, dict[str, torch.Tensor]],
        step: int,
    ) -> None:
        decay = min(self.ema_decay, (1 + step) / (10 + step))
        with torch.no_grad():
            for name, net in networks.items():
                for key, weight in net.state_dict().items():
                    if weight.is_floating_point():
                        average[name][key].lerp_(weight, 1 - decay)

    def finished(self, networks: Mapping[str, nn.Module]) -> dict[str, Any]:
        """Load the averaged weights into the networks, and return the record of the run.

        Raises `ValueError` if it is not finished.
        """
        if not self.begun:
            raise ValueError(f"the run {self.name} has not started: train it first")
        state: dict[str, Any] = torch.load(self._state, weights_only=True)
        if state["step"] < self.steps:
            raise ValueError(
                f"the run {self.name} is at step {state['step']} of {self.steps}: train it on"
            )
        for name, net in networks.items():
            net.load_state_dict(state["average"][name])
            net.eval()
        return {"steps": state["step"], "made": state["made"]}

    @property
    def begun(self) -> bool:
        """Whether there is a state to continue from."""
        return self._state.exists()

    @property
    def _state(self) -> Path:
        return self.folder / f"{self.name}.state.pt"

    def _resume(
        self,
        networks: Mapping[str, nn.Module],
        optimizer: torch.optim.Optimizer,
        average: dict[str, dict[str, torch.Tensor]],
    ) -> tuple[int, list[dict[str, Any]]]:
        """Load the state; return the next step and the origins of the weights so far."""
        origin = {"from step": 0, **self.origin}
        if not self.begun:
            return 0, [origin]
        state: dict[str, Any] = torch.load(self._state, weights_only=True)
        made: list[dict[str, Any]] = state["made"]
        if made[-1]["seed"] != self.origin["seed"]:
            raise ValueError(
                f"{self._state} was started with seed {made[-1]['seed']}, not "
                f"{self.origin['seed']}: use that seed, or another --folder"
            )
        for name, net in networks.items():
            net.load_state_dict(state["networks"][name])
            average[name] = state["average"][name]
        optimizer.load_state_dict(state["optimizer"])
        step = int(state["step"])
        if step < self.steps and {**made[-1], "from step": 0} != origin:
            made.append({**origin, "from step": step})
        return step, made

    def _save(
        self,
        networks: Mapping[str, nn.Module],
        optimizer: torch.optim.Optimizer,
        average: dict[str, dict[str, torch.Tensor]],
        step: int,
        made: list[dict[str, Any]],
    ) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        draft = self._state.with_suffix(".draft")
        torch.save(
            {
                "step": step,
                "made": made,
                "networks": {name: net.state_dict() for name, net in networks.items()},
                "average": average,
                "optimizer": optimizer.state_dict(),
            },
            draft,
        )
        draft.replace(self._state)

    def _log(self, step: int, loss: float, seconds: float) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        line = {"step": step, "loss": round(loss, 5), "seconds_per_step": round(seconds, 3)}
        with (self.folder / f"{self.name}.jsonl").open("a", encoding="utf-8") as record:
            record.write(json.dumps(line) + "\n")
        print(f"{self.name} {step}/{self.steps} loss {loss:.4f} {seconds:.3f} s/step", flush=True)


def _copied(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {key: value.detach().clone() for key, value in state.items()}
