"""The file of a spooled job: what comes back is what was written, or is refused with a reason."""

import json
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import load, save

from serve_app.core.service.tasks import ImageSnapshot
from serve_app.spool.format import SpoolRefused, checksum, decode, encode
from tests.support.spooled_jobs import spooled_job


def test_a_job_comes_back_with_every_field_and_every_bit() -> None:
    job = spooled_job()
    again = decode(encode(job))
    assert (again.inputs, again.request, again.claim) == (job.inputs, job.request, job.claim)
    assert replace(again, images=()) == replace(job, images=())
    for found, expected in zip(again.images, job.images, strict=True):
        assert found is not None
        assert expected is not None
        assert (found.png, found.suspicion) == (expected.png, expected.suspicion)
        assert bare(found) == bare(expected)
        assert [bits(array) for array in arrays(found)] == [bits(a) for a in arrays(expected)]


def test_an_image_that_has_not_begun_has_no_snapshot() -> None:
    job = replace(spooled_job(), images=(None, None, None))
    assert decode(encode(job)) == job


def test_an_input_file_of_several_images_is_kept_once() -> None:
    names = [name for name in load(encode(spooled_job())) if name.startswith("inputs.")]
    assert sorted(names) == ["inputs.0.init_image", "inputs.1.init_image"]


def test_tensors_are_named_so_that_any_tool_shows_what_they_are(tmp_path: Any) -> None:
    file = tmp_path / "job.safetensors"
    file.write_bytes(encode(spooled_job()))
    with safe_open(file, "numpy") as opened:
        assert set(opened.keys()) >= {"0.png", "1.latents", "1.solver.0", "1.solver.1"}
        header = json.loads(opened.metadata()["job"])
    assert header["caller"] == "key:1"
    assert header["images"][1]["sample"]["profile"] == "refiner-p"


def changed_header(data: bytes, **metadata: str) -> bytes:
    length = int.from_bytes(data[:8], "little")
    known = json.loads(data[8 : 8 + length])["__metadata__"]
    return bytes(save(load(data), known | metadata))


def changed_job(data: bytes, old: str, new: str) -> bytes:
    """Change the JSON and leave the checksum."""
    length = int.from_bytes(data[:8], "little")
    text = json.loads(data[8 : 8 + length])["__metadata__"]["job"]
    assert old in text
    return changed_header(data, job=text.replace(old, new))


def with_flipped_bit(data: bytes) -> bytes:
    return data[:-1] + bytes([data[-1] ^ 1])


DATA = encode(spooled_job())
REFUSED = {
    "empty": (b"", "is damaged, or no safetensors file"),
    "text": (b"hello, this is a letter", "is damaged, or no safetensors file"),
    "truncated": (DATA[:-1], "is damaged: its tensors can't be read"),
    "cut in the header": (DATA[:300], "is damaged, or no safetensors file"),
    "one bit": (with_flipped_bit(DATA), "is damaged: it is not what was written"),
    "another seed": (changed_job(DATA, '"seed":7', '"seed":8'), "it is not what was written"),
    "weights": (bytes(save({"unet.bias": np.zeros(3)})), "is no file of this service"),
    "another version": (
        changed_header(DATA, **{"aura-serve-spool": "2"}),
        "has the format 2, and this version reads 1",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_not_whole_or_not_ours_is_refused_with_the_reason(name: str) -> None:
    data, reason = REFUSED[name]
    with pytest.raises(SpoolRefused, match=reason):
        decode(data)


def with_job(data: bytes, **changes: object) -> bytes:
    """Return the file that a version with other fields would have written."""
    length = int.from_bytes(data[:8], "little")
    job = json.loads(json.loads(data[8 : 8 + length])["__metadata__"]["job"])
    text, tensors = json.dumps(job | changes), load(data)
    return changed_header(data, job=text, sha256=checksum(text, tensors))


def test_a_job_whose_values_are_illegal_is_refused() -> None:
    with pytest.raises(SpoolRefused, match="holds a job that this version does not understand"):
        decode(with_job(DATA, created="yesterday"))


def test_a_file_of_a_version_that_knew_no_webhook_has_none() -> None:
    length = int.from_bytes(DATA[:8], "little")
    job = json.loads(json.loads(DATA[8 : 8 + length])["__metadata__"]["job"])
    del job["webhook"]
    text, tensors = json.dumps(job), load(DATA)
    older = changed_header(DATA, job=text, sha256=checksum(text, tensors))
    assert decode(older).webhook is None
    assert decode(DATA).webhook == spooled_job().webhook


def test_a_file_of_a_version_that_knew_no_origin_is_of_none() -> None:
    assert decode(with_job(DATA, origin="")).origin == ""
    assert decode(DATA).origin == spooled_job().origin


def test_a_snapshot_that_this_version_does_not_understand_is_left_out_and_the_job_kept() -> None:
    job = spooled_job()
    snapshot = job.images[1]
    assert snapshot is not None
    spec = replace(snapshot.sample.spec)
    object.__setattr__(spec, "steps", 100_000)
    images = (ImageSnapshot(replace(snapshot.sample, spec=spec)), job.images[2], None)
    again = decode(encode(replace(job, images=images)))
    assert replace(again, images=()) == replace(job, images=())
    assert [image is None for image in again.images] == [True, False, True]


def bare(snapshot: ImageSnapshot) -> Any:
    return replace(snapshot.sample, latents=None, solver_state=())


def arrays(snapshot: ImageSnapshot) -> list[Any]:
    sample = snapshot.sample
    return [array for array in (sample.latents, *sample.solver_state) if array is not None]


def bits(array: Any) -> tuple[Any, ...]:
    return array.dtype, array.shape, array.tobytes()
