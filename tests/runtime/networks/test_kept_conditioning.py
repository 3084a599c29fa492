"""A UNet that keeps what depends on the conditioning alone has the bits of one that does not."""

import weakref
from collections import Counter
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import torch

from serve_app.core.diffusion.extensions import ExtensionKey
from serve_app.core.diffusion.inputs import NO_INPUTS
from serve_app.core.diffusion.prompt import ENCODED_TOKENS
from serve_app.core.diffusion.spec import ImageSpec, Stage
from serve_app.core.scheduling.memory_plan import MemorySaving
from serve_app.runtime.checkpoints.bundled import demo_folder
from serve_app.runtime.checkpoints.checkpoint import Checkpoint
from serve_app.runtime.checkpoints.lora_file import inspect_lora
from serve_app.runtime.local import LocalPipeline
from serve_app.runtime.memory.device import Device
from serve_app.runtime.memory.memory_probe import Placement
from serve_app.runtime.networks.compiled_unet import CompiledUNet
from serve_app.runtime.networks.kept_conditioning import (
    KeepingAttention,
    KeepingUNet,
    forget_conditioning,
    keep_conditioning,
    kept_bytes,
    limit_kept_conditioning,
    stop_keeping,
)
from serve_app.runtime.networks.loading import Modules, load
from serve_app.runtime.networks.quiet import diffusers
from tests.support.extension_files import lora_files
from tests.support.keys import lora
from tests.support.lora_files import lora_file

LATENTS = (16, 12)
MAX_TOKENS = 4 * ENCODED_TOKENS
Conditioning = tuple[torch.Tensor, torch.Tensor, torch.Tensor]  # prompt, pooled prompt, time ids

pytestmark = pytest.mark.usefixtures("inference")


@pytest.fixture(scope="module")
def stock(checkpoints: dict[Stage, Checkpoint], cpu: Device) -> Modules:
    return load(checkpoints[Stage.BASE], cpu)


@pytest.fixture
def unet(stock: Modules) -> Any:
    """A copy that keeps its conditioning."""
    unet = deepcopy(stock.unet)
    keep_conditioning(unet, MAX_TOKENS)
    return unet


@pytest.fixture
def calls(unet: Any) -> Counter[str]:
    """How often layers of the UNet are called, by the end of their names."""
    calls = Counter[str]()

    def count(end: str) -> Any:
        return lambda *_: calls.update([end])

    for name, module in unet.named_modules():
        for end in ("attn2.to_q", "attn2.to_k", "attn2.to_v", "attn1.to_k", "add_embedding"):
            if name.endswith(end):
                module.register_forward_hook(count(end))
    return calls


def conditioning(unet: Any, seed: int, rows: int = 2, chunks: int = 1) -> Conditioning:
    generator, config = torch.Generator().manual_seed(seed), unet.config
    pooled = config.projection_class_embeddings_input_dim - 6 * config.addition_time_embed_dim
    return (
        torch.randn(rows, chunks * ENCODED_TOKENS, config.cross_attention_dim, generator=generator),
        torch.randn(rows, pooled, generator=generator),
        torch.full((rows, 6), 128.0 + seed),
    )


def step(unet: Any, number: int, conditioning: Conditioning) -> torch.Tensor:
    """Return what the UNet predicts at a step, which decides latents and timestep."""
    prompt, pooled, ids = conditioning
    generator = torch.Generator().manual_seed(number)
    result: torch.Tensor = unet(
        torch.randn(len(prompt), 4, *LATENTS, generator=generator),
        torch.full((len(prompt),), 900.0 - number),
        encoder_hidden_states=prompt,
        added_cond_kwargs={"text_embeds": pooled, "time_ids": ids},
        return_dict=False,
    )[0]
    return result


def test_every_step_has_the_bits_of_stock_diffusers(stock: Modules, unet: Any) -> None:
    first, second = conditioning(unet, 1), conditioning(unet, 2, rows=3)
    for number, given in enumerate((first, first, second, first, second, second)):
        assert torch.equal(step(unet, number, given), step(stock.unet, number, given))


