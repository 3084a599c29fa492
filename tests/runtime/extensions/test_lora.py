"""LoRAs on the demo: each image has its own and equals stock's, with the same bytes in every batch,
and a detached LoRA leaves nothing in memory."""

import gc
import json
import shutil
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import torch
from safetensors.torch import load_file, save_file

from serve_app.core.diffusion.samplers import Sampler
from serve_app.core.diffusion.spec import ImageSpec, Stage
from serve_app.core.errors import CheckpointError, ModelUnavailable
from serve_app.core.scheduling.memory_plan import MemoryPlan, MemorySaving
from serve_app.runtime.build import build_stage_model
from serve_app.runtime.checkpoints.bundled import demo_folder
from serve_app.runtime.checkpoints.checkpoint import Checkpoint, inspect
from serve_app.runtime.checkpoints.lora_file import LoraFile, inspect_lora
from serve_app.runtime.engine import Engine
from serve_app.runtime.extensions.extension_set import ExtensionSet
from serve_app.runtime.extensions.lora import LoraExtension
from serve_app.runtime.memory.device import Device, open_device
from serve_app.runtime.memory.memory_probe import Placement
from serve_app.runtime.memory.model_cache import ModelCache
from serve_app.runtime.networks.conditioning import Conditioner
from serve_app.runtime.networks.denoiser import UNetDenoiser
from serve_app.runtime.networks.loading import load
from serve_app.runtime.networks.vae import SdxlVae
from serve_app.runtime.stage_model import Parts, StageModel
from tests.support.engine_runs import Heard, drain, run_images, sample_of, whole
from tests.support.extension_files import lora_files
from tests.support.keys import base_key, lora, lora_key
from tests.support.lora_files import lora_file, merged
from tests.support.lycoris_files import CONVOLUTIONAL, LINEAR, lycoris_file
from tests.support.reference_diffusers import Stock

SPEC = ImageSpec(prompt="a red circle", seed=3, width=128, height=128, steps=5, guidance=5)
ATTENTION = ("to_q", "to_k", "to_v", "to_out.0", "ff.net.2", "q_proj", "out_proj")
EDGES = (  # layers outside the blocks, and layers of the blocks that few trainers change
    "conv_in",
    "conv_out",
    "time_embedding.linear_1",
    "time_embedding.linear_2",
    "add_embedding.linear_1",
    "add_embedding.linear_2",
    "time_emb_proj",
    "conv_shortcut",
    "samplers.0.conv",
    "proj_in",
)
Files = dict[str, LoraFile]


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Files:
    """The same LoRAs in several file formats, and others with other ranks, seeds and layers."""
    folder, demo = tmp_path_factory.mktemp("loras"), demo_folder(Stage.BASE)
    made = {
        "kohya": lora_file(demo, folder / "kohya.safetensors"),
        "peft": lora_file(demo, folder / "peft.safetensors", style="peft"),
        "diffusers": lora_file(demo, folder / "diffusers.safetensors", style="diffusers"),
        "first": lora_file(
            demo,
            folder / "first.safetensors",
            style="processors",
            layers=ATTENTION[:4],
            networks=["unet"],
        ),
        "likewise": lora_file(
            demo, folder / "likewise.safetensors", layers=ATTENTION[:4], networks=["unet"]
        ),
        "some": lora_file(demo, folder / "some.safetensors", layers=ATTENTION),
        "sgm": lora_file(demo, folder / "sgm.safetensors", layers=ATTENTION, style="sgm"),
        "soft.v1": lora_file(demo, folder / "soft.safetensors", seed=1, ranks=[3], alphas=[1.5]),
        "unet": lora_file(
            demo, folder / "unet.safetensors", seed=2, networks=["unet"], layers=["to_q", "to_v"]
        ),
        "text": lora_file(
            demo, folder / "text.safetensors", seed=3, networks=["text_encoder_2"], by=0.6
        ),
    }
    for style in ("kohya", "peft"):
        made[f"dora, {style}"] = lora_file(
            demo,
            folder / f"dora, {style}.safetensors",
            style=style,
            layers=["to_q", "proj_in", "ff.net.2"],
            networks=["unet"],
            dora=0.5,
        )
    for style in ("kohya", "sgm", "peft, alone"):
        made[f"edges, {style}"] = lora_file(
            demo,
            folder / f"edges, {style}.safetensors",
            style=style,
            layers=EDGES,
            networks=["unet"],
            by=0.15,
        )
    return {name: inspect_lora(file) for name, file in made.items()}


