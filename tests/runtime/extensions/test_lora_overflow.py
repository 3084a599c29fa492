"""A LoRA whose products overflow fp16 at a large weight ends its images, and is named to them."""

from dataclasses import replace
from functools import partial

import pytest

from serve_app.core.diffusion.extensions import ExtensionKey, ExtensionRef
from serve_app.core.diffusion.spec import ImageSpec, Stage
from serve_app.core.errors import NumericFault
from serve_app.runtime.build import build_stage_model
from serve_app.runtime.checkpoints.checkpoint import Checkpoint, inspect
from serve_app.runtime.checkpoints.extension_kinds import EXTENSION_KINDS
from serve_app.runtime.checkpoints.lora_file import LoraFile, inspect_lora
from serve_app.runtime.engine import Engine
from serve_app.runtime.extensions.extension_set import ExtensionFiles
from serve_app.runtime.extensions.registry import runtime_kinds
from serve_app.runtime.memory.device import open_device
from serve_app.runtime.memory.model_cache import ModelCache
from tests.support.engine_runs import Heard, drain, sample_of, whole
from tests.support.keys import base_key, lora_key
from tests.support.lora_files import lora_file
from tests.support.tiny_checkpoints import tiny_checkpoint

SPEC = ImageSpec(prompt="a red circle", seed=3, width=128, height=128, steps=2, guidance=5)
LARGE, SMALL = lora_key("large"), lora_key("small")


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    folder = tiny_checkpoint(tmp_path_factory.mktemp("tiny") / "base")
    return replace(inspect(folder, Stage.BASE), name="demo")


@pytest.fixture(scope="module")
def files(
    checkpoint: Checkpoint, tmp_path_factory: pytest.TempPathFactory
) -> dict[ExtensionKey, LoraFile]:
    """One LoRA whose product is about 1e5 at weight 1, and one of the usual size."""
    folder = tmp_path_factory.mktemp("loras")
    make = partial(lora_file, checkpoint.folder, networks=["unet"], layers=["conv1"])
    return {
        LARGE: inspect_lora(make(folder / "large.safetensors", by=3, alphas=[1_000_000])),
        SMALL: inspect_lora(make(folder / "small.safetensors")),
    }


def engine_over(
    checkpoint: Checkpoint, files: dict[ExtensionKey, LoraFile], *, precision: str, strict: bool
) -> Engine:
    device = open_device("cpu", precision=precision, xformers=False, cpu_threads=1)
    load = partial(
        build_stage_model,
        checkpoint,
        device,
        images=1,
        strict=strict,
        extensions=ExtensionFiles(runtime_kinds(EXTENSION_KINDS), files, 2),
    )
    models = ModelCache({base_key("demo"): load}, extension_capacity=2)
    return Engine(models, snapshot_every=99)


def run(engine: Engine, *refs: ExtensionRef) -> Heard:
    heard, sample = Heard(), sample_of(replace(SPEC, extensions=refs), repr(refs))
    engine.submit(sample, whole(sample), heard)
    drain(engine)
    return heard


@pytest.mark.parametrize("strict", [True, False])
def test_a_lora_that_overflows_is_named_and_smaller_weights_are_made(
    checkpoint: Checkpoint, files: dict[ExtensionKey, LoraFile], *, strict: bool
) -> None:
    engine = engine_over(checkpoint, files, precision="fp16", strict=strict)
    assert run(engine, ExtensionRef(*LARGE, weight=0.004)).picture.any()
    for weight in (1.0, 2.0):  # the second is not examined so soon, and is named all the same
        both = ExtensionRef(*SMALL), ExtensionRef(*LARGE, weight=weight)
        error = run(engine, *both).failed.error
        assert isinstance(error, NumericFault)
        assert error.remedy == (
            f"The LoRA large at weight {weight:g} overflows float16: use a smaller weight"
        )
    assert run(engine, ExtensionRef(*SMALL)).picture.any()
    engine.check()
