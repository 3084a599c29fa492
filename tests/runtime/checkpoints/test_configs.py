"""Configs of networks: what diffusers takes is taken, the rest is refused by file and key."""

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from diffusers import AutoencoderKL, UNet2DConditionModel
from transformers import CLIPTextModel, CLIPTextModelWithProjection

from serve_app.core.diffusion.spec import Stage
from serve_app.core.errors import CheckpointError
from serve_app.runtime.checkpoints.checkpoint import check_safety_checker, inspect
from serve_app.runtime.checkpoints.network_config import read_network_config
from serve_app.runtime.checkpoints.network_weights import CONFIGS, folder_specs
from serve_app.runtime.memory.device import Device
from serve_app.runtime.networks.loading import load
from tests.support.checkpoints import write_safety_checker
from tests.support.tiny_checkpoints import edit_json, tiny_checkpoint

VALUES: tuple[object, ...] = (
    *(None, True, False, "x", "", -1, 0, 1, 3, 1.5, 1e400, 10**30),
    *([], [1], [4, 4, 8], [-1, 1, 1], [None], [[1]], ["x"], {}, {"x": 1}),
)
STOCK: dict[str, Any] = {
    "unet": UNet2DConditionModel,
    "vae": AutoencoderKL,
    "text_encoder": CLIPTextModel,
    "text_encoder_2": CLIPTextModelWithProjection,
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tiny_checkpoint(tmp_path / "sdxl")


def problem_of(call: Callable[[], object]) -> str | None:
    """Return the problem of the one error that a call may raise, or None."""
    try:
        call()
    except CheckpointError as error:
        return error.problem
    return None


@pytest.mark.parametrize("network", STOCK)
def test_no_value_of_a_config_raises_anything_but_one_line_about_its_key(
    folder: Path, network: str
) -> None:
    content = json.loads((folder / network / "config.json").read_text())
    label, refusals = f"{network}/config.json", 0

    def read(changed: dict[str, object]) -> object:
        return list(folder_specs(read_network_config(CONFIGS[network], changed, label)))

    for key in content:
        for value in VALUES:
            problem = problem_of(partial(read, content | {key: value}))
            if problem is not None:
                refusals += 1
                assert problem.startswith(f"has a {label} whose ")
                assert "\n" not in problem
        problem_of(partial(read, {other: v for other, v in content.items() if other != key}))
    assert refusals > 50


@pytest.mark.parametrize(
    "name", ["unet/config.json", "model_index.json", "tokenizer/tokenizer_config.json"]
)
def test_a_file_that_is_no_json_object_is_refused(folder: Path, name: str) -> None:
    for broken in ("", "[]", "null", "{", '"x"', "[" * 100_000, "\udcff"):
        (folder / name).write_bytes(broken.encode("utf-8", "surrogateescape"))
        with pytest.raises(CheckpointError, match=f"has an unreadable {name}"):
            inspect(folder, Stage.BASE)


@pytest.mark.parametrize("key", ["unet", "tokenizer", "requires_aesthetics_score"])
def test_no_value_of_the_index_raises_anything_else(folder: Path, key: str) -> None:
    for value in VALUES:
        edit_json(folder / "model_index.json", **{key: value})
        problem = problem_of(lambda: inspect(folder, Stage.BASE))
        assert problem is None or "model_index.json" in problem or "unet/config.json" in problem


NULLS = {
    "unet": (
        *("sample_size", "center_input_sample", "flip_sin_to_cos", "class_embed_type"),
        *("reverse_transformer_layers_per_block", "time_embedding_dim", "upcast_attention"),
        *("dual_cross_attention", "attention_type", "num_class_embeds"),
    ),
    "vae": ("latents_mean", "latents_std", "shift_factor", "force_upcast"),
    "text_encoder": ("bos_token_id", "pad_token_id", "projection_dim", "attention_dropout"),
    "text_encoder_2": ("bos_token_id", "pad_token_id"),
}


@pytest.mark.parametrize("network", STOCK)
def test_nulls_and_keys_that_the_libraries_take_are_taken(
    folder: Path, cpu: Device, network: str
) -> None:
    file = folder / network / "config.json"
    edit_json(file, **dict.fromkeys(NULLS[network]), key_of_tomorrow={"x": [1]})
    _, info = STOCK[network].from_pretrained(folder / network, output_loading_info=True)
    assert not info["missing_keys"]
    load(inspect(folder, Stage.BASE), cpu)


@pytest.mark.parametrize(("size", "pixels"), [([16, 16], 128), ([12, 27], 144), (None, 1024)])
def test_a_size_of_two_numbers_is_taken(folder: Path, size: list[int] | None, pixels: int) -> None:
    edit_json(folder / "unet/config.json", sample_size=size)
    assert inspect(folder, Stage.BASE).native_size == pixels


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"sample_size": 0}, "whose sample_size must be at least 1 or a list, got 0"),
        ({"sample_size": [16]}, "whose sample_size must be a whole number or have at least 2 ent"),
        ({"block_out_channels": [4, "x", 8]}, "whose block_out_channels.1 must be a whole number"),
        ({"layers_per_block": 10**9}, "whose layers_per_block must be at most 128 or a list, got"),
        ({"class_embed_type": "timestep"}, "whose class_embed_type must be null, got 'timestep'"),
        ({"norm_num_groups": 3}, "whose norm_num_groups must divide block_out_channels, got 3"),
        ({"attention_head_dim": 3}, "whose attention_head_dim must divide block_out_channels"),
        ({"down_block_types": []}, "whose down_block_types must have an entry for each of 3"),
        (
            {"cross_attention_dim": 13},
            "whose cross_attention_dim must be 12, the hidden_size of its text encoders, got 13",
        ),
        (
            {"projection_class_embeddings_input_dim": 24},
            "whose projection_class_embeddings_input_dim must be 28, the projection_dim of "
            "text_encoder_2 and 6 * addition_time_embed_dim, got 24",
        ),
    ],
    ids=str,
)
def test_a_value_that_is_no_sdxl_s_is_refused_by_its_key(
    folder: Path, changes: dict[str, object], problem: str
) -> None:
    edit_json(folder / "unet/config.json", **changes)
    with pytest.raises(CheckpointError) as refused:
        inspect(folder, Stage.BASE)
    assert refused.value.problem.startswith(f"has a unet/config.json {problem}")


