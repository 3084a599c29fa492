"""An image with LoRAs equals that of stock diffusers, or what the formula of its change gives."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

from serve_app.core.diffusion.spec import Stage
from serve_app.core.scheduling.memory_plan import MemoryPlan, MemorySaving
from serve_app.runtime.checkpoints.bundled import demo_folder
from serve_app.runtime.checkpoints.checkpoint import Checkpoint, inspect
from serve_app.runtime.checkpoints.lora_file import inspect_lora
from serve_app.runtime.engine import Engine
from serve_app.runtime.extensions.extension_set import ExtensionSet
from serve_app.runtime.extensions.lora import LoraExtension
from serve_app.runtime.memory.device import Device
from serve_app.runtime.memory.memory_probe import Placement
from serve_app.runtime.memory.model_cache import ModelCache
from serve_app.runtime.networks.conditioning import Conditioner
from serve_app.runtime.networks.denoiser import UNetDenoiser
from serve_app.runtime.networks.loading import load
from serve_app.runtime.networks.prepacked import keep_plain_weights, prepack_unet
from serve_app.runtime.networks.row_layers import compute_by_row
from serve_app.runtime.networks.vae import SdxlVae
from serve_app.runtime.parts import Parts
from serve_app.runtime.stage_model import StageModel
from tests.support.engine_runs import run_images
from tests.support.lora_engines import SPEC, Files, engine_over, generate, with_loras
from tests.support.lora_files import lora_file, merged
from tests.support.lycoris_files import CONVOLUTIONAL, LINEAR, lycoris_file
from tests.support.reference_diffusers import Stock


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


@pytest.mark.long
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


@pytest.mark.parametrize("style", ["kohya", pytest.param("peft", marks=pytest.mark.long)])
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


def test_offloaded_layers_and_encoders_apply_loras_too(
    checkpoints: dict[Stage, Checkpoint], cpu: Device, files: Files
) -> None:
    base = checkpoints[Stage.BASE]
    modules = load(base, cpu)
    compute_by_row(modules.unet, cpu)
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
    resident = engine_over(base, replace(cpu, prepacked=False), files)
    assert generate(Engine(ModelCache.of(model), snapshot_every=9), *specs) == generate(
        resident, *specs
    )


def test_layers_have_plain_weights_only_while_a_dora_reads_them(
    checkpoints: dict[Stage, Checkpoint], cpu: Device, files: Files
) -> None:
    if not cpu.prepacked:
        pytest.skip("this machine prepacks no weights")
    modules = load(checkpoints[Stage.BASE], cpu)
    prepack_unet(modules.unet, (16, 16))
    loras = LoraExtension(modules, files)

    def plain_layers() -> list[str]:
        layers = modules.unet.named_modules()
        return [name for name, layer in layers if getattr(layer, "plain", None) is not None]

    keep_plain_weights(modules.unet.conv_in, kept=True)  # as an attach leaves it that fails
    loras.attach("kohya")
    assert not plain_layers()
    loras.attach("dora, peft")
    read = plain_layers()
    assert read
    loras.attach("soft.v1")
    assert plain_layers() == read
    loras.detach("dora, peft")
    assert not plain_layers()
