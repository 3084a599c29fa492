"""Set-ups that are really broken are found so, word for word, and mended by what is told."""

import shutil
from dataclasses import replace

import pytest

from serve_app.doctor.checks import ray_cluster as cluster
from serve_app.doctor.finding import Verdict
from serve_app.doctor.run import Probes, run
from tests.doctor.checks.test_gpus import ADA, with_cards
from tests.doctor.conftest import wrong
from tests.support.broken_setups import BROKEN, MENDED_AT_ONCE, Break
from tests.support.setups import SetUp
from tests.support.single_files import to_single_file


@pytest.mark.parametrize("broken", BROKEN, ids=lambda b: b.__name__.replace("_", " "))
def test_a_broken_set_up_is_found_and_nothing_else_is(
    setup: SetUp, grounds: Probes, broken: Break
) -> None:
    expected = broken(setup)
    assert wrong(grounds) == expected


@pytest.mark.parametrize("broken", MENDED_AT_ONCE, ids=lambda b: b.__name__.replace("_", " "))
def test_what_is_told_to_mend_it_does(setup: SetUp, grounds: Probes, broken: Break) -> None:
    broken(setup)
    mended = set()
    for check, _, _, mend in wrong(grounds):
        if "aura " not in mend and "hf " not in mend:  # which fetch, or draw
            setup.paste(mend)
            mended.add(check)
    assert mended
    assert not mended & {check for check, *_ in wrong(grounds)}


def test_a_sound_set_up_is_found_sound(setup: SetUp, grounds: Probes) -> None:
    findings = [one for section in run(grounds) for one in section.findings]
    assert {one.verdict for one in findings} == {Verdict.OK}
    assert len({one.check for one in findings}) == len(findings)
    assert not (setup.folder.parent / "state").exists()  # it leaves nothing behind


def test_what_a_download_left_in_a_whole_folder_is_no_trouble(
    setup: SetUp, grounds: Probes
) -> None:
    parts = setup.weights() / ".cache/huggingface/download"
    parts.mkdir(parents=True)
    (parts / "x.83e012a8.incomplete").write_bytes(bytes(2**20))
    assert [check for check, *_ in wrong(grounds)] == ["device"]


def test_single_files_and_a_list_of_models_are_found_sound_and_counted(
    setup: SetUp, grounds: Probes
) -> None:
    configs = setup.weights()
    shutil.copytree(configs, setup.folder / "ink")
    to_single_file(configs, setup.folder / "fox.safetensors")
    setup.listing("{ink: {path: ink}, owl: {path: fox.safetensors, license: Owl Licence}}")
    setup.set(
        MODEL_CHECKPOINT_DIR="./fox.safetensors", MODEL_CONFIG_DIR=configs, MAX_LOADED_MODELS=2
    )
    assert [check for check, *_ in wrong(grounds)] == ["device"]
    findings = {one.check: one.message for section in run(grounds) for one in section.findings}
    whole = "fox.safetensors is whole: 0.01 billion parameters, 128 pixels a side"
    assert findings["base"] == f"{setup.folder}/{whole}"
    assert findings["models file"] == f"{setup.folder}/models.yaml adds ink, owl"
    assert findings["licence"] == (
        "fox is under CreativeML Open RAIL++-M (assumed: the file does not say); "
        "owl is under Owl Licence; accepted for ink"
    )
    assert "(fp32, 2 images together, 2 models in memory)" in findings["memory"]


def test_on_one_card_base_and_refiner_are_counted_in_turn_and_so_are_their_copies(
    setup: SetUp, grounds: Probes
) -> None:
    setup.export(MODEL_MAX_BATCH_SIZE=2)
    one = replace(grounds, graphics=lambda: with_cards(ADA))
    findings = {f.check: f for section in run(one) for f in section.findings}
    assert findings["gpus"].message == "1 replicas ask Ray for 1 GPUs, of 1"
    assert findings["memory"].message.startswith("base and refiner in turn need 1.0 GiB (fp16, 2")
    assert findings["host memory"].message.startswith("copies of the models that take turns")
    setup.export(MAX_LOADED_MODELS=2)
    findings = {f.check: f for section in run(one) for f in section.findings}
    assert findings["memory"].message.startswith("base and refiner need 1.1 GiB (fp16, 2")
    assert "host memory" not in findings


def test_what_depends_on_unreadable_settings_is_not_examined_and_the_rest_is(
    setup: SetUp, grounds: Probes
) -> None:
    setup.export(MODEL_PRECISION="fp8")
    findings = {one.check: one for section in run(grounds) for one in section.findings}
    skipped = {name for name, one in findings.items() if one.verdict is Verdict.SKIP}
    assert skipped == {
        *("base", "models file", "device", "precision", "memory"),
        *("port", "address", "keys", "origins", "ledger", "disk"),
    }
    assert findings["base"].message == "not examined, because the settings can't be read"
    assert findings["ray"].verdict is findings["clock"].verdict is Verdict.OK


def test_a_check_that_fails_itself_is_a_finding_and_the_rest_goes_on(grounds: Probes) -> None:
    def broken() -> cluster.Cluster:
        raise RuntimeError("the kernel\nsays no")

    sections = run(replace(grounds, cluster=broken))
    findings = {one.check: one for section in sections for one in section.findings}
    assert findings["ray"].message == "can't be examined: RuntimeError: the kernel says no"
    assert findings["ray"].verdict is Verdict.FAIL
    assert findings["ledger"].verdict is Verdict.OK
