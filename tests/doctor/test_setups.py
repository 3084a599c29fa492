"""Broken set-ups: doctor finds exactly what is wrong, and its fixes work."""

import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from serve_app.doctor.checks.ray_cluster import Cluster
from serve_app.doctor.finding import Finding, Verdict
from serve_app.doctor.run import Probes, run
from tests.support.broken_setups import BROKEN, FIXED_AT_ONCE
from tests.support.machines import ADA, problems, with_gpus
from tests.support.setup_problems import Break
from tests.support.setups import SetUp
from tests.support.single_files import to_single_file

ROOT = Path(__file__).parents[2]


def findings_by_check(probes: Probes) -> dict[str, Finding]:
    return {finding.check: finding for section in run(probes) for finding in section.findings}


def name_of(broken: Break) -> str:
    return broken.__name__.replace("_", " ")


@pytest.mark.parametrize("broken", BROKEN, ids=name_of)
def test_doctor_finds_what_is_wrong_and_nothing_else(
    setup: SetUp, probes: Probes, broken: Break
) -> None:
    expected = broken(setup)
    assert problems(probes) == expected


@pytest.mark.parametrize("broken", FIXED_AT_ONCE, ids=name_of)
def test_the_suggested_fix_works(setup: SetUp, probes: Probes, broken: Break) -> None:
    broken(setup)
    fixed = set()
    for check, _, _, fix in problems(probes):
        if not fix.startswith(("aura ", "hf ")):  # which download, or generate an image
            setup.apply(fix)
            fixed.add(check)
    assert fixed
    assert not fixed & {check for check, *_ in problems(probes)}


def test_a_sound_set_up_has_no_problem(setup: SetUp, probes: Probes) -> None:
    findings = [finding for section in run(probes) for finding in section.findings]
    assert {finding.verdict for finding in findings} == {Verdict.OK}
    assert len({finding.check for finding in findings}) == len(findings)
    assert not (setup.folder.parent / "state").exists()  # it leaves nothing behind


def test_remains_of_a_download_in_a_complete_folder_are_no_problem(
    setup: SetUp, probes: Probes
) -> None:
    parts = setup.weights() / ".cache/huggingface/download"
    parts.mkdir(parents=True)
    (parts / "x.83e012a8.incomplete").write_bytes(bytes(2**20))
    assert [check for check, *_ in problems(probes)] == ["device"]


def test_single_files_and_listed_models_are_checked_and_counted(
    setup: SetUp, probes: Probes
) -> None:
    configs = setup.weights()
    shutil.copytree(configs, setup.folder / "ink")
    to_single_file(configs, setup.folder / "fox.safetensors")
    setup.list_models("{ink: {path: ink}, owl: {path: fox.safetensors, license: Owl Licence}}")
    setup.set(
        MODEL_CHECKPOINT_DIR="./fox.safetensors", MODEL_CONFIG_DIR=configs, MAX_LOADED_MODELS=2
    )
    assert [check for check, *_ in problems(probes)] == ["device"]
    findings = findings_by_check(probes)
    complete = "fox.safetensors is complete: 0.01 billion parameters, 128 x 128 pixels"
    assert findings["base"].message == f"{setup.folder}/{complete}"
    assert findings["models file"].message == f"{setup.folder}/models.yaml adds ink, owl"
    assert findings["licence"].message == (
        "fox is under CreativeML Open RAIL++-M (assumed: the file does not say); "
        "owl is under Owl Licence; accepted for ink"
    )
    assert "(fp32, 2 images together, 2 models in memory)" in findings["memory"].message


def test_on_one_gpu_base_and_refiner_take_turns_and_their_host_copies_count(
    setup: SetUp, probes: Probes
) -> None:
    setup.export(MODEL_MAX_BATCH_SIZE=2)
    one_gpu = replace(probes, gpus=lambda: with_gpus(ADA))
    findings = findings_by_check(one_gpu)
    assert findings["gpus"].message == "1 replica needs 1 of 1 GPU"
    assert findings["memory"].message.startswith("base and refiner in turn need 1.0 GiB (fp16, 2")
    assert findings["host memory"].message.startswith("the models that take turns on the GPU need")
    setup.export(MAX_LOADED_MODELS=2)
    findings = findings_by_check(one_gpu)
    assert findings["memory"].message.startswith("base and refiner need 1.1 GiB (fp16, 2")
    assert "host memory" not in findings


@pytest.mark.parametrize("device", ["auto", "cpu"])
def test_a_config_that_requests_a_gpu_where_there_is_none_is_a_fault(
    setup: SetUp, probes: Probes, device: str
) -> None:
    setup.export(MODEL_DEVICE=device)
    probes = replace(probes, config=ROOT / "configs" / "one-gpu-12gb.yaml")
    finding = findings_by_check(probes)["gpus"]
    assert finding.verdict is Verdict.FAIL
    assert finding.message.startswith(
        "BaseAndRefiner can't start: 1 replica needs 1 GPU and 0.1 CPU, and Ray has 0 GPU and "
    )


def test_folders_that_ray_can_not_use_are_found(setup: SetUp, probes: Probes) -> None:
    setup.export(RAY_TMPDIR="/tmp/" + "x" * 94, HOME="/dev/null")
    ((check, verdict, message, fix),) = problems(probes)
    assert (check, verdict, fix) == ("ray files", "FAIL", "unset RAY_TMPDIR")
    assert "has 99 bytes, and the paths of Ray's sockets leave room for 39" in message
    setup.apply(fix)
    ((check, verdict, message, fix),) = problems(probes)
    assert (check, verdict) == ("ray files", "FAIL")
    assert message.startswith("HOME=/dev/null can't be used for Ray's token (/dev/null/.ray/auth_")
    setup.apply(fix)
    assert problems(probes) == []


def test_a_total_of_gpus_that_is_too_small_is_found(setup: SetUp, probes: Probes) -> None:
    setup.export(TOTAL_GPUS=1)
    setup.edit_config("base: { min_replicas: 1", "base: { min_replicas: 1, num_gpus: 1")
    two_gpus = replace(probes, gpus=lambda: with_gpus(ADA, ADA))
    ((check, verdict, message, fix),) = problems(two_gpus)
    assert (check, verdict, fix) == ("gpus", "FAIL", "unset TOTAL_GPUS")
    assert message == ("TOTAL_GPUS=1 has room for 1 replicas of 1 GPUs, and the stages need 2")


def test_without_readable_settings_only_independent_checks_run(
    setup: SetUp, probes: Probes
) -> None:
    setup.export(MODEL_PRECISION="fp8")
    findings = findings_by_check(probes)
    skipped = {name for name, finding in findings.items() if finding.verdict is Verdict.SKIP}
    assert skipped == {
        *("base", "models file", "device", "precision", "memory"),
        *("port", "metrics port", "host", "address", "keys", "origins", "ledger", "disk"),
    }
    assert findings["base"].message == "not checked, because the settings can't be read"
    assert findings["ray"].verdict is findings["clock"].verdict is Verdict.OK


def test_a_probe_that_raises_is_a_finding_and_the_other_checks_run(probes: Probes) -> None:
    def broken() -> Cluster:
        raise RuntimeError("the kernel\nrefuses")

    findings = findings_by_check(replace(probes, cluster=broken))
    assert findings["ray"].message == (
        "the checks failed themselves: RuntimeError: the kernel refuses"
    )
    assert findings["ray"].verdict is Verdict.FAIL
    assert findings["ledger"].verdict is Verdict.OK
