"""The whole recipe at a few steps: what it makes is a checkpoint like any other, only a bad one."""

import copy
import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors import safe_open

from serve_app.core.diffusion.spec import ImageSpec, Stage
from serve_app.demo.training.dataset import SIZES, Dataset, build_dataset, scene
from serve_app.demo.training.pack import pack
from serve_app.demo.training.tokenizer import new_tokenizer
from serve_app.demo.training.unet import (
    FINE,
    LOW,
    MAX_GUIDANCE,
    TrainingBatch,
    base_run,
    encoded,
    is_guided,
    new_stage,
    noise_loss,
    refiner_batch,
    refiner_run,
    scheduler,
    train_base,
    train_refiner,
)
from serve_app.demo.training.vae import finished_vae, train_vae, vae_run
from serve_app.runtime.checkpoints.bundled import FOLDER_NAMES
from serve_app.runtime.checkpoints.checkpoint import inspect, is_pair
from serve_app.runtime.local import LocalPipeline
from serve_app.runtime.memory.device import Device, open_device
from serve_app.runtime.networks.quiet import diffusers, transformers

pytestmark = pytest.mark.long  # they train all networks, if only for a few steps

SEED = 4
ORIGIN = {"seed": SEED, "commit": "none"}
BASE, REFINER = FOLDER_NAMES[Stage.BASE], FOLDER_NAMES[Stage.REFINER]


@pytest.fixture(scope="module")
def device() -> Device:
    return open_device("cpu", precision="fp32", xformers=False, cpu_threads=2)


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> "transformers.CLIPTokenizer":
    return new_tokenizer(tmp_path_factory.mktemp("tokenizer"), SEED)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("training")


@pytest.fixture(scope="module")
def vae(folder: Path, device: Device) -> "diffusers.AutoencoderKL":
    run = vae_run(folder, ORIGIN, 2)
    train_vae(run)
    return finished_vae(run, folder)


@pytest.fixture(scope="module")
def datasets(folder: Path, vae: "diffusers.AutoencoderKL") -> list[Dataset]:
    return build_dataset(vae, folder, SEED, scenes=90)


@pytest.fixture(scope="module")
def made(
    folder: Path,
    vae: "diffusers.AutoencoderKL",
    datasets: list[Dataset],
    tokenizer: "transformers.CLIPTokenizer",
) -> Path:
    networks = {stage: new_stage(stage, tokenizer) for stage in Stage}
    runs = {
        Stage.BASE: base_run(folder, ORIGIN, 2),
        Stage.REFINER: refiner_run(folder, ORIGIN, 2),
    }
    train_base(runs[Stage.BASE], datasets, tokenizer)
    train_refiner(runs[Stage.REFINER], datasets, tokenizer)
    record = {str(stage): run.finished(networks[stage].networks) for stage, run in runs.items()}
    pack(folder, copy.deepcopy(vae), tokenizer, networks, record)
    return folder


def test_the_dataset_has_no_held_out_scene_and_is_painted_once(
    datasets: list[Dataset], folder: Path, vae: "diffusers.AutoencoderKL"
) -> None:
    assert [dataset.size for dataset in datasets] == list(SIZES)
    assert len(datasets[0].scenes) == 72
    assert datasets[0].degraded.shape[0] == 72 // 3
    assert datasets[1].latents.shape[1:] == (4, 13, 19)
    assert not any(scene.kept_out for dataset in datasets for scene in dataset.scenes)
    assert datasets[0].scenes[3] == scene(SEED, 3)[0]
    written = (folder / "dataset-104x152.pt").stat().st_mtime_ns
    again = build_dataset(vae, folder, SEED, scenes=90)
    assert torch.equal(again[2].latents, datasets[2].latents)
    assert (folder / "dataset-104x152.pt").stat().st_mtime_ns == written


def test_a_dataset_of_another_seed_is_painted_again(
    datasets: list[Dataset], tmp_path: Path, vae: "diffusers.AutoencoderKL"
) -> None:
    first, other = (build_dataset(vae, tmp_path, seed, scenes=90)[1].latents for seed in (SEED, 5))
    assert torch.equal(first, datasets[1].latents)
    assert not torch.equal(other, first)


