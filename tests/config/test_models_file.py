"""MODELS_FILE: what an operator may write, and what becomes of it."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from serve_app.config.catalog import ModelCatalog, find_checkpoints, service_info
from serve_app.config.models_file import ModelsFile, read_models_file
from serve_app.config.settings import Settings
from serve_app.core.diffusion.model_defaults import ModelDefaults
from serve_app.core.diffusion.samplers import Sampler
from serve_app.core.diffusion.spec import Stage
from serve_app.core.errors import CheckpointError, OperatorError, SettingsError
from serve_app.core.service.info import LoraInfo
from serve_app.runtime.checkpoints.bundled import demo_folder
from tests.support.lora_files import lora_file
from tests.support.single_files import to_single_file

DEMO = demo_folder(Stage.BASE)


def written(folder: Path, text: str) -> Path:
    file = folder / "models.yaml"
    file.write_text(text)
    return file


def lineup(folder: Path, text: str, **more: str) -> ModelCatalog:
    settings = {"MODELS_FILE": str(written(folder, text))} | more
    return find_checkpoints(Settings.read(settings, folder))


def test_entries_come_in_order_with_paths_from_where_the_file_lies(tmp_path: Path) -> None:
    text = """
    models:
      lightning: {path: tunes/x_lightning_4step.safetensors, config: /sdxl, steps: 6}
      plain: {path: /tunes/plain, sampler: dpmpp_2m_karras, guidance: 4, refiner: false}
    """
    entries = read_models_file(written(tmp_path, text)).models
    assert list(entries) == ["lightning", "plain"]
    assert entries["lightning"].path == tmp_path / "tunes/x_lightning_4step.safetensors"
    assert entries["lightning"].config == Path("/sdxl")
    assert entries["plain"].sampler is Sampler.DPMPP_2M_KARRAS
    assert read_models_file(None) == ModelsFile()


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("models: {a: {}}", "models.a.path: Field required"),
        ("models: {a: {path: /a, stepps: 4}}", "models.a.stepps: Extra inputs are not permitted"),
        ("models: {a: {path: /a, steps: 0}}", "models.a.steps: Input should be greater than"),
        ("models: {a: {path: /a, sampler: plms}}", "models.a.sampler: Input should be 'euler'"),
        ("models: {a/b: {path: /a}}", "models.a/b: String should match pattern"),
        ("modells: {}", "modells: Extra inputs are not permitted"),
        ("loras: {a: {path: /a, weight: 3}}", "loras.a.weight: Input should be less than"),
        ("loras: {a: {path: /a, config: /b}}", "loras.a.config: Extra inputs are not permitted"),
        ("loras: {a b: {path: /a}}", "loras.a b: String should match pattern"),
        ("", "models: Input should be"),
        ("{", "can't be read"),
        ("models: !!map [a]", "can't be read: expected a mapping node"),
        (
            "models:\n  a: {path: /a}\n  b: {path: /b}\n  a: {path: /c}",
            "can't be read: a in line 4 stands in line 2 already",
        ),
        ("models: {a: {path: /a, path: /b}}", "path in line 1 stands in line 1 already"),
        ("models: {a: {path: /a}}\nmodels: {}", "models in line 2 stands in line 1 already"),
    ],
)
def test_a_slip_is_told_by_file_and_key(tmp_path: Path, text: str, sentence: str) -> None:
    with pytest.raises(SettingsError) as refused:
        read_models_file(written(tmp_path, text))
    line = str(refused.value)
    assert line.startswith(f"MODELS_FILE={tmp_path / 'models.yaml'}")
    assert sentence in line
    assert "\n" not in line


def test_a_registry_that_is_not_there_is_told(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=r"MODELS_FILE=.*can't be read"):
        read_models_file(tmp_path / "models.yaml")


def test_the_checkpoint_of_the_settings_is_the_default_and_the_others_follow(
    tmp_path: Path,
) -> None:
    few = shutil.copytree(DEMO, tmp_path / "fox-lightning-8step")
    text = f"""
    models:
      few: {{path: {few.name}}}
      slow:
        {{path: {few.name}, steps: 20, guidance: 3, sampler: heun, refiner: true, license: Mine}}
    """
    found = lineup(tmp_path, text)
    facts = service_info(Settings.read({}, tmp_path), found, "cpu")
    assert facts.model_names == ("demo", "few", "slow")
    default, one, other = facts.models
    assert default.defaults == ModelDefaults()
    assert one.defaults == ModelDefaults(8, 1.0, Sampler.EULER_TRAILING)
    assert other.defaults == ModelDefaults(20, 3.0, Sampler.HEUN)
    assert [model.can_be_refined for model in facts.models] == [True, False, True]
    assert [one.model for one in facts.licenses] == ["demo", "few", "slow", "demo-refiner"]
    assert [one.name for one in facts.licenses][1:3] == ["apache-2.0", "Mine"]


def other_noise(folder: Path) -> Path:
    copy = shutil.copytree(DEMO, folder / "other")
    file = copy / "scheduler/scheduler_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"beta_end": 0.02}))
    return copy


def test_a_model_of_another_noise_goes_without_the_refiner(tmp_path: Path) -> None:
    other_noise(tmp_path)
    assert not lineup(tmp_path, "models: {other: {path: other}}").models[1].can_be_refined
    with pytest.raises(SettingsError, match=r"models\.other\.refiner: is true, but the refiner"):
        lineup(tmp_path, "models: {other: {path: other, refiner: true}}")


@pytest.mark.parametrize("told", ["sampler: lcm, steps: 60", "steps: 60"])
def test_lcm_takes_few_steps_whoever_says_that_it_is_lcm(tmp_path: Path, told: str) -> None:
    shutil.copytree(DEMO, tmp_path / "fox-lcm")
    with pytest.raises(
        SettingsError, match=r"models\.fox\.steps: must be at most 50 with .*got 60"
    ):
        lineup(tmp_path, f"models: {{fox: {{path: fox-lcm, {told}}}}}")


@pytest.mark.parametrize(
    ("text", "error", "sentence"),
    [
        ("models: {demo: {path: /a}}", SettingsError, "models.demo: is the name of the checkpoint"),
        ("models: {demo-refiner: {path: /a}}", SettingsError, "models.demo-refiner: is the name"),
        ("models: {a: {path: /nowhere}}", CheckpointError, "models.a.path=/nowhere does not exist"),
        ("models: {a: {path: /b.safetensors}}", CheckpointError, "/b.safetensors does not exist"),
        ("loras: {a: {path: b.safetensors}}", CheckpointError, "b.safetensors does not exist"),
    ],
)
def test_an_entry_that_can_not_be_is_told(
    tmp_path: Path, text: str, error: type[OperatorError], sentence: str
) -> None:
    with pytest.raises(error) as refused:
        lineup(tmp_path, text)
    assert sentence in str(refused.value)
    assert "\n" not in str(refused.value)


def test_a_single_file_takes_its_configs_from_its_entry_the_setting_or_the_default_s_folder(
    tmp_path: Path,
) -> None:
    to_single_file(DEMO, tmp_path / "tune.safetensors")
    bare = "models: {tune: {path: tune.safetensors}}"
    with pytest.raises(CheckpointError, match="name it in MODEL_CONFIG_DIR"):
        lineup(tmp_path, bare)
    own = f"models: {{tune: {{path: tune.safetensors, config: {DEMO}}}}}"
    mine = shutil.copytree(DEMO, tmp_path / "mine")
    for text, settings in (
        (own, {}),
        (bare, {"MODEL_CONFIG_DIR": str(DEMO)}),
        (bare, {"MODEL_CHECKPOINT_DIR": str(mine)}),
    ):
        tune = lineup(tmp_path, text, **settings).models[1].checkpoint
        assert (tune.name, tune.path) == ("tune", tmp_path / "tune.safetensors")


def test_loras_come_with_their_weight_their_terms_and_the_models_they_fit(tmp_path: Path) -> None:
    lora_file(DEMO, tmp_path / "ink.safetensors", networks=["unet"])
    notes = {"modelspec.license": "CC-BY-4.0"}
    lora_file(DEMO, tmp_path / "told.safetensors", networks=["text_encoder"], notes=notes)
    text = """
    loras:
      ink: {path: ink.safetensors, weight: 0.8, license: OpenRAIL++}
      told: {path: told.safetensors}
      bare: {path: ink.safetensors}
    """
    found = lineup(tmp_path, text)
    facts = service_info(Settings.read({}, tmp_path), found, "cpu")
    assert facts.loras == (
        LoraInfo("ink", ("demo",), 0.8),
        LoraInfo("told", ("demo",)),
        LoraInfo("bare", ("demo",)),
    )
    assert [one.file.path.name for one in found.loras] == [
        "ink.safetensors",
        "told.safetensors",
        "ink.safetensors",
    ]
    terms = {one.model: one for one in facts.licenses}
    assert [terms[name].name for name in ("ink", "told", "bare")] == [
        "OpenRAIL++",
        "CC-BY-4.0",
        "not known",
    ]
    assert terms["ink"].restrictions and not terms["told"].restrictions


def test_a_lora_that_fits_no_model_is_told_with_the_widths(tmp_path: Path) -> None:
    file = tmp_path / "sd1.safetensors"
    save_file({"lora_unet_mid_block_attn2_to_k.lora_down.weight": torch.zeros(4, 768)}, file)
    with pytest.raises(CheckpointError) as refused:
        lineup(tmp_path, "loras: {old: {path: sd1.safetensors}}")
    assert str(refused.value) == (
        f"MODELS_FILE={tmp_path / 'models.yaml'}: loras.old.path={file} fits none of the models: "
        "its layers attend to texts of width 768, demo to 160"
    )
