"""MODELS_FILE: what an operator may write, and what becomes of it."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from serve_app.config.catalog import ModelCatalog, find_checkpoints, service_info
from serve_app.config.models_file import ModelsFile, read_models_file
from serve_app.config.settings import Settings
from serve_app.core.diffusion.model_defaults import ModelDefaults
from serve_app.core.diffusion.samplers import Sampler
from serve_app.core.diffusion.spec import Stage, StepCache
from serve_app.core.errors import CheckpointError, OperatorError, SettingsError
from serve_app.core.service.info import ExtensionInfo
from serve_app.runtime.checkpoints.bundled import demo_folder
from tests.support.checkpoints import with_scheduler
from tests.support.lora_files import lora_file
from tests.support.single_files import to_single_file

DEMO = demo_folder(Stage.BASE)


def write(folder: Path, text: str) -> Path:
    file = folder / "models.yaml"
    file.write_text(text)
    return file


def catalog(folder: Path, text: str, **more: str) -> ModelCatalog:
    settings = {"MODELS_FILE": str(write(folder, text))} | more
    return find_checkpoints(Settings.read(settings, folder))


def test_entries_come_in_order_with_paths_from_where_the_file_lies(tmp_path: Path) -> None:
    text = """
    models:
      lightning: {path: tunes/x_lightning_4step.safetensors, config: /sdxl, steps: 6}
      plain: {path: /tunes/plain, sampler: dpmpp_2m_karras, guidance: 4, refiner: false, cache: off}
    """
    entries = read_models_file(write(tmp_path, text)).models
    assert list(entries) == ["lightning", "plain"]
    assert entries["lightning"].path == tmp_path / "tunes/x_lightning_4step.safetensors"
    assert entries["lightning"].config == Path("/sdxl")
    assert entries["plain"].sampler is Sampler.DPMPP_2M_KARRAS
    assert entries["plain"].cache is StepCache.OFF  # which YAML reads as false
    assert read_models_file(None) == ModelsFile()


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("models: {a: {}}", "models.a.path is missing"),
        ("models: {a: {path: /a, stepps: 4}}", "models.a.stepps is unknown"),
        ("models: {a: {path: /a, steps: 0}}", "models.a.steps must be at least 1"),
        (
            "models: {a: {path: /a, guidance_interval: [2, 1]}}",
            "models.a.guidance_interval must have the lower noise level first",
        ),
        (
            "models: {a: {path: /a, cache: on}}",
            "models.a.cache must be 'off' or 'deepcache'",
        ),
        ("models: {a: {path: /a, sampler: plms}}", "models.a.sampler must be 'euler'"),
        ("models: {a/b: {path: /a}}", "models.a/b must match"),
        ("modells: {}", "modells is unknown"),
        ("loras: {a: {path: /a, weight: 3}}", "loras.a.weight must be at most 2"),
        ("loras: {a: {path: /a, config: /b}}", "loras.a.config is unknown"),
        ("loras: {a b: {path: /a}}", "loras.a b must match"),
        ("", "models must be a section with keys"),
        ("{", "can't be read"),
        ("models: !!map [a]", "can't be read: expected a mapping node"),
        (
            "models:\n  a: {path: /a}\n  b: {path: /b}\n  a: {path: /c}",
            "can't be read: duplicate key a in line 4, first in line 2",
        ),
        ("models: {a: {path: /a, path: /b}}", "duplicate key path in line 1, first in line 1"),
        ("models: {a: {path: /a}}\nmodels: {}", "duplicate key models in line 2, first in line 1"),
    ],
)
def test_a_problem_is_reported_by_file_and_key(tmp_path: Path, text: str, sentence: str) -> None:
    with pytest.raises(SettingsError) as refused:
        read_models_file(write(tmp_path, text))
    line = str(refused.value)
    assert line.startswith(f"MODELS_FILE={tmp_path / 'models.yaml'}")
    assert sentence in line
    assert "\n" not in line


def test_a_missing_file_is_reported(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=r"MODELS_FILE=.*can't be read"):
        read_models_file(tmp_path / "models.yaml")


def test_the_configured_checkpoint_is_the_default_and_the_others_follow(
    tmp_path: Path,
) -> None:
    few = shutil.copytree(DEMO, tmp_path / "fox-lightning-8step")
    text = f"""
    models:
      few: {{path: {few.name}}}
      slow:
        {{path: {few.name}, steps: 20, guidance: 3, sampler: heun, refiner: true, license: Mine}}
    """
    found = catalog(tmp_path, text)
    info = service_info(Settings.read({}, tmp_path), found, "cpu")
    assert info.model_names == ("demo", "few", "slow")
    default, distilled, slow = info.models
    assert default.defaults == ModelDefaults()
    assert distilled.defaults == ModelDefaults(8, 1.0, Sampler.EULER_TRAILING)
    assert slow.defaults == ModelDefaults(20, 3.0, Sampler.HEUN)
    assert [model.can_be_refined for model in info.models] == [True, False, True]
    assert [license.model for license in info.licenses] == ["demo", "few", "slow", "demo-refiner"]
    assert [license.name for license in info.licenses][1:3] == ["apache-2.0", "Mine"]


def test_a_sampler_that_the_models_noise_does_not_offer_is_refused(tmp_path: Path) -> None:
    with_scheduler(DEMO, tmp_path / "cosxl", "EDMEulerScheduler", {})
    with pytest.raises(SettingsError, match=r"is lcm, .* choose one of euler, ") as refused:
        catalog(tmp_path, "models: {cosxl: {path: cosxl, sampler: lcm}}")
    assert refused.value.subject.endswith("models.cosxl.sampler")


def other_noise(folder: Path) -> Path:
    copy = shutil.copytree(DEMO, folder / "other")
    file = copy / "scheduler/scheduler_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"beta_end": 0.02}))
    return copy


def test_a_model_of_another_noise_goes_without_the_refiner(tmp_path: Path) -> None:
    other_noise(tmp_path)
    assert not catalog(tmp_path, "models: {other: {path: other}}").models[1].can_be_refined
    with pytest.raises(SettingsError, match=r"models\.other\.refiner is true, but the refiner"):
        catalog(tmp_path, "models: {other: {path: other, refiner: true}}")


@pytest.mark.parametrize("keys", ["sampler: lcm, steps: 60", "steps: 60"])
def test_lcm_takes_few_steps_whoever_says_that_it_is_lcm(tmp_path: Path, keys: str) -> None:
    shutil.copytree(DEMO, tmp_path / "fox-lcm")
    with pytest.raises(SettingsError, match=r"models\.fox\.steps must be at most 50 with .*got 60"):
        catalog(tmp_path, f"models: {{fox: {{path: fox-lcm, {keys}}}}}")


@pytest.mark.parametrize(
    ("text", "error", "sentence"),
    [
        ("models: {demo: {path: /a}}", SettingsError, "models.demo is the name of the checkpoint"),
        ("models: {demo-refiner: {path: /a}}", SettingsError, "models.demo-refiner is the name"),
        ("models: {a: {path: /nowhere}}", CheckpointError, "models.a.path=/nowhere does not exist"),
        ("models: {a: {path: /b.safetensors}}", CheckpointError, "/b.safetensors does not exist"),
        ("loras: {a: {path: b.safetensors}}", CheckpointError, "b.safetensors does not exist"),
    ],
)
def test_an_entry_that_can_not_be_used_is_reported(
    tmp_path: Path, text: str, error: type[OperatorError], sentence: str
) -> None:
    with pytest.raises(error) as refused:
        catalog(tmp_path, text)
    assert sentence in str(refused.value)
    assert "\n" not in str(refused.value)


def test_a_single_file_finds_its_configs_in_its_entry_the_setting_or_the_default(
    tmp_path: Path,
) -> None:
    to_single_file(DEMO, tmp_path / "tune.safetensors")
    bare = "models: {tune: {path: tune.safetensors}}"
    with pytest.raises(CheckpointError, match="name it in MODEL_CONFIG_DIR"):
        catalog(tmp_path, bare)
    own = f"models: {{tune: {{path: tune.safetensors, config: {DEMO}}}}}"
    mine = shutil.copytree(DEMO, tmp_path / "mine")
    for text, settings in (
        (own, {}),
        (bare, {"MODEL_CONFIG_DIR": str(DEMO)}),
        (bare, {"MODEL_CHECKPOINT_DIR": str(mine)}),
    ):
        tune = catalog(tmp_path, text, **settings).models[1].checkpoint
        assert (tune.name, tune.path) == ("tune", tmp_path / "tune.safetensors")


def test_loras_have_a_weight_terms_and_the_models_they_fit(tmp_path: Path) -> None:
    lora_file(DEMO, tmp_path / "ink.safetensors", networks=["unet"])
    notes = {"modelspec.license": "CC-BY-4.0"}
    lora_file(DEMO, tmp_path / "pencil.safetensors", networks=["text_encoder"], notes=notes)
    text = """
    loras:
      ink: {path: ink.safetensors, weight: 0.8, license: OpenRAIL++}
      pencil: {path: pencil.safetensors}
      bare: {path: ink.safetensors}
    """
    found = catalog(tmp_path, text)
    info = service_info(Settings.read({}, tmp_path), found, "cpu")
    assert tuple(replace(extension, weights="") for extension in info.extensions) == (
        ExtensionInfo("lora", "ink", ("demo",), 0.8),
        ExtensionInfo("lora", "pencil", ("demo",)),
        ExtensionInfo("lora", "bare", ("demo",)),
    )
    ink, pencil, bare = (extension.weights for extension in info.extensions)
    assert ink == bare != pencil  # the digests of their files
    assert [extension.file.path.name for extension in found.extensions] == [
        "ink.safetensors",
        "pencil.safetensors",
        "ink.safetensors",
    ]
    terms = {license.model: license for license in info.licenses}
    assert [terms[name].name for name in ("ink", "pencil", "bare")] == [
        "OpenRAIL++",
        "CC-BY-4.0",
        "not known",
    ]
    assert terms["ink"].restrictions
    assert not terms["pencil"].restrictions


def test_a_lora_that_fits_no_model_is_refused_with_its_layers(tmp_path: Path) -> None:
    file = tmp_path / "sd1.safetensors"
    layer = "lora_unet_mid_block_attentions_0_transformer_blocks_0_attn2_to_k"
    shapes = {"down": (4, 768), "up": (96, 4)}
    save_file(
        {f"{layer}.lora_{part}.weight": torch.zeros(shape) for part, shape in shapes.items()}, file
    )
    with pytest.raises(CheckpointError) as refused:
        catalog(tmp_path, "loras: {old: {path: sd1.safetensors}}")
    assert str(refused.value) == (
        f"MODELS_FILE={tmp_path / 'models.yaml'}: loras.old.path={file} does not fit demo: "
        f"layers of another size: 1 of 1 ({layer}: 96 x 768, there 96 x 160). It was made for "
        "Stable Diffusion 1"
    )


def test_a_model_may_have_a_guidance_interval_and_a_step_cache_of_its_own(tmp_path: Path) -> None:
    shutil.copytree(DEMO, tmp_path / "fox")
    text = "models: {fox: {path: fox, guidance_interval: [0.28, 5], cache: deepcache}}"
    info = service_info(Settings.read({}, tmp_path), catalog(tmp_path, text), "cpu")
    defaults = info.models[1].defaults
    assert (defaults.guidance_interval, defaults.cache) == ((0.28, 5.0), StepCache.DEEPCACHE)