def test_the_result_is_a_checkpoint_in_half_precision_that_the_engine_runs(
    made: Path, device: Device
) -> None:
    base, refiner = inspect(made / BASE, Stage.BASE), inspect(made / REFINER, Stage.REFINER)
    assert is_pair(base, refiner)
    assert (
        base.native_size,
        base.requires_aesthetics_score,
        refiner.requires_aesthetics_score,
    ) == (128, False, True)
    assert (base.force_zeros_for_empty_prompt, refiner.force_zeros_for_empty_prompt) == (
        True,
        False,
    )
    for file in made.rglob("*.safetensors"):
        with safe_open(file, "pt") as weights:
            assert {weights.get_tensor(key).dtype for key in [*weights.keys()]} == {torch.float16}
    spec = ImageSpec(prompt="a", seed=1, width=104, height=152, steps=3, guidance=5, handoff=0.5)
    (picture,) = LocalPipeline([base, refiner], device, images=1).generate([spec])
    assert picture.shape == (152, 104, 3)


def test_the_two_tokenizer_files_equal_the_joined_one(made: Path) -> None:
    folder = made / BASE / "tokenizer"
    joined = json.loads((folder / "tokenizer.json").read_text())["model"]
    assert json.loads((folder / "vocab.json").read_text()) == joined["vocab"]
    merges = (folder / "merges.txt").read_text().splitlines()[1:]
    assert merges == [" ".join(pair) for pair in joined["merges"]]


def test_training_one_stage_again_leaves_the_other_and_the_vae_as_they_are(
    made: Path,
    vae: "diffusers.AutoencoderKL",
    datasets: list[Dataset],
    tokenizer: "transformers.CLIPTokenizer",
    tmp_path: Path,
) -> None:
    home = tmp_path / "home"
    shutil.copytree(made, home)
    before = {file: file.read_bytes() for file in home.rglob("*") if file.is_file()}
    packed = finished_vae(vae_run(tmp_path, ORIGIN, 2), made / BASE / "vae")
    assert all(map(torch.equal, packed.state_dict().values(), vae.state_dict().values()))
    assert packed.config.scaling_factor == vae.config.scaling_factor
    run = refiner_run(tmp_path, ORIGIN, 3)
    train_refiner(run, datasets, tokenizer)
    networks = new_stage(Stage.REFINER, tokenizer)
    record = {"refiner": run.finished(networks.networks)}
    pack(home, packed, tokenizer, {Stage.REFINER: networks}, record)
    changed = {file.parent for file, was in before.items() if file.read_bytes() != was}
    refiner = home / REFINER
    assert changed == {home / BASE, refiner, refiner / "unet", refiner / "text_encoder_2"}
    notes = [json.loads((home / name / "training.json").read_text()) for name in (BASE, REFINER)]
    assert notes[0] == notes[1]
    assert (notes[0]["base"]["steps"], notes[0]["refiner"]["steps"]) == (2, 3)


def test_training_encodes_text_as_the_stock_pipeline_does(
    made: Path, tokenizer: "transformers.CLIPTokenizer"
) -> None:
    stock = diffusers.DiffusionPipeline.from_pretrained(made / BASE, dtype=torch.float32)
    prompt = "a small red star, sobre un fondo azul"
    with torch.inference_mode():
        embeds, _, pooled, _ = stock.encode_prompt(prompt, do_classifier_free_guidance=False)
        ours, ours_pooled = encoded((stock.text_encoder, stock.text_encoder_2), tokenizer, [prompt])
    assert torch.equal(ours, embeds)
    assert torch.equal(ours_pooled, pooled)


class Knowing(torch.nn.Module):
    """A denoiser that knows what is under the noise."""

    def __init__(self, target: torch.Tensor) -> None:
        super().__init__()
        self._goal = target

    def forward(
        self, noised: torch.Tensor, times: torch.Tensor, *_: object, **__: object
    ) -> object:
        alpha = scheduler().alphas_cumprod[times][:, None, None, None]
        noise = (noised - alpha.sqrt() * self._goal) / (1 - alpha).sqrt()
        return type("Output", (), {"sample": noise})