def test_a_key_that_is_missing_is_named(folder: Path) -> None:
    file = folder / "unet/config.json"
    content = json.loads(file.read_text())
    del content["block_out_channels"]
    file.write_text(json.dumps(content))
    with pytest.raises(CheckpointError, match=r"has a unet/config\.json without block_out_channel"):
        inspect(folder, Stage.BASE)


def test_an_option_of_the_pipeline_is_true_false_or_null(folder: Path) -> None:
    edit_json(folder / "model_index.json", force_zeros_for_empty_prompt=None)
    assert inspect(folder, Stage.BASE).force_zeros_for_empty_prompt is False  # as in diffusers
    edit_json(folder / "model_index.json", force_zeros_for_empty_prompt="false")
    with pytest.raises(CheckpointError, match=r"force_zeros_for_empty_prompt must be true or fals"):
        inspect(folder, Stage.BASE)


@pytest.mark.parametrize("name", ["vocab.json", "merges.txt"])
def test_a_tokenizer_without_a_file_is_refused(folder: Path, name: str) -> None:
    (folder / "tokenizer/tokenizer.json").unlink()
    inspect(folder, Stage.BASE)
    (folder / "tokenizer" / name).unlink()
    with pytest.raises(CheckpointError, match=f"lacks tokenizer/{name}"):
        inspect(folder, Stage.BASE)


def test_a_tokenizer_with_more_tokens_than_its_text_encoder_is_refused(folder: Path) -> None:
    edit_json(folder / "tokenizer_2/vocab.json", fox=953)
    with pytest.raises(CheckpointError, match=r"tokenizer_2/vocab\.json .* which has 953$"):
        inspect(folder, Stage.BASE)


@pytest.mark.parametrize("where", ["", "vision_config"])
def test_no_value_of_a_safety_checker_s_config_raises_anything_else(
    tmp_path: Path, where: str
) -> None:
    file = write_safety_checker(tmp_path / "checker") / "config.json"
    content = json.loads(file.read_text())
    for key in content[where] if where else content:
        for value in VALUES:
            changed = {where: content[where] | {key: value}} if where else {key: value}
            file.write_text(json.dumps(content | changed))
            problem = problem_of(lambda: check_safety_checker(file.parent))
            assert problem is None or ("config.json" in problem and "\n" not in problem)
