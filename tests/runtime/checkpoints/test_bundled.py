"""The demo checkpoint in the package: small, complete, safe to load, and documented."""

import json
import re
from dataclasses import replace

import pytest
import torch
from safetensors import safe_open

from serve_app.core.diffusion.spec import Stage
from serve_app.demo.captions import AS_PEOPLE_DO, Language, caption
from serve_app.demo.training.dataset import scene
from serve_app.runtime.checkpoints.bundled import WEIGHTS_FOLDER, demo_folder
from serve_app.runtime.checkpoints.checkpoint import Checkpoint, is_pair
from serve_app.runtime.networks.quiet import diffusers, transformers


def test_both_stages_together_take_less_than_20_megabytes() -> None:
    assert sum(f.stat().st_size for f in WEIGHTS_FOLDER.rglob("*") if f.is_file()) <= 20_000_000


def test_base_and_refiner_fit_together(checkpoints: dict[Stage, Checkpoint]) -> None:
    base, refiner = checkpoints[Stage.BASE], checkpoints[Stage.REFINER]
    assert is_pair(base, refiner)
    assert (base.name, refiner.name, base.native_size) == ("demo", "demo-refiner", 128)


@pytest.mark.parametrize("stage", Stage)
def test_a_folder_holds_fp16_safetensors_and_nothing_that_runs_code(
    stage: Stage,
) -> None:
    files = [f for f in demo_folder(stage).rglob("*") if f.is_file()]
    assert {f.suffix for f in files} <= {".json", ".safetensors", ".txt", ".md", ""}
    for file in files:
        if file.suffix == ".safetensors":
            with safe_open(file, "pt") as weights:
                dtypes = {weights.get_tensor(key).dtype for key in [*weights.keys()]}
            assert dtypes == {torch.float16}, file


@pytest.mark.parametrize("stage", Stage)
def test_stock_diffusers_loads_it_without_extra_arguments(stage: Stage) -> None:
    pipeline = diffusers.DiffusionPipeline.from_pretrained(
        demo_folder(stage), local_files_only=True, use_safetensors=True
    )
    assert pipeline.vae_scale_factor == 8
    assert pipeline.tokenizer_2.model_max_length == 77


@pytest.mark.parametrize("stage", Stage)
def test_each_folder_records_how_it_was_trained(stage: Stage) -> None:
    record = json.loads((demo_folder(stage) / "training.json").read_text())
    assert set(record) == {"vae", "base", "refiner"}
    for course in record.values():
        for made in course["made"]:
            assert re.fullmatch("[0-9a-f]{40}", made["commit"])
            assert made["changed since"] is False
            assert made["seed"] == 1
    card = (demo_folder(stage) / "README.md").read_text()
    assert card.startswith("---\nlicense: apache-2.0\n")


def test_the_tokenizer_holds_every_word_that_captions_use() -> None:
    words = transformers.CLIPTokenizer.from_pretrained(demo_folder(Stage.BASE) / "tokenizer")
    plain = replace(AS_PEOPLE_DO, flourish=0.0)
    texts = []
    for number in range(600):
        what, chance = scene(11, number)
        texts += [caption(what, language, chance, plain) for language in Language]
    for word in sorted({word for text in texts for word in re.findall(r"\w+", text)}):
        assert len(words(word).input_ids) == 3, word  # start, the word, end
