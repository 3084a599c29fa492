"""Files of weights: what is missing, surplus, damaged or something else is refused by name."""

import json
import random
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from serve_app.core.diffusion.spec import Stage
from serve_app.core.errors import CheckpointError, ConfigsError
from serve_app.runtime.checkpoints.checkpoint import check_safety_checker, inspect
from serve_app.runtime.checkpoints.safetensors_header import read_header
from serve_app.runtime.checkpoints.weight_plan import UNREAD, is_unread
from tests.support.checkpoints import change_tensors, shard, write_safety_checker
from tests.support.single_files import to_single_file
from tests.support.tiny_checkpoints import edit_json, tiny_checkpoint, write_weights

Tensors = dict[str, torch.Tensor]
FILES = {
    "unet": "unet/diffusion_pytorch_model.safetensors",
    "vae": "vae/diffusion_pytorch_model.safetensors",
    "text_encoder": "text_encoder/model.safetensors",
    "text_encoder_2": "text_encoder_2/model.safetensors",
}
TENSORS = {  # one of each network, in a folder and in a single file
    "unet": ("conv_out.bias", "model.diffusion_model.out.2.bias"),
    "vae": ("decoder.conv_out.bias", "first_stage_model.decoder.conv_out.bias"),
    "text_encoder": (
        "encoder.layers.1.layer_norm1.bias",
        "conditioner.embedders.0.transformer.text_model.encoder.layers.1.layer_norm1.bias",
    ),
    "text_encoder_2": (
        "text_projection.weight",
        "conditioner.embedders.1.model.text_projection",
    ),
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tiny_checkpoint(tmp_path / "sdxl")


def refusal(path: Path, stage: Stage = Stage.BASE, configs: Path | None = None) -> str:
    """Return the problem of a checkpoint, which is one line."""
    with pytest.raises(CheckpointError) as refused:
        inspect(path, stage, configs=configs)
    assert refused.value.subject == str(path)
    assert "\n" not in refused.value.problem
    return refused.value.problem


@pytest.mark.parametrize("network", FILES)
def test_a_tensor_missing_surplus_renamed_or_reshaped_in_a_folder_is_named(
    folder: Path, network: str
) -> None:
    file, name = folder / FILES[network], TENSORS[network][0]
    whole = load_file(file)
    shape = list(whole[name].shape)

    def refused(tensors: Tensors) -> str:
        save_file(tensors, file)
        return refusal(folder)

    less = {key: tensor for key, tensor in whole.items() if key != name}
    missing = f"holds {FILES[network]} without 1 tensor that {network}/config.json asks for"
    assert refused(less) == f"{missing} ({name})"
    surplus = "with 1 tensor that nothing reads"
    assert refused(whole | {"extra.weight": torch.ones(2)}).endswith(f"{surplus} (extra.weight)")
    renamed = refused(less | {f"my.{name}": whole[name]})
    assert renamed == f"{missing} ({name}), and {surplus} (my.{name})"
    assert refused(whole | {name: torch.ones(3, 5)}) == (
        f"holds {FILES[network]} with 1 tensor of another shape than {network}/config.json asks "
        f"for ({name} [3, 5] for {shape})"
    )
    assert refused(whole | {name: torch.ones(shape, dtype=torch.int32)}).endswith(
        f"with 1 tensor of a type that is not supported ({name} (I32))"
    )
    assert refused(whole | {name: torch.ones(shape, dtype=torch.int8)}).endswith(f"({name} (I8))")
    save_file(whole, file)
    inspect(folder, Stage.BASE)


@pytest.mark.parametrize("network", FILES)
def test_a_tensor_missing_surplus_or_reshaped_in_a_single_file_is_named(
    folder: Path, tmp_path: Path, network: str
) -> None:
    file, name = tmp_path / "fox.safetensors", TENSORS[network][1]
    whole = load_file(to_single_file(folder, file))
    inspect(file, Stage.BASE, configs=folder)

    def refused(tensors: Tensors) -> str:
        save_file(tensors, file)
        return refusal(file, configs=folder)

    less = {key: tensor for key, tensor in whole.items() if key != name}
    config = folder / network / "config.json"
    assert refused(less) == (
        f"holds fox.safetensors without 1 tensor that {config} asks for ({name})"
    )
    prefix = name.partition(".")[0]
    for extra in (f"{prefix}.extra", "extra"):
        assert refused(whole | {extra: torch.ones(2)}) == (
            f"holds fox.safetensors with 1 tensor that nothing reads ({extra})"
        )
    assert f"of another shape than {config} asks for ({name} [7]" in refused(
        whole | {name: torch.ones(7)}
    )


def test_the_networks_of_a_refiner_are_checked_too(tmp_path: Path) -> None:
    refiner = tiny_checkpoint(tmp_path / "refiner", Stage.REFINER)
    inspect(refiner, Stage.REFINER)
    change_tensors(refiner / FILES["text_encoder_2"], without="text_projection.weight")
    assert "(text_projection.weight)" in refusal(refiner, Stage.REFINER)


def test_more_blocks_than_the_config_has_are_refused(folder: Path, tmp_path: Path) -> None:
    edit_json(folder / "unet/config.json", transformer_layers_per_block=2)
    (folder / FILES["unet"]).unlink()
    write_weights(folder, "unet")
    file = to_single_file(folder, tmp_path / "more.safetensors")
    inspect(file, Stage.BASE, configs=folder)
    edit_json(folder / "unet/config.json", transformer_layers_per_block=1)
    assert "with 140 tensors that nothing reads (down_blocks.1." in refusal(folder)
    write_weights(folder, "unet")
    surplus = "with 140 tensors that nothing reads (model.diffusion_model.input_blocks."
    assert surplus in refusal(file, configs=folder)


def test_names_of_other_versions_are_read(folder: Path) -> None:
    for network, old in (("text_encoder", "text_model."), ("text_encoder_2", "")):
        file = folder / FILES[network]
        bare = {key.removeprefix("text_model."): t for key, t in load_file(file).items()}
        prefixed = {
            key if key.startswith("text_projection") else old + key: tensor
            for key, tensor in bare.items()
        }
        save_file(prefixed, file)
        inspect(folder, Stage.BASE)


HARMLESS = [
    "model_ema.diffusion_modelout2bias",
    "model_ema.num_updates",
    "first_stage_model.loss.discriminator.main.0.weight",
    "conditioner.embedders.0.transformer.text_model.embeddings.position_ids",
    "conditioner.embedders.0.transformer.text_projection.weight",
    "conditioner.embedders.0.text_projection",  # ComfyUI's merges of early 2024
    "conditioner.embedders.0.logit_scale",
    "conditioner.embedders.1.model.logit_scale",
    "conditioner.embedders.1.model.text_model.embeddings.position_ids",
    "first_stage_model.model_ema.decay",
    "cond_stage_model.transformer.text_model.embeddings.position_ids",  # of a merge
    "denoiser.sigmas",
    "alphas_cumprod",
    "sqrt_one_minus_alphas_cumprod",
    "v_pred",
    "ztsnr",
]


@pytest.mark.parametrize("name", HARMLESS)
def test_what_has_no_part_in_an_image_may_pass_unread(
    folder: Path, tmp_path: Path, name: str
) -> None:
    file = to_single_file(folder, tmp_path / "a.safetensors", extra={name: torch.ones(3)})
    inspect(file, Stage.BASE, configs=folder)


def test_remains_of_another_kind_in_an_sdxl_do_not_make_it_one(
    folder: Path, tmp_path: Path
) -> None:
    extra = "lora_te1_text_model_encoder_layers_0_mlp_fc1.lora_down.weight"
    file = to_single_file(folder, tmp_path / "a.safetensors", extra={extra: torch.ones(3)})
    surplus = f"holds a.safetensors with 1 tensor that nothing reads ({extra})"
    assert refusal(file, configs=folder) == surplus


def test_no_tensor_of_a_network_may_pass_unread(folder: Path, tmp_path: Path) -> None:
    assert all(UNREAD.values())
    file = to_single_file(folder, tmp_path / "a.safetensors")
    needless = {name for name in read_header(file, "").tensors if is_unread(name)}
    assert {name.rpartition(".")[2] for name in needless} == {"position_ids", "logit_scale"}


def replaced(content: bytes) -> Callable[[Path], object]:
    return lambda file: file.write_bytes(content)


def dead_link(file: Path) -> None:
    file.unlink()
    file.symlink_to("../../blobs/0")


DAMAGES: dict[str, tuple[Callable[[Path], object], str]] = {
    "absent": (lambda f: f.unlink(), "lacks the weights of {network}, {name}"),
    "moving averages alone": (
        lambda f: f.rename(f.with_suffix(".non_ema.safetensors")),
        "lacks the weights of {network}, {name}: it holds only {stem}.non_ema.safetensors",
    ),
    "a pickle alone": (
        lambda f: f.rename(f.with_suffix(".bin")),
        "holds a pickle in {network}, where only safetensors are loaded",
    ),
    "a dead link": (
        dead_link,
        "lacks the weights of {network}, {name}: it holds only {name}",
    ),
    "empty": (replaced(b""), "holds {network}/{name}, which is empty"),
    "truncated": (
        lambda f: f.write_bytes(f.read_bytes()[:-1]),
        "holds a truncated {network}/{name}: ",
    ),
    "truncated in its header": (
        lambda f: f.write_bytes(f.read_bytes()[:99]),
        "holds {network}/{name}, which is no safetensors file inside",
    ),
    "longer": (
        lambda f: f.write_bytes(f.read_bytes() + b"xyz"),
        "holds {network}/{name}, which has 3 bytes after its last tensor",
    ),
    "a Git LFS pointer": (
        replaced(b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 5135149760\n"),
        "holds {network}/{name}, which is no safetensors file inside: it is a Git LFS pointer",
    ),
    "a web page": (
        replaced(b"\n<!DOCTYPE html><title>Sign in</title>" + b" " * 99),
        "holds {network}/{name}, which is no safetensors file inside: it is a web page",
    ),
    "a zipped pickle": (
        replaced(b"PK\x03\x04" + bytes(99)),
        "holds {network}/{name}, which is no safetensors file inside: it is a pickle",
    ),
    "zeros": (replaced(bytes(999)), "holds {network}/{name}, which is no safetensors file inside"),
}


@pytest.mark.parametrize("network", FILES)
@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_file_is_named(folder: Path, network: str, damage: str) -> None:
    act, problem = DAMAGES[damage]
    file = folder / FILES[network]
    act(file)
    expected = problem.format(network=network, name=file.name, stem=file.stem)
    assert refusal(folder).startswith(expected)


def test_shards_are_read_by_their_index(folder: Path) -> None:
    whole = inspect(folder, Stage.BASE)
    names = shard(folder / FILES["unet"], 3)
    assert inspect(folder, Stage.BASE) == whole
    index = folder / "unet/diffusion_pytorch_model.safetensors.index.json"
    content = json.loads(index.read_text())
    shown = "unet/diffusion_pytorch_model.safetensors.index.json"

    def refused(weight_map: object) -> str:
        index.write_text(json.dumps(content | {"weight_map": weight_map}))
        return refusal(folder)

    illegal: object
    for illegal in (None, [], {}, "x", {"a": 1}, {"a": "../../a.safetensors"}, {"a": "b.bin"}):
        assert refused(illegal) == f"has a {shown} whose weight_map names no files"
    elsewhere = content["weight_map"] | {"conv_in.bias": names[0]}
    assert refused(elsewhere) == f"holds no conv_in.bias in the files where {shown} places them"
    for broken in ("", "[]", "{"):
        index.write_text(broken)
        assert refusal(folder) == f"has an unreadable {shown}"
    index.write_text(json.dumps(content))
    (folder / "unet" / names[1]).unlink()
    assert refusal(folder) == f"lacks 1 of 3 files that {shown} names: unet/{names[1]}"
    index.unlink()
    assert refusal(folder).startswith("lacks the weights of unet, diffusion_pytorch_model.safe")


def test_files_that_the_libraries_do_not_read_are_passed_over(folder: Path) -> None:
    file = folder / FILES["unet"]
    shutil.copy(file, file.with_suffix(".non_ema.safetensors"))
    file.with_suffix(".fp16.safetensors").write_bytes(b"half a download")
    file.with_suffix(".bin").write_bytes(b"a pickle")
    inspect(folder, Stage.BASE)


def test_a_single_file_takes_the_networks_it_lacks_from_a_whole_folder_only(
    folder: Path, tmp_path: Path
) -> None:
    file = to_single_file(folder, tmp_path / "a.safetensors", without=("vae",))
    inspect(file, Stage.BASE, configs=folder)
    change_tensors(folder / FILES["vae"], without="decoder.conv_out.bias")
    with pytest.raises(ConfigsError, match=r"takes its configs from .*decoder\.conv_out\.bias"):
        inspect(file, Stage.BASE, configs=folder)


def test_the_tensors_of_a_safety_checker_are_checked(tmp_path: Path) -> None:
    folder = write_safety_checker(tmp_path / "checker")
    check_safety_checker(folder)
    file = folder / "model.safetensors"
    whole = load_file(file)
    published = {f"vision_model.{k}" if "vision_model." in k else k: t for k, t in whole.items()}
    ids = "vision_model.vision_model.embeddings.position_ids"
    save_file(published | {ids: torch.arange(5)[None]}, file)
    check_safety_checker(folder)
    for changed, problem in (
        (
            {k: t for k, t in whole.items() if k != "concept_embeds"},
            "holds model.safetensors without 1 tensor that config.json asks for (concept_embeds)",
        ),
        (
            whole | {"x": torch.ones(1)},
            "holds model.safetensors with 1 tensor that nothing reads (x)",
        ),
    ):
        save_file(changed, file)
        with pytest.raises(CheckpointError) as refused:
            check_safety_checker(folder)
        assert refused.value.problem == problem
    save_file(whole, file)
    edit_json(folder / "preprocessor_config.json", image_mean=[0, 0])
    with pytest.raises(CheckpointError, match=r"image_mean must have at least 3 entries"):
        check_safety_checker(folder)


def test_no_header_however_malformed_raises_anything_else(tmp_path: Path) -> None:
    good = {"dtype": "F16", "shape": [2, 2], "data_offsets": [0, 8]}
    random.seed(5)
    values: list[object] = [None, -1, 1.5, "F32", [], {}, [1], [1, 2], [8, 0], [-1, 8], True]
    values += [10**30, [[1], 2]]
    entries: list[object] = [*values, {"a": None}, {"a": []}, {"__metadata__": [1], "a": good}]
    entries += [{"a": good | {key: value}} for key in good for value in values]
    entries += [{"a": {k: v for k, v in good.items() if k != key}} for key in good]
    file = tmp_path / "a.safetensors"
    for entry in entries:
        header = json.dumps(entry).encode()
        file.write_bytes(len(header).to_bytes(8, "little") + header + bytes(8))
        with pytest.raises(CheckpointError):
            read_header(file, "a")
    for length in (0, 1, 7, 8, 9, 30):
        file.write_bytes(random.randbytes(length))
        with pytest.raises(CheckpointError):
            read_header(file, "a")
    header = b'{"a":' + b"[" * 100_000
    file.write_bytes(len(header).to_bytes(8, "little") + header)
    with pytest.raises(CheckpointError):
        read_header(file, "a")
