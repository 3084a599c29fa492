"""Digests of model files: the same for a copy, and another for other weights or configs."""

import shutil
from pathlib import Path

import pytest

from serve_app.core.diffusion.spec import Stage
from serve_app.core.errors import CheckpointError
from serve_app.runtime.checkpoints.bundled import demo_folder
from serve_app.runtime.checkpoints.checkpoint import inspect
from serve_app.runtime.checkpoints.file_digest import checkpoint_digest, file_digest
from tests.support.checkpoints import edit_json, perturbed

SIZE = 40 * 2**20


def digest_of(folder: Path) -> str:
    return checkpoint_digest(inspect(folder, Stage.BASE))


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    return Path(shutil.copytree(demo_folder(Stage.BASE), tmp_path / "copy"))


def test_a_copy_has_the_digest_of_the_original_and_other_weights_have_another(
    copy: Path, tmp_path: Path
) -> None:
    original = digest_of(demo_folder(Stage.BASE))
    (copy / "README.md").write_text("nothing that decides an image")
    assert digest_of(copy) == original
    assert digest_of(perturbed(copy, tmp_path / "other", by=1e-3)) != original


@pytest.mark.parametrize("name", ["scheduler/scheduler_config.json", "tokenizer/vocab.json"])
def test_a_config_and_a_tokenizer_belong_to_a_checkpoint(copy: Path, name: str) -> None:
    original = digest_of(copy)
    if name.startswith("tokenizer"):
        (copy / name).write_text((copy / name).read_text() + "\n")
    else:
        edit_json(copy / name, steps_offset=0)
    assert digest_of(copy) != original


def test_of_a_large_file_its_size_its_start_and_its_end_count(tmp_path: Path) -> None:
    file = tmp_path / "large"

    def digest(*changes: int, size: int = SIZE) -> str:
        with file.open("wb") as stream:
            stream.truncate(size)
            for offset in changes:
                stream.seek(offset)
                stream.write(b"x")
        return file_digest(file)

    digests = [digest(), digest(size=SIZE - 1), digest(9), digest(SIZE - 1)]
    assert len(set(digests)) == 4
    assert digest() == digests[0]


def test_a_change_of_a_fortieth_of_a_large_file_is_seen(tmp_path: Path) -> None:
    file = tmp_path / "large"
    digests = set()
    for part in range(40):
        with file.open("wb") as stream:
            stream.truncate(SIZE)
            stream.seek(SIZE // 40 * part)
            stream.write(b"x" * (SIZE // 40))
        digests.add(file_digest(file))
    assert len(digests) == 40


def test_a_file_that_can_not_be_read_is_named(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="can't be read: No such file") as caught:
        file_digest(tmp_path / "missing")
    assert caught.value.subject == str(tmp_path / "missing")
