"""`doctor --deep` reads every value of what the service would load."""

from dataclasses import replace

import torch

from serve_app.core.diffusion.spec import Stage
from serve_app.doctor.finding import Finding, Verdict
from serve_app.doctor.run import Probes, run
from serve_app.runtime.checkpoints.bundled import demo_folder
from tests.support.checkpoints import change_tensors, write_safety_checker
from tests.support.lora_files import lora_file
from tests.support.setups import SetUp
from tests.support.single_files import to_single_file

UNET = "unet/diffusion_pytorch_model.safetensors"


def weight_findings(probes: Probes) -> list[Finding]:
    findings = (finding for section in run(probes) for finding in section.findings)
    return [finding for finding in findings if finding.check == "weights"]


def test_a_damaged_value_is_named_with_its_file_and_only_a_deep_look_finds_it(
    setup: SetUp, probes: Probes
) -> None:
    folder = setup.weights()
    change_tensors(folder / UNET, change={"conv_out.bias": torch.full((4,), torch.nan)})
    ink = lora_file(demo_folder(Stage.BASE), setup.folder / "ink.safetensors", networks=["unet"])
    setup.list_models(loras="{ink: {path: ink.safetensors, license: mit}}")
    checker = write_safety_checker(setup.folder / "checker")
    change_tensors(
        checker / "model.safetensors", change={"concept_embeds_weights": torch.full((17,), -1e400)}
    )
    setup.set(SAFETY_CHECKER_DIR=checker)
    assert weight_findings(probes) == []
    first, second = weight_findings(replace(probes, on_bytes=lambda done, total: None))
    assert (first.verdict, first.fix) == (Verdict.FAIL, "aura download artist/fox")
    assert first.message == (
        f"{folder} holds {UNET}, whose tensor conv_out.bias is damaged: 4 NaN of 4 values"
    )
    assert second.message == (
        f"{checker} holds model.safetensors, whose tensor concept_embeds_weights is damaged: 17 "
        "infinite of 17 values"
    )
    assert ink.exists()


def test_a_damaged_single_file_is_compared_with_its_source(setup: SetUp, probes: Probes) -> None:
    configs = setup.weights()
    fox = to_single_file(configs, setup.folder / "fox.safetensors")
    name = "model.diffusion_model.out.2.bias"
    change_tensors(fox, change={name: torch.full((4,), torch.nan)})
    setup.set(MODEL_CHECKPOINT_DIR="./fox.safetensors", MODEL_CONFIG_DIR=configs)
    (finding,) = weight_findings(replace(probes, on_bytes=lambda done, total: None))
    assert finding.fix == f"sha256sum {fox}"
    assert f"whose tensor {name} is damaged" in finding.message


def test_sound_weights_are_read_to_the_last_byte(setup: SetUp, probes: Probes) -> None:
    setup.weights()
    read: list[tuple[int, int]] = []
    (finding,) = weight_findings(replace(probes, on_bytes=lambda *done: read.append(done)))
    assert finding.verdict is Verdict.OK
    assert finding.message.startswith("all values are finite: ")
    assert [done for done, _ in read] == sorted(done for done, _ in read)
    assert read[-1][0] == read[-1][1] > 1e7