@pytest.mark.parametrize("degraded", [False, True])
def test_who_knows_the_goal_has_no_error_and_who_does_not_has_one(degraded: bool) -> None:
    generator = torch.Generator().manual_seed(0)
    target = torch.randn(3, 4, 8, 8, generator=generator)
    visible = target + torch.randn(target.shape, generator=generator) if degraded else target
    batch = TrainingBatch(
        target=target,
        visible=visible,
        captions=[""] * 3,
        dropped=torch.zeros(3, dtype=torch.bool),
        times=torch.tensor([120, 400, 900]),
        ids=torch.zeros(3, 6),
        weights=torch.tensor([1.0, 0.5, 2.0]),
        noise=torch.randn(target.shape, generator=generator),
    )
    text = torch.zeros(3, 77, 8), torch.zeros(3, 8)
    alphas = scheduler().alphas_cumprod
    assert noise_loss(Knowing(target), alphas, batch, *text) < 1e-5
    assert noise_loss(Knowing(target + 1), alphas, batch, *text) > 0.1
    if degraded:
        assert noise_loss(Knowing(visible), alphas, batch, *text) > 0.1


def test_a_guided_batch_is_pairs_that_differ_in_their_captions(datasets: list[Dataset]) -> None:
    plain = refiner_batch(datasets, SEED, 7, guided=False)
    assert plain.guidance is None
    assert len({tuple(row) for row in plain.noise.flatten(1).tolist()}) == len(plain.captions)
    paired = refiner_batch(datasets, SEED, 7, guided=True)
    half = len(paired.captions) // 2
    for both in (paired.target, paired.visible, paired.noise, paired.times):
        assert torch.equal(both[:half], both[half:])
    assert paired.ids[:, -1].tolist() == [FINE] * half + [LOW] * half
    assert all(paired.captions[:half])
    assert paired.captions[half:].count("") > half / 2
    assert paired.guidance is not None
    assert len(paired.guidance) == len(paired.weights) == half
    assert 1 <= paired.guidance.min() < paired.guidance.max() <= MAX_GUIDANCE


def test_the_last_quarter_of_the_refiner_s_course_is_guided() -> None:
    assert [is_guided(step, 8) for step in range(8)] == [False] * 6 + [True] * 2


class Unsure(torch.nn.Module):
    """A denoiser that is off by so much, with its tokenizer and without."""

    def __init__(self, target: torch.Tensor, positive: float, negative: float) -> None:
        super().__init__()
        self._knowing = Knowing(target)
        self._off = torch.tensor([positive, negative]).repeat_interleave(len(target) // 2)

    def forward(self, *given: torch.Tensor, **more: object) -> object:
        found = self._knowing(*given, **more).sample
        return type("Output", (), {"sample": found + self._off[:, None, None, None]})


def test_a_guided_lesson_asks_for_what_guidance_makes_of_both_predictions() -> None:
    generator = torch.Generator().manual_seed(0)
    target = torch.randn(2, 4, 8, 8, generator=generator).repeat(2, 1, 1, 1)
    batch = TrainingBatch(
        target=target,
        visible=target,
        captions=[""] * 4,
        dropped=torch.zeros(4, dtype=torch.bool),
        times=torch.tensor([50, 120]).repeat(2),
        ids=torch.zeros(4, 5),
        weights=torch.ones(2),
        noise=torch.randn(2, 4, 8, 8, generator=generator).repeat(2, 1, 1, 1),
        guidance=torch.tensor([7.0, 7.0]),
    )

    def error(positive: float, negative: float) -> float:
        text = torch.zeros(4, 77, 8), torch.zeros(4, 8)
        alphas = scheduler().alphas_cumprod
        return float(noise_loss(Unsure(target, positive, negative), alphas, batch, *text))

    assert error(0.0, 0.0) < 1e-5
    assert error(0.1, 0.1) == pytest.approx(0.1**2, rel=1e-3)
    assert error(0.1, 0.0) == pytest.approx(0.7**2, rel=1e-3)
    assert error(0.0, 0.1) == pytest.approx(0.6**2, rel=1e-3)


def test_every_word_of_the_captions_is_one_token(tokenizer: "transformers.CLIPTokenizer") -> None:
    for text in (
        "a small yellow star at the top left on a white background",
        "un corazón morado pequeño en la esquina superior izquierda sobre un fondo gris",
    ):
        assert len(tokenizer(text).input_ids) == len(text.split()) + 2
    assert tokenizer.eos_token_id == len(tokenizer) - 1
    assert len(tokenizer("sunset").input_ids) > 3  # unknown tokenizer fall apart, nothing is lost