def test_a_prompt_is_projected_at_the_first_step_of_a_batch_alone(
    unet: Any, calls: Counter[str]
) -> None:
    given = conditioning(unet, 1)
    step(unet, 1, given)
    once = dict(calls)
    assert once["attn2.to_k"] == once["attn2.to_v"] == once["attn2.to_q"] > 0
    assert once["add_embedding"] == 1
    for number in (2, 3):
        step(unet, number, given)
    of_latents = {"attn2.to_q", "attn1.to_k"}
    assert calls == {name: count * (3 if name in of_latents else 1) for name, count in once.items()}
    step(unet, 4, conditioning(unet, 1))  # equal, but another batch
    assert calls["attn2.to_k"] == 2 * once["attn2.to_k"]
    assert calls["add_embedding"] == 2


@pytest.mark.parametrize("part", range(3), ids=["prompt", "pooled", "time ids"])
def test_each_part_of_the_conditioning_is_recognized(stock: Modules, unet: Any, part: int) -> None:
    first, second = conditioning(unet, 1), conditioning(unet, 2)
    mixed: Any = tuple(second[i] if i == part else first[i] for i in range(3))
    step(unet, 1, first)
    assert torch.equal(step(unet, 2, mixed), step(stock.unet, 2, mixed))


def test_what_is_forgotten_is_no_longer_in_memory(unet: Any) -> None:
    given = conditioning(unet, 1)
    step(unet, 1, given)
    width = sum(
        module.to_k.out_features + module.to_v.out_features
        for name, module in unet.named_modules()
        if name.endswith("attn2")
    )
    assert kept_bytes(unet) == 2 * ENCODED_TOKENS * width * 4
    tensors = [weakref.ref(part) for part in given]
    del given
    forget_conditioning(unet)
    assert kept_bytes(unet) == 0
    assert all(tensor() is None for tensor in tensors)


@pytest.mark.parametrize(("rows", "chunks", "keeps"), [(2, 2, True), (4, 1, True), (3, 2, False)])
def test_prompts_that_are_longer_than_those_of_a_full_batch_are_not_kept(
    stock: Modules, unet: Any, calls: Counter[str], rows: int, chunks: int, *, keeps: bool
) -> None:
    short, long = conditioning(unet, 1), conditioning(unet, 2, rows, chunks)
    step(unet, 1, short)
    calls.clear()
    for number in (2, 3):
        assert torch.equal(step(unet, number, long), step(stock.unet, number, long))
    assert calls["attn2.to_k"] == calls["attn2.to_q"] / (2 if keeps else 1)
    assert (kept_bytes(unet) > 0) == keeps


def test_the_limit_can_be_lowered(unet: Any, stock: Modules) -> None:
    given = conditioning(unet, 1)
    step(unet, 1, given)
    limit_kept_conditioning(unet, ENCODED_TOKENS)
    assert kept_bytes(unet) == 0
    step(unet, 2, given)
    assert kept_bytes(unet) == 0
    limit_kept_conditioning(stock.unet, 1)  # which keeps nothing


def test_a_loaded_model_projects_each_prompt_once(
    checkpoints: dict[Stage, Checkpoint], cpu: Device
) -> None:
    calls = Counter[str]()

    def load_modules(checkpoint: Checkpoint, device: Device) -> Modules:
        modules = load(checkpoint, device)
        attention: Any = modules.unet.mid_block.attentions[0].transformer_blocks[0].attn2
        for name in ("to_q", "to_k"):
            layer = getattr(attention, name)
            layer.register_forward_hook(lambda *_, name=name: calls.update([name]))
        return modules

    pipeline = LocalPipeline(
        [checkpoints[Stage.BASE]], cpu, images=2, strict=True, load_modules=load_modules
    )
    spec = ImageSpec(prompt="a fox", seed=1, width=128, height=128, steps=5, guidance=5)
    pipeline.generate([spec])  # proves its rows
    calls.clear()
    pipeline.generate([spec])
    assert calls == {"to_q": 5, "to_k": 1}