def engine_over(
    checkpoint: Checkpoint, device: Device, files: Mapping[str, LoraFile], capacity: int = 2
) -> Engine:
    make = partial(
        build_stage_model,
        checkpoint,
        device,
        images=2,
        strict=True,
        extensions=lora_files(files, capacity=capacity),
    )
    ticks = count()  # one second per reading, so that every step has its snapshot
    cache = ModelCache({base_key("demo"): make}, extension_capacity=capacity)
    return Engine(cache, snapshot_every=1, clock=lambda: float(next(ticks)))


@pytest.fixture(scope="module")
def cpu() -> Device:
    """One thread: LoRAs are small, and two threads would wait for each other."""
    return open_device("cpu", precision="fp32", xformers=False, cpu_threads=1)


@pytest.fixture(scope="module")
def engine(checkpoints: dict[Stage, Checkpoint], cpu: Device, files: Files) -> Engine:
    return engine_over(checkpoints[Stage.BASE], cpu, files)


def with_loras(*loras: tuple[str, float], **others: Any) -> ImageSpec:
    return replace(SPEC, extensions=tuple(lora(*pair) for pair in loras), **others)


def generate(engine: Engine, *specs: ImageSpec) -> list[bytes]:
    return [p.tobytes() for p in run_images({Stage.BASE: engine}, [(spec, None) for spec in specs])]


@pytest.fixture
def stock_with_loras(checkpoints: dict[Stage, Checkpoint]) -> Stock:
    """Stock pipelines that only this test changes."""
    return Stock.over(checkpoints)


@pytest.mark.filterwarnings("ignore:Already found a `peft_config`")  # of stock itself
@pytest.mark.parametrize(
    "active",
    [
        [("kohya", 1.0)],
        [("peft", -0.7)],
        [("diffusers", 0.4)],
        [("soft.v1", 1.0), ("unet", 0.6), ("text", 1.3)],
        [("edges, sgm", 1.0)],
        [("dora, peft", 0.8)],
    ],
    ids=lambda active: "+".join(name for name, _ in active),
)
def test_an_image_with_loras_equals_that_of_stock_diffusers(
    engine: Engine, files: Files, stock_with_loras: Stock, active: list[tuple[str, float]]
) -> None:
    for number, (name, _) in enumerate(sorted(active)):
        path = files[name].path
        stock_with_loras.base.load_lora_weights(
            str(path.parent), weight_name=path.name, adapter_name=f"stock{number}"
        )
    names = [f"stock{number}" for number in range(len(active))]
    stock_with_loras.base.set_adapters(names, [weight for _, weight in sorted(active)])
    spec = with_loras(*active)
    (ours,) = run_images({Stage.BASE: engine}, [(spec, None)])
    assert abs(ours.astype(int) - stock_with_loras.image(spec)).max() <= 2
    assert ours.tobytes() not in generate(engine, SPEC)


def test_equivalent_lora_files_give_the_same_bytes(engine: Engine, files: Files) -> None:
    names = ("kohya", "peft", "diffusers", "some", "sgm", "first", "likewise")
    kohya, peft, diffusers, some, sgm, first, likewise = generate(
        engine, *(with_loras((name, 1.0)) for name in names)
    )
    for kind in ("edges", "dora"):
        same = [with_loras((n, 1.0), steps=2) for n in files if n.startswith(kind)]
        assert len(same) > 1
        assert len(set(generate(engine, *same))) == 1
    assert kohya == peft == diffusers
    assert some == sgm != kohya
    assert first == likewise != some


def test_changes_of_every_kind_of_lycoris_are_applied(
    checkpoints: dict[Stage, Checkpoint], cpu: Device, tmp_path: Path
) -> None:
    """Stock can load none of them, so their formulas give the expected image."""
    demo, plain = demo_folder(Stage.BASE), tmp_path / "plain"
    shutil.copytree(demo, plain)
    (weights,) = (plain / "unet").glob("*.safetensors")
    tensors, file = load_file(weights), {}
    for name, layers, makers in (
        ("linear", ["to_q", "to_k", "to_v", "proj_in"], LINEAR),
        ("convolutional", ["conv1", "conv2", "samplers.0.conv"], CONVOLUTIONAL),
    ):
        path = tmp_path / f"{name}.safetensors"
        for layer, change in lycoris_file(demo, path, layers, list(makers.values()), 0.3).items():
            tensors[f"{layer}.weight"] += 0.8 * change
        file[name] = inspect_lora(path)
    save_file(tensors, weights, {"format": "pt"})
    both = with_loras(("linear", 0.8), ("convolutional", 0.8))
    attached, bare = run_images(
        {Stage.BASE: engine_over(checkpoints[Stage.BASE], cpu, file)}, [(both, None), (SPEC, None)]
    )
    other = replace(inspect(plain, Stage.BASE), name="demo")
    (expected,) = run_images({Stage.BASE: engine_over(other, cpu, {})}, [(SPEC, None)])
    assert abs(attached.astype(int) - expected).max() <= 2
    assert abs(bare.astype(int) - expected).max() > 20


