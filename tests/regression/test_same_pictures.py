"""Every picture is the recorded one: the same bytes on a machine like the one that recorded them,
within one level of 255 elsewhere. The recorded pictures were made one at a time; here all strict
ones are made at once, so that batching is held to the same bytes too."""

import asyncio
import json
from collections.abc import Iterator

import numpy as np
import pytest
from PIL import Image

from tests.regression.cases import CASES, Case
from tests.regression.record import PICTURES, RECORD, machine
from tests.regression.service import Result, Service

Results = dict[str, Result]
recorded = json.loads(RECORD.read_text())
same_machine = recorded["machine"] == machine()


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    service = Service(tmp_path_factory.mktemp("regression"))
    yield service
    service.close()


async def pictures_of(service: Service, case: Case) -> Results:
    results = [result async for result in service.run(case)]
    assert len(results) == case.expected_count
    if case.expected_count == 1:
        return {case.name: results[0]}
    return {f"{case.name}-{number}": result for number, result in enumerate(results)}


async def test_every_picture_is_the_recorded_one(service: Service) -> None:
    strict = [case for case in CASES if not case.fast]
    of_each_case = await asyncio.gather(*(pictures_of(service, case) for case in strict))
    results = {name: result for results in of_each_case for name, result in results.items()}
    for case in CASES:
        if case.fast:  # in fast mode neighbours decide the last bits: one at a time
            results |= await pictures_of(service, case)
    expected = recorded["pictures"]
    assert len(expected) >= 60
    assert results.keys() == expected.keys()
    chunks = {name for name in results if results[name].digests["chunk"] != expected[name]["chunk"]}
    assert not chunks, "the aura chunk of these pictures has changed"
    if same_machine:
        bytes_differ = {
            name
            for name, result in results.items()
            if result.digests["pixels"] != expected[name]["pixels"]
        }
        assert not bytes_differ, "the pixels of these pictures have changed"
    for name, result in results.items():
        with Image.open(PICTURES / f"{name}.webp") as picture:
            kept = np.asarray(picture.convert("RGB"), np.int16)
        assert np.abs(result.pixels - kept).max() <= 1, f"{name} differs by more than one level"
