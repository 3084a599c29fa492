"""LoRAs that are attached, refused and detached: each image has its own, and no trace is left."""

import gc
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import psutil
import pytest
import torch
from safetensors.torch import load_file, save_file

from serve_app.core.diffusion.samplers import Sampler
from serve_app.core.diffusion.spec import ImageSpec, Stage
from serve_app.core.errors import CheckpointError, ModelUnavailable
from serve_app.runtime.build import build_stage_model
from serve_app.runtime.checkpoints.bundled import demo_folder
from serve_app.runtime.checkpoints.checkpoint import Checkpoint
from serve_app.runtime.checkpoints.lora_file import inspect_lora
from serve_app.runtime.engine import Engine
from serve_app.runtime.extensions.lora import LoraExtension
from serve_app.runtime.memory.device import Device
from serve_app.runtime.memory.model_cache import ModelCache
from serve_app.runtime.networks.loading import load
from tests.support.engine_runs import Heard, drain, sample_of, whole
from tests.support.extension_files import lora_files
from tests.support.keys import base_key, lora_key
from tests.support.lora_engines import SPEC, Files, engine_over, generate, with_loras
from tests.support.lora_files import lora_file


def mixed_specs() -> list[ImageSpec]:
    """Two LoRAs at once, with every option that may differ between images."""
    return [
        SPEC,
        replace(SPEC, seed=5, steps=3),
        with_loras(("soft.v1", 1.0)),
        with_loras(("soft.v1", 1.0), seed=9, steps=9, negative_prompt="blur"),
        with_loras(("unet", 1.0)),
        with_loras(("unet", 1.0), seed=8, guidance=1.0, sampler=Sampler.EULER_A),
        with_loras(("unet", 0.5)),
        with_loras(("unet", 1.0), ("soft.v1", 1.0)),
    ]


def test_an_image_has_its_bytes_beside_loras_that_take_turns(
    checkpoints: dict[Stage, Checkpoint], cpu: Device, files: Files
) -> None:
    """The short form of the next test: one LoRA is attached at a time."""
    specs = [replace(SPEC, steps=2), *(with_loras((n, 1.0), steps=2) for n in ("soft.v1", "unet"))]
    plain = engine_over(checkpoints[Stage.BASE], cpu, {})
    together = engine_over(checkpoints[Stage.BASE], cpu, files, capacity=1)
    alone = generate(plain, specs[0]) + [generate(together, spec)[0] for spec in specs[1:]]
    assert generate(together, *specs) == alone
    assert len(set(alone)) == len(alone)


@pytest.mark.long
@pytest.mark.parametrize("capacity", [1, 2])
def test_loras_requested_together_change_only_their_own_images(
    checkpoints: dict[Stage, Checkpoint], cpu: Device, files: Files, capacity: int
) -> None:
    alone = []
    for names in ([], ["soft.v1"], ["unet"], ["soft.v1", "unet"]):
        lone = engine_over(checkpoints[Stage.BASE], cpu, {name: files[name] for name in names})
        alone += [
            generate(lone, spec)[0]
            for spec in mixed_specs()
            if names == sorted(lora.name for lora in spec.extensions)
        ]
    together = engine_over(checkpoints[Stage.BASE], cpu, files, capacity)
    assert generate(together, *mixed_specs()) == alone
    assert len(set(alone)) == len(alone)
    assert generate(together, *reversed(mixed_specs())) == alone[::-1]


def test_the_order_of_loras_and_a_weight_of_zero_change_no_byte(
    engine: Engine,
) -> None:
    some = [("unet", 1.0), ("soft.v1", 0.5)]
    given, reverse, more = (
        with_loras(*loras) for loras in (some, some[::-1], [*some, ("text", 0.0)])
    )
    assert len(set(generate(engine, given, reverse, more))) == 1
    assert lora_key("text") not in engine.models.attached_extensions[base_key("demo")]


def test_an_image_continues_with_its_loras(
    checkpoints: dict[Stage, Checkpoint], cpu: Device, engine: Engine, files: Files
) -> None:
    first, heard = sample_of(with_loras(("soft.v1", 1.0))), Heard()
    engine.submit(first, whole(first), heard)
    drain(engine)
    another, again = engine_over(checkpoints[Stage.BASE], cpu, files), Heard()
    snapshot = next(snapshot for snapshot in heard.snapshots if snapshot.index == 3)
    another.submit(snapshot, whole(first), again)
    drain(another)
    assert np.array_equal(again.picture, heard.picture)


