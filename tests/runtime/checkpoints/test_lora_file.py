"""LoRA files: what the header says, and why files that don't fit are refused."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from serve_app.core.diffusion.spec import Stage
from serve_app.core.errors import CheckpointError
from serve_app.runtime.checkpoints.bundled import demo_folder
from serve_app.runtime.checkpoints.checkpoint import inspect
from serve_app.runtime.checkpoints.lora_file import inspect_lora
from serve_app.runtime.checkpoints.model_layers import NETWORKS, ModelLayers, layers_of
from tests.support.lora_files import STYLES, lora_file
from tests.support.single_files import to_single_file

DEMO = demo_folder(Stage.BASE)
ATTENTION = ("to_q", "to_k", "to_v", "to_out.0", "q_proj", "k_proj", "v_proj", "out_proj")
ONE_NETWORK = ("peft, alone", "bare")  # styles whose names do not tell the network
LAYER = "lora_unet_mid_block_attentions_0_proj_in"
Shapes = dict[str, tuple[int, ...]]


@pytest.fixture(scope="module")
def model() -> ModelLayers:
    return layers_of(inspect(DEMO, Stage.BASE))


def file_of(path: Path, shapes: Shapes, notes: dict[str, str] | None = None) -> Path:
    save_file({name: torch.zeros(shape) for name, shape in shapes.items()}, path, notes)
    return path


def refusal(path: Path, shapes: Shapes, notes: dict[str, str] | None = None) -> str:
    with pytest.raises(CheckpointError) as refused:
        inspect_lora(file_of(path, shapes, notes))
    assert refused.value.subject == str(path)
    return refused.value.problem


@pytest.mark.parametrize("style", [*STYLES, "diffusers", "processors"])
def test_the_layers_find_their_places_in_every_naming_style(
    tmp_path: Path, model: ModelLayers, style: str
) -> None:
    kohya, path = tmp_path / "kohya.safetensors", tmp_path / "a.safetensors"
    networks = ["unet"] if style in ONE_NETWORK else NETWORKS
    lora_file(DEMO, kohya, layers=ATTENTION, alphas=[2], networks=networks)
    lora_file(DEMO, path, layers=ATTENTION, alphas=[2], networks=networks, style=style)
    places, expected = inspect_lora(path).place(model), inspect_lora(kohya).place(model)
    assert {place.network for place in places} == set(networks)
    assert {(p.network, p.layer) for p in places} == {(p.network, p.layer) for p in expected}
    assert inspect_lora(path).num_parameters == inspect_lora(kohya).num_parameters


def test_the_header_names_the_licence(tmp_path: Path) -> None:
    notes = {"modelspec.license": "MIT"}
    assert inspect_lora(lora_file(DEMO, tmp_path / "a.safetensors", notes=notes)).license == "MIT"


@pytest.mark.parametrize("style", ["kohya", "sgm", "peft", "comfyui, published"])
def test_every_linear_and_convolutional_layer_has_a_place(
    tmp_path: Path, model: ModelLayers, style: str
) -> None:
    every = [layer for layers in model.shapes.values() for layer in layers]
    lora = inspect_lora(lora_file(DEMO, tmp_path / "a.safetensors", style=style, layers=every))
    assert len(lora.place(model)) == len(every) == 171


def test_a_single_file_has_the_same_layers_as_its_folder(
    tmp_path: Path, model: ModelLayers
) -> None:
    file = to_single_file(DEMO, tmp_path / "demo.safetensors")
    assert layers_of(inspect(file, Stage.BASE, configs=DEMO)) == model
    unet = to_single_file(DEMO, tmp_path / "demo.safetensors", without=NETWORKS[1:])
    assert layers_of(inspect(unet, Stage.BASE, configs=DEMO)) == model


def test_layers_without_a_place_and_of_another_size_are_named_and_counted(
    tmp_path: Path, model: ModelLayers
) -> None:
    path = tmp_path / "a.safetensors"
    tensors = load_file(lora_file(DEMO, path, networks=["unet"], layers=["proj_in"]))
    for number in range(5):
        for part in ("down", "up"):
            tensors[f"lora_unet_elsewhere_{number}.lora_{part}.weight"] = torch.zeros(4, 4)
    tensors[f"{LAYER}.lora_down.weight"] = torch.zeros(4, 95)
    save_file(tensors, path)
    names = ", ".join(f"lora_unet_elsewhere_{number}" for number in range(3))
    assert inspect_lora(path).misfit(model) == (
        f"does not fit demo: layers without a place there: 5 of 12 ({names} and 2 more); "
        f"layers of another size: 1 of 12 ({LAYER}: 96 x 95, there 96 x 96)"
    )


def test_a_layer_that_is_changed_under_two_names_is_refused(
    tmp_path: Path, model: ModelLayers
) -> None:
    stems = (LAYER, "unet.mid_block.attentions.0.proj_in")
    shapes: Shapes = {f"{s}.lora_down.weight": (4, 96) for s in stems}
    shapes |= {f"{s}.lora_up.weight": (96, 4) for s in stems}
    lora = inspect_lora(file_of(tmp_path / "a.safetensors", shapes))
    assert "changed twice: 1 of 2 (unet.mid_block.attentions.0.proj_in)" in str(lora.misfit(model))


@pytest.mark.parametrize(
    ("width", "notes", "origin"),
    [
        (768, {}, ". It was made for Stable Diffusion 1"),
        (1024, {}, ". It was made for Stable Diffusion 2"),
        (
            640,
            {"modelspec.architecture": "flux-1-dev/lora"},
            ". Its metadata names flux-1-dev/lora",
        ),
        (640, {"ss_base_model_version": "sdxl_base_v1-0"}, "there 96 x 160)"),
    ],
)
def test_a_lora_for_another_model_is_refused_by_what_is_known_of_it(
    tmp_path: Path, model: ModelLayers, width: int, notes: dict[str, str], origin: str
) -> None:
    layer = "unet.mid_block.attentions.0.transformer_blocks.0.attn2.to_k"
    shapes: Shapes = {f"{layer}.lora_A.weight": (4, width), f"{layer}.lora_B.weight": (96, 4)}
    lora = inspect_lora(file_of(tmp_path / "a.safetensors", shapes, notes))
    assert str(lora.misfit(model)).endswith(origin)


def test_the_size_decides_between_text_encoders_where_the_name_does_not(
    tmp_path: Path, model: ModelLayers
) -> None:
    layer = "base_model.model.text_model.encoder.layers.0.mlp.fc1"
    for network in ("text_encoder", "text_encoder_2"):
        out, within = model.shapes[network]["encoder.layers.0.mlp.fc1"]
        shapes: Shapes = {f"{layer}.lora_A.weight": (4, within), f"{layer}.lora_B.weight": (out, 4)}
        (place,) = inspect_lora(file_of(tmp_path / "a.safetensors", shapes)).place(model)
        assert place.network == network


OTHER_KINDS: dict[str, tuple[str, str]] = {
    "IA3": (f"{LAYER}.on_input", "holds IA3 (1 of its 1 tensors)"),
    "IA3, peft": ("base_model.model.x.ia3_l", "holds IA3"),
    "OFT": (f"{LAYER}.oft_blocks", "holds OFT or BOFT"),
    "OFT, peft": ("unet.x.oft_R.weight", "holds OFT or BOFT"),
    "BOFT": ("unet.x.boft_R", "holds OFT or BOFT"),
    "GLoRA": (f"{LAYER}.a1.weight", "holds GLoRA"),
    "VeRA": ("base_model.model.x.vera_lambda_b", "holds VeRA"),
    "norm": ("lora_unet_conv_norm_out.w_norm", "holds a change of normalisation layers"),
    "embeddings": ("unet.x.lora_embedding_A", "holds a LoRA of embeddings"),
    "new words": ("bundle_emb.fox.clip_g", "holds new words (a textual inversion)"),
    "Control-LoRA": ("lora_controlnet", "holds a Control-LoRA"),
    "SD 1": ("lora_te_x.lora_down.weight", "is a LoRA for Stable Diffusion 1 or 2; only"),
    "SD 3": ("lora_unet_joint_blocks_0_x.lora_down.weight", "is a LoRA for Stable Diffusion 3"),
    "SD 3, diffusers": (
        "transformer.transformer_blocks.0.attn.add_k_proj.lora_A.weight",
        "is a LoRA for Stable Diffusion 3",
    ),
    "Flux": ("lora_unet_double_blocks_0_x.lora_down.weight", "is a LoRA for Flux"),
    "Flux, some": ("lora_unet_single_blocks_0_x.lora_down.weight", "is a LoRA for Flux"),
    "Flux, diffusers": (
        "transformer.single_transformer_blocks.0.proj_out.lora_A.weight",
        "is a LoRA for Flux",
    ),
    "Flux, T5": ("lora_te3_x.lora_down.weight", "is a LoRA for a model with a T5"),
    "transformer": ("transformer.x.lora_A.weight", "is a LoRA for a diffusion transformer"),
    "video": (
        "diffusion_model.blocks.0.ffn.0.lora_A.weight",
        "is a LoRA for a diffusion transformer",
    ),
    "Cascade": ("lora_prior_unet_x.lora_down.weight", "is a LoRA for Stable Cascade"),
    "unknown": (
        f"{LAYER}.glyph",
        f"is no LoRA for SDXL: 1 of its 1 tensors have names of an unknown kind, {LAYER}.glyph",
    ),
}


@pytest.mark.parametrize("kind", OTHER_KINDS)
def test_a_file_of_another_kind_is_refused_by_kind(tmp_path: Path, kind: str) -> None:
    name, problem = OTHER_KINDS[kind]
    assert refusal(tmp_path / "a.safetensors", {name: (4, 8)}).startswith(problem)


DAMAGED: dict[str, tuple[Shapes, str]] = {
    "half": (
        {f"{LAYER}.lora_down.weight": (4, 8), f"{LAYER}.alpha": ()},
        f"has half a LoRA in {LAYER}: it lacks up",
    ),
    "halves": (
        {f"{LAYER}.lora_up.weight": (8, 4), "lora_unet_x.hada_w1_a": (4, 8)},
        f"has half a LoRA in {LAYER}: it lacks down (and 1 more of such layers)",
    ),
    "two ranks": (
        {f"{LAYER}.lora_down.weight": (4, 8), f"{LAYER}.lora_up.weight": (8, 5)},
        f"has a LoRA in {LAYER} whose shapes don't go together: down [4, 8], up [8, 5]",
    ),
    "a flat part": (
        {f"{LAYER}.lora_down.weight": (4,), f"{LAYER}.lora_up.weight": (8, 4)},
        f"has a LoRA in {LAYER} whose shapes don't go together: down [4], up [8, 4]",
    ),
    "a middle of another rank": (
        {
            f"{LAYER}.lora_down.weight": (4, 8, 1, 1),
            f"{LAYER}.lora_up.weight": (8, 4, 1, 1),
            f"{LAYER}.lora_mid.weight": (5, 4, 3, 3),
        },
        f"has a LoRA in {LAYER} whose shapes don't go together",
    ),
    "a wide up": (
        {f"{LAYER}.lora_down.weight": (4, 8, 3, 3), f"{LAYER}.lora_up.weight": (8, 4, 3, 3)},
        f"has a LoRA in {LAYER} whose shapes don't go together",
    ),
    "a flat difference": ({f"{LAYER}.diff": (8,)}, f"has a whole difference in {LAYER} whose"),
    "a LoHa of two sizes": (
        {
            f"{LAYER}.hada_w1_a": (8, 4),
            f"{LAYER}.hada_w1_b": (4, 8),
            f"{LAYER}.hada_w2_a": (8, 4),
            f"{LAYER}.hada_w2_b": (4, 9),
        },
        f"has a LoHa in {LAYER} whose shapes",
    ),
    "a LoKr of two ranks": (
        {f"{LAYER}.lokr_w1": (2, 2), f"{LAYER}.lokr_w2_a": (4, 3), f"{LAYER}.lokr_w2_b": (2, 4)},
        f"has a LoKr in {LAYER} whose shapes",
    ),
    "a core of another rank": (
        {
            f"{LAYER}.lokr_w1": (2, 2),
            f"{LAYER}.lokr_w2_a": (2, 4),
            f"{LAYER}.lokr_w2_b": (2, 4),
            f"{LAYER}.lokr_t2": (2, 3, 3, 3),
        },
        f"has a LoKr in {LAYER} whose shapes",
    ),
    "parts of two kinds": (
        {
            f"{LAYER}.lora_down.weight": (4, 8),
            f"{LAYER}.lora_up.weight": (8, 4),
            f"{LAYER}.diff": (8, 8),
        },
        f"has a LoRA in {LAYER}, with diff beside it",
    ),
    "magnitudes of inputs": (
        {
            f"{LAYER}.lora_down.weight": (4, 6),
            f"{LAYER}.lora_up.weight": (8, 4),
            f"{LAYER}.dora_scale": (1, 6),
        },
        f"has a DoRA of 6 magnitudes in {LAYER}; only those of the 8 outputs can be loaded",
    ),
    "a long bias": (
        {f"{LAYER}.diff": (8, 6), f"{LAYER}.diff_b": (6,)},
        f"has a bias of another size than the layer in {LAYER}",
    ),
    "a bias and magnitudes": (
        {f"{LAYER}.diff": (8, 6), f"{LAYER}.diff_b": (8,), f"{LAYER}.dora_scale": (8,)},
        f"has a DoRA with a bias in {LAYER}, which can't be loaded",
    ),
    "alpha alone": ({f"{LAYER}.alpha": ()}, f"has alpha in {LAYER}, and no change of its weights"),
    "two adapters": (
        {"unet.x.lora_A.first.weight": (4, 8), "unet.x.lora_A.second.weight": (4, 8)},
        "holds several adapters: unet.x.lora_A.first.weight and unet.x.lora_A.second.weight",
    ),
    "nothing": ({}, "is no LoRA for SDXL: it changes no layer"),
}


@pytest.mark.parametrize("kind", DAMAGED)
def test_an_incomplete_file_is_refused_by_its_layer(tmp_path: Path, kind: str) -> None:
    shapes, problem = DAMAGED[kind]
    assert refusal(tmp_path / "a.safetensors", shapes).startswith(problem)


def test_a_refusal_says_which_model_the_metadata_names(tmp_path: Path) -> None:
    notes = {"modelspec.architecture": "stable-diffusion-v1/lora"}
    problem = refusal(tmp_path / "a.safetensors", {"lora_te_x.lora_down.weight": (4, 8)}, notes)
    assert problem.endswith(". Its metadata names stable-diffusion-v1/lora")


def test_missing_pickled_and_truncated_files_are_refused(tmp_path: Path) -> None:
    pickle, torn = tmp_path / "a.pt", tmp_path / "b.safetensors"
    for path in (pickle, torn):
        path.write_bytes(lora_file(DEMO, tmp_path / "c.safetensors").read_bytes()[:-9])
    for path, problem in (
        (tmp_path / "nowhere.safetensors", "does not exist"),
        (pickle, r"is no \.safetensors file: a pickle can run code"),
        (torn, r"holds a truncated b\.safetensors"),
    ):
        with pytest.raises(CheckpointError, match=problem):
            inspect_lora(path)


def test_a_folder_may_hold_the_file_of_peft_or_only_one(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"is a folder with 0 \.safetensors files"):
        inspect_lora(tmp_path)
    only = lora_file(DEMO, tmp_path / "ink.safetensors", networks=["unet"])
    assert inspect_lora(tmp_path).path == only
    lora_file(DEMO, tmp_path / "oil.safetensors", networks=["unet"])
    with pytest.raises(CheckpointError, match=r"with 2 \.safetensors files: name one of them"):
        inspect_lora(tmp_path)
    peft = lora_file(DEMO, tmp_path / "adapter_model.safetensors", style="peft, alone")
    assert inspect_lora(tmp_path).path == peft


def test_a_config_beside_the_only_file_or_peft_s_own_counts(tmp_path: Path) -> None:
    (tmp_path / "adapter_config.json").write_text('{"r": 4, "lora_alpha": 8}')
    file = lora_file(DEMO, tmp_path / "ink.safetensors", style="peft, alone")
    assert inspect_lora(file).configs["unet"].alpha_of("conv_in") == 8
    peft = lora_file(DEMO, tmp_path / "adapter_model.safetensors", style="peft, alone")
    assert inspect_lora(file).configs == {}
    assert inspect_lora(peft).configs["unet"].alpha_of("conv_in") == 8
    for unreadable in ("[]", '{"lora_alpha": "x"}', '{"alpha_pattern": {"(": 1}, "r": 4}'):
        (tmp_path / "adapter_config.json").write_text(unreadable)
        with pytest.raises(CheckpointError, match=r"has an unreadable adapter_config\.json"):
            inspect_lora(peft)


def test_metadata_of_diffusers_count_for_their_network(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    written = {"unet.r": 4, "unet.lora_alpha": 2, "unet.alpha_pattern": {"conv_in": 1}}
    notes = {"lora_adapter_metadata": json.dumps(written)}
    configs = inspect_lora(lora_file(DEMO, path, style="peft", notes=notes)).configs
    assert configs.keys() == {"unet"}
    assert [configs["unet"].alpha_of(name) for name in ("conv_in", "conv_out")] == [1, 2]
    with pytest.raises(CheckpointError, match="has unreadable metadata"):
        inspect_lora(lora_file(DEMO, path, style="peft", notes={"lora_adapter_metadata": "x"}))
