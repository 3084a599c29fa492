"""What was proved of a machine is read at the next start, and never of another one's models."""

import json
import logging
from dataclasses import replace
from pathlib import Path

import pytest

from serve_app.core.diffusion.keys import ModelKey
from serve_app.core.diffusion.numeric_profile import NumericProfile
from serve_app.core.diffusion.spec import ImageSpec, Stage
from serve_app.runtime.build import build_stage_model
from serve_app.runtime.checkpoints.checkpoint import Checkpoint
from serve_app.runtime.engine import Engine
from serve_app.runtime.lane_counts import MAX_ANSWERS
from serve_app.runtime.memory.device import Device, open_device
from serve_app.runtime.memory.model_cache import ModelCache
from serve_app.runtime.proof_file import MAX_PROFILES, Proof, ProofFile
from serve_app.runtime.stage_model import StageModel
from tests.support.engine_runs import run_images

PROFILE = NumericProfile(
    Stage.BASE, "cpu AVX2", "float32", "float32", "sdpa", 8, (), 2, "2.13", "demo", weights="abc"
)
PROOF = Proof((2, 4, 8), {"2 lanes, 16x16, 1 chunks": True})


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "aura-serve" / "batch-invariance.json"


def test_a_proof_is_read_under_the_very_profile_of_which_it_was_made(file: Path) -> None:
    assert ProofFile(file).read(PROFILE) is None
    ProofFile(file).write(PROFILE, PROOF)
    assert ProofFile(file).read(PROFILE) == PROOF
    for other in (
        replace(PROFILE, torch="2.14"),
        replace(PROFILE, weights="abd"),
        replace(PROFILE, cpu_threads=1),
        replace(PROFILE, arithmetic=PROFILE.arithmetic + 1),
    ):
        assert ProofFile(file).read(other) is None


def test_answers_of_two_replicas_are_kept_together(file: Path) -> None:
    ProofFile(file).write(PROFILE, PROOF)
    ProofFile(file).write(PROFILE, Proof(PROOF.lane_counts, {"4 lanes, 16x16, 1 chunks": False}))
    known = ProofFile(file).read(PROFILE)
    assert known is not None
    assert known.answers == {"2 lanes, 16x16, 1 chunks": True, "4 lanes, 16x16, 1 chunks": False}


def test_the_profiles_proved_least_recently_are_forgotten(file: Path) -> None:
    profiles = [replace(PROFILE, model=str(number)) for number in range(MAX_PROFILES + 8)]
    for profile in profiles:
        ProofFile(file).write(profile, PROOF)
    forgotten = [ProofFile(file).read(profile) is None for profile in profiles]
    assert forgotten == [True] * 8 + [False] * MAX_PROFILES


@pytest.mark.parametrize(
    "content",
    ["", "{", "[]", "7", '{"version": 0}', '{"version": 1}', '{"version": 1, "proofs": 3}'],
)
def test_a_file_that_can_not_be_read_is_made_anew(file: Path, content: str) -> None:
    file.parent.mkdir()
    file.write_text(content)
    assert ProofFile(file).read(PROFILE) is None
    ProofFile(file).write(PROFILE, PROOF)
    assert ProofFile(file).read(PROFILE) == PROOF
    entries = json.loads(file.read_text())
    (entry,) = entries["proofs"].values()
    del entry["answers"]
    file.write_text(json.dumps(entries))
    assert ProofFile(file).read(PROFILE) is None


@pytest.mark.parametrize(
    "entry",
    [
        0,
        {"laneCounts": [], "answers": {}},
        {"laneCounts": [4, 2, 8], "answers": {}},
        {"laneCounts": [2, 4], "answers": {}},  # the profile has eight
        {"laneCounts": [0, 8], "answers": {}},
        {"laneCounts": [2, 8], "answers": {"2 lanes": 1}},
        {"laneCounts": [True, 8], "answers": {}},
        {"laneCounts": [2, 8], "answers": []},
    ],
)
def test_an_entry_that_makes_no_sense_counts_as_none(file: Path, entry: object) -> None:
    ProofFile(file).write(PROFILE, PROOF)
    content = json.loads(file.read_text())
    (key,) = content["proofs"]
    file.write_text(json.dumps(content | {"proofs": {key: entry}}))
    assert ProofFile(file).read(PROFILE) is None


def test_the_oldest_answers_are_forgotten(file: Path) -> None:
    ProofFile(file).write(PROFILE, Proof((2, 8), {str(n): True for n in range(MAX_ANSWERS + 1)}))
    known = ProofFile(file).read(PROFILE)
    assert known is not None
    assert list(known.answers) == [str(n) for n in range(1, MAX_ANSWERS + 1)]


def test_a_proof_of_other_settings_of_the_libraries_does_not_count(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ProofFile(file).write(PROFILE, PROOF)
    monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", "AVX2")
    assert ProofFile(file).read(PROFILE) is None


def test_a_folder_that_can_not_be_written_costs_nothing_but_the_memory(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").touch()
    with caplog.at_level(logging.INFO, "aura.runtime"):
        ProofFile(tmp_path / "file" / "proofs.json").write(PROFILE, PROOF)
    assert "can't be written: File exists" in caplog.text


class Calls:
    """Counts the calls of a model's UNet, and the rows of each."""

    def __init__(self, model: StageModel) -> None:
        self.rows: list[int] = []
        model._parts.denoiser._unet.register_forward_hook(  # type: ignore[attr-defined]
            lambda unet, inputs, output: self.rows.append(len(inputs[0]))
        )


@pytest.fixture
def cpu() -> Device:
    return open_device("cpu", precision="fp32", xformers=False, cpu_threads=1)


def test_a_model_steps_in_few_lanes_at_once_where_an_earlier_start_has_proved_them(
    file: Path, cpu: Device, checkpoints: dict[Stage, Checkpoint]
) -> None:
    spec = ImageSpec(prompt="a fox", seed=1, width=128, height=128, steps=3, guidance=5.0)
    rows, pictures = [], []
    for _ in range(2):
        model = build_stage_model(
            checkpoints[Stage.BASE], cpu, images=4, strict=True, proofs=ProofFile(file)
        )
        calls = Calls(model)
        engine = Engine(
            ModelCache({ModelKey(Stage.BASE, "demo"): lambda *_, model=model: model}),
            snapshot_every=99,
        )
        pictures.append(run_images({Stage.BASE: engine}, [(spec, None)])[0].tobytes())
        rows.append(calls.rows)
    first, again = rows
    counts = model.batch_size.lane_counts
    fewest = next(count for count in counts if count >= 2)
    assert first[-3:] == again == [fewest] * 3
    assert len(first) > 3 or counts == (8,)
    assert pictures[0] == pictures[1]