def test_a_lora_that_does_not_fit_the_model_is_refused_entirely(
    checkpoints: dict[Stage, Checkpoint], cpu: Device, files: Files, tmp_path: Path
) -> None:
    tensors = load_file(files["peft"].path)
    other, wide = tmp_path / "other.safetensors", tmp_path / "wide.safetensors"
    elsewhere = {
        "unet.elsewhere.to_q.lora_A.weight": torch.ones(4, 96),
        "unet.elsewhere.to_q.lora_B.weight": torch.ones(96, 4),
    }
    save_file(tensors | elsewhere, other)
    save_file(
        {
            name: tensor.repeat(1, 2, *[1] * (tensor.dim() - 2)) if "lora_A" in name else tensor
            for name, tensor in tensors.items()
        },
        wide,
    )
    modules = load(checkpoints[Stage.BASE], cpu)
    before = [(name, tensor.clone()) for name, tensor in modules.unet.state_dict().items()]
    bad = {path.stem: inspect_lora(path) for path in (other, wide)}
    changed = inspect_lora(lora_file(demo_folder(Stage.BASE), tmp_path / "new.safetensors"))
    lora_file(demo_folder(Stage.BASE), changed.path, seed=9)
    bad["new"] = changed
    tensors["unet.mid_block.resnets.0.conv1.lora_B.weight"][3] = float("nan")
    save_file(tensors, tmp_path / "damaged.safetensors")
    bad["damaged"] = inspect_lora(tmp_path / "damaged.safetensors")
    problems = {
        "other": "without a place there: 1 of 118 (unet.elsewhere.to_q)",
        "wide": "layers of another size: 117 of 117",
        "new": "was changed after the service started",
        "damaged": "whose tensor unet.mid_block.resnets.0.conv1.lora_B.weight is damaged: 4 NaN",
    }
    adapters = LoraExtension(modules, bad | files)
    adapters.attach("unet")
    for name, file in bad.items():
        with pytest.raises(CheckpointError) as refused:
            adapters.attach(name)
        assert refused.value.subject == f"the LoRA {name} ({file.path})"
        assert problems[name] in refused.value.problem
    assert adapters.attached == ("unet",)
    adapters.detach("unet")
    after = {name.replace(".base_layer", ""): t for name, t in modules.unet.state_dict().items()}
    assert after.keys() == dict(before).keys()
    assert all(torch.equal(tensor, after[name]) for name, tensor in before)


def test_a_lora_that_fails_to_attach_ends_only_its_samples_and_is_not_retried_at_once(
    checkpoints: dict[Stage, Checkpoint], cpu: Device, files: Files, tmp_path: Path
) -> None:
    missing = lora_file(demo_folder(Stage.BASE), tmp_path / "absent.safetensors", networks=["unet"])
    available = {"absent": inspect_lora(missing), "unet": files["unet"]}
    kept = missing.rename(tmp_path / "kept.safetensors")
    now = [0.0]
    make = partial(
        build_stage_model,
        checkpoints[Stage.BASE],
        cpu,
        images=2,
        strict=True,
        extensions=lora_files(available, capacity=2),
    )
    engine = Engine(
        ModelCache({base_key("demo"): make}, extension_capacity=2, clock=lambda: now[0]),
        snapshot_every=9,
    )

    def submit_both() -> dict[str, Heard]:
        heard = {name: Heard() for name in ("absent", "unet")}
        for name, listener in heard.items():
            sample = sample_of(with_loras((name, 1.0), steps=1), name)
            engine.submit(sample, whole(sample), listener)
        drain(engine)
        return heard

    for _ in range(2):
        heard = submit_both()
        assert isinstance(heard["absent"].failed.error, ModelUnavailable)
        assert str(heard["absent"].failed.error) == (
            "the LoRA absent can't be loaded. The service's log says why"
        )
        assert heard["unet"].finished
        if kept.exists():
            kept.rename(missing)  # back, but it is not retried yet
    now[0] = 61.0
    assert submit_both()["absent"].finished
    engine.check()


ROUNDS = 100  # of switching LoRAs


@pytest.mark.long
def test_switching_leaks_no_memory(
    checkpoints: dict[Stage, Checkpoint], cpu: Device, files: Files
) -> None:
    """No tensor stays, and memory grows by less than the LoRAs of all rounds."""
    names = ("kohya", "soft.v1", "peft")
    make = partial(
        build_stage_model,
        checkpoints[Stage.BASE],
        cpu,
        images=1,
        strict=False,
        extensions=lora_files(files),
    )
    engine = Engine(ModelCache({base_key("demo"): make}, extension_capacity=1), snapshot_every=9)
    pictures: dict[str, set[bytes]] = {name: set() for name in names}

    def switch(times: int) -> None:
        for number in range(times):
            name = names[number % 3]
            pictures[name] |= set(generate(engine, with_loras((name, 1.0), steps=1, guidance=1.0)))
        gc.collect()

    def tensors() -> int:
        return sum(issubclass(type(value), torch.Tensor) for value in gc.get_objects())

    switch(6)
    before, memory = tensors(), psutil.Process().memory_info().rss
    switch(ROUNDS)
    assert tensors() == before
    more = psutil.Process().memory_info().rss - memory
    print(f"{ROUNDS} switches: {more / 1e6:+.1f} MB")
    assert more < 8e6 + ROUNDS * files["kohya"].num_parameters  # of four bytes each
    assert {name: len(seen) for name, seen in pictures.items()} == dict.fromkeys(names, 1)