@pytest.mark.parametrize("style", ["kohya", "peft"])
def test_ranks_and_alphas_of_single_layers_are_applied(
    checkpoints: dict[Stage, Checkpoint], cpu: Device, tmp_path: Path, style: str
) -> None:
    """Stock gives most layers the commonest alpha, so the formula gives the expected image."""
    demo, path = demo_folder(Stage.BASE), tmp_path / "a.safetensors"
    lora_file(demo, path, style=style, ranks=[2, 4, 8], alphas=[1, 4, 4, 6, 2], by=0.2)
    file = {"a": inspect_lora(path)}
    (attached,) = run_images(
        {Stage.BASE: engine_over(checkpoints[Stage.BASE], cpu, file)},
        [(with_loras(("a", 0.8)), None)],
    )
    folder = merged(demo, tmp_path / "merged", path, style, weight=0.8)
    other = replace(inspect(folder, Stage.BASE), name="demo")
    (folded,) = run_images({Stage.BASE: engine_over(other, cpu, {})}, [(SPEC, None)])
    assert abs(attached.astype(int) - folded).max() <= 2
    (bare,) = run_images(
        {Stage.BASE: engine_over(checkpoints[Stage.BASE], cpu, {})}, [(SPEC, None)]
    )
    assert abs(bare.astype(int) - folded).max() > 20


def test_a_file_that_was_trained_with_dropout_is_used_without_it(
    checkpoints: dict[Stage, Checkpoint], cpu: Device, tmp_path: Path
) -> None:
    path, layers = tmp_path / "a.safetensors", ["to_q", "to_v"]
    trained = {"r": 4, "lora_alpha": 4, "target_modules": layers, "lora_dropout": 0.5}
    reported = json.dumps({f"unet.{name}": value for name, value in trained.items()})
    pictures = []
    for notes in ({}, {"lora_adapter_metadata": reported}):
        lora_file(
            demo_folder(Stage.BASE),
            path,
            style="peft",
            networks=["unet"],
            layers=layers,
            notes={"format": "pt"} | notes,
        )
        file = {"a": inspect_lora(path)}
        engine = engine_over(checkpoints[Stage.BASE], cpu, file)
        pictures += [generate(engine, with_loras(("a", 1.0)))[0] for _ in range(2)]
    assert len(set(pictures)) == 1


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


@pytest.mark.parametrize("capacity", [1, pytest.param(2, marks=pytest.mark.long)])
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


def test_offloaded_layers_and_encoders_apply_loras_too(
    checkpoints: dict[Stage, Checkpoint], cpu: Device, files: Files, engine: Engine
) -> None:
    base = checkpoints[Stage.BASE]
    modules = load(base, cpu)
    Placement(modules, cpu).apply((MemorySaving.TEXT_ON_CPU, MemorySaving.UNET_ON_CPU))
    model = StageModel(
        profile=cpu.numeric_profile(Stage.BASE, 4, base.name),
        memory_plan=MemoryPlan(2),
        device=cpu,
        parts=Parts(
            Conditioner(modules.text_encoders, base),
            UNetDenoiser(modules.unet, base.noise_config.preconditioning, cpu.dtype),
            SdxlVae(modules.vae, cpu.torch_device),
            ExtensionSet({"lora": LoraExtension(modules, files)}),
        ),
    )
    specs = [with_loras(("soft.v1", 1.0)), SPEC, with_loras(("kohya", 1.0))]
    assert generate(Engine(ModelCache.of(model), snapshot_every=9), *specs) == generate(
        engine, *specs
    )


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


@pytest.mark.parametrize("rounds", [12, pytest.param(100, marks=pytest.mark.long)])
def test_switching_leaks_no_memory(
    checkpoints: dict[Stage, Checkpoint], cpu: Device, files: Files, rounds: int
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
    switch(rounds)
    assert tensors() == before
    more = psutil.Process().memory_info().rss - memory
    print(f"{rounds} switches: {more / 1e6:+.1f} MB")
    assert more < 8e6 + rounds * files["kohya"].num_parameters  # of four bytes each
    assert {name: len(seen) for name, seen in pictures.items()} == dict.fromkeys(names, 1)
