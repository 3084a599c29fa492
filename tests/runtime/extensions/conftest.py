"""LoRA files of many kinds, and an engine that has them."""

import pytest

from serve_app.core.diffusion.spec import Stage
from serve_app.runtime.checkpoints.bundled import demo_folder
from serve_app.runtime.checkpoints.checkpoint import Checkpoint
from serve_app.runtime.checkpoints.lora_file import inspect_lora
from serve_app.runtime.engine import Engine
from serve_app.runtime.memory.device import Device, open_device
from tests.support.lora_engines import Files, engine_over
from tests.support.lora_files import lora_file

ATTENTION = ("to_q", "to_k", "to_v", "to_out.0", "ff.net.2", "q_proj", "out_proj")
EDGES = (  # layers outside the blocks, and layers of the blocks that few trainers change
    "conv_in",
    "conv_out",
    "time_embedding.linear_1",
    "time_embedding.linear_2",
    "add_embedding.linear_1",
    "add_embedding.linear_2",
    "time_emb_proj",
    "conv_shortcut",
    "samplers.0.conv",
    "proj_in",
)


@pytest.fixture(scope="session")
def files(tmp_path_factory: pytest.TempPathFactory) -> Files:
    """The same LoRAs in several file formats, and others with other ranks, seeds and layers."""
    folder, demo = tmp_path_factory.mktemp("loras"), demo_folder(Stage.BASE)
    made = {
        "kohya": lora_file(demo, folder / "kohya.safetensors"),
        "peft": lora_file(demo, folder / "peft.safetensors", style="peft"),
        "diffusers": lora_file(demo, folder / "diffusers.safetensors", style="diffusers"),
        "first": lora_file(
            demo,
            folder / "first.safetensors",
            style="processors",
            layers=ATTENTION[:4],
            networks=["unet"],
        ),
        "likewise": lora_file(
            demo, folder / "likewise.safetensors", layers=ATTENTION[:4], networks=["unet"]
        ),
        "some": lora_file(demo, folder / "some.safetensors", layers=ATTENTION),
        "sgm": lora_file(demo, folder / "sgm.safetensors", layers=ATTENTION, style="sgm"),
        "soft.v1": lora_file(demo, folder / "soft.safetensors", seed=1, ranks=[3], alphas=[1.5]),
        "unet": lora_file(
            demo, folder / "unet.safetensors", seed=2, networks=["unet"], layers=["to_q", "to_v"]
        ),
        "text": lora_file(
            demo, folder / "text.safetensors", seed=3, networks=["text_encoder_2"], by=0.6
        ),
    }
    for style in ("kohya", "peft"):
        made[f"dora, {style}"] = lora_file(
            demo,
            folder / f"dora, {style}.safetensors",
            style=style,
            layers=["to_q", "proj_in", "ff.net.2"],
            networks=["unet"],
            dora=0.5,
        )
    for style in ("kohya", "sgm", "peft, alone"):
        made[f"edges, {style}"] = lora_file(
            demo,
            folder / f"edges, {style}.safetensors",
            style=style,
            layers=EDGES,
            networks=["unet"],
            by=0.15,
        )
    return {name: inspect_lora(file) for name, file in made.items()}


@pytest.fixture(scope="module")
def cpu() -> Device:
    """One thread: LoRAs are small, and two threads would wait for each other."""
    return open_device("cpu", precision="fp32", xformers=False, cpu_threads=1)


@pytest.fixture(scope="module")
def engine(checkpoints: dict[Stage, Checkpoint], cpu: Device, files: Files) -> Engine:
    return engine_over(checkpoints[Stage.BASE], cpu, files)