def test_a_changed_layer_computes_anew_with_the_same_prompt(
    stock: Modules, checkpoints: dict[Stage, Checkpoint], tmp_path: Path
) -> None:
    """Of LoRAs in projections of the prompt: active, with another weight, and detached."""
    path = tmp_path / "a.safetensors"
    layers = ["attn2.to_k", "attn2.to_v", "add_embedding.linear_1"]
    lora_file(demo_folder(Stage.BASE), path, style="peft", networks=["unet"], layers=layers)
    pairs = []
    for keeps in (True, False):
        modules = deepcopy(stock)
        extensions = lora_files({"a": inspect_lora(path)}, capacity=1).open(modules)
        if keeps:
            keep_conditioning(modules.unet, MAX_TOKENS)
        given, results = conditioning(modules.unet, 1), []
        results.append(step(modules.unet, 1, given))
        extensions.attach(ExtensionKey("lora", "a"))
        for weight in (1.0, 0.5, None):
            refs = () if weight is None else (lora("a", weight),)
            extensions.activate(refs, [NO_INPUTS] * 2)
            results.append(step(modules.unet, 1, given))
        extensions.activate((lora("a", 1.0),), [NO_INPUTS] * 2)
        extensions.detach([ExtensionKey("lora", "a")])
        results.append(step(modules.unet, 1, given))
        pairs.append(results)
    for ours, theirs in zip(*pairs, strict=True):
        assert torch.equal(ours, theirs)
    plain, full, half, *rest = pairs[0]
    assert all(torch.equal(plain, other) for other in rest)
    assert not torch.equal(plain, full)
    assert not torch.equal(full, half)


def test_an_offloaded_model_keeps_nothing_on_the_device(stock: Modules, cpu: Device) -> None:
    modules = deepcopy(stock)
    keep_conditioning(modules.unet, MAX_TOKENS)
    placement = Placement(modules, cpu)
    step(modules.unet, 1, conditioning(modules.unet, 1))
    placement.offload()
    assert kept_bytes(modules.unet) == 0


def test_a_unet_whose_layers_are_fetched_one_by_one_calls_them_all(
    stock: Modules, cpu: Device
) -> None:
    """The next layer is fetched in the order of the first step, so none may be passed over."""
    modules = deepcopy(stock)
    keep_conditioning(modules.unet, MAX_TOKENS)
    Placement(modules, cpu).apply((MemorySaving.UNET_ON_CPU,))
    given = conditioning(modules.unet, 1)
    assert torch.equal(step(modules.unet, 1, given), step(stock.unet, 1, given))
    assert kept_bytes(modules.unet) == 0
    assert type(modules.unet) is diffusers.UNet2DConditionModel


def test_compiled_code_computes_anew(unet: Any) -> None:
    copies: list[Any] = []

    def compile(plain: Any) -> Any:
        copies.append(plain)
        return plain

    step(unet, 1, conditioning(unet, 1))
    compiled = CompiledUNet(unet, compile, [], lambda: False)
    (plain,) = copies
    assert type(plain) is diffusers.UNet2DConditionModel
    assert not any(isinstance(m, KeepingAttention | KeepingUNet) for m in plain.modules())
    assert kept_bytes(plain) == kept_bytes(unet) == 0
    step(compiled, 1, conditioning(unet, 1))  # a size that is never compiled
    assert kept_bytes(unet) > 0


def test_with_another_attention_only_the_embedding_of_sizes_is_kept(
    stock: Modules, unet: Any
) -> None:
    """xFormers' attention, and sliced attention, are other processors of diffusers."""
    sliced, given = deepcopy(stock.unet), conditioning(unet, 1)
    for network in (unet, sliced):
        network.set_attention_slice("max")
    for number in (1, 2):
        assert torch.equal(step(unet, number, given), step(sliced, number, given))
    assert kept_bytes(unet) == 0


def test_it_can_be_undone(stock: Modules, unet: Any) -> None:
    given = conditioning(unet, 1)
    step(unet, 1, given)
    stop_keeping(unet)
    assert torch.equal(step(unet, 2, given), step(stock.unet, 2, given))
    assert kept_bytes(unet) == 0
    assert {type(module) for module in unet.modules()} == {
        type(module) for module in stock.unet.modules()
    }
