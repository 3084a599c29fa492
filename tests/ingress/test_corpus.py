"""The request corpus, sent over HTTP: documented errors, right pixels, bounded memory.

Memory must stay within 64 MB of what the largest legal image takes.
"""

import base64
import json
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import pytest
from PIL import Image

from serve_app.deployments.ledger import Ledger
from tests.support import request_corpus as corpus
from tests.support.api import make_api
from tests.support.fake_conductor import INFO, FakeConductor
from tests.support.http_server import serving
from tests.support.image_files import files_with_metadata

ROUTES = ("/generate", "/refine", "/v1/images/generations")
JSON = {"Content-Type": "application/json"}
BODIES = [(route, name) for route in ROUTES for name in corpus.bad_bodies(route)]
STATUSES = {"MODEL_NOT_FOUND": 404, "PAYLOAD_TOO_LARGE": 413}  # others: 400
BAD = corpus.bad_pictures()
WITH_METADATA = files_with_metadata()
GOOD = corpus.PICTURES | {name: (file, corpus.COLOURS) for name, file in WITH_METADATA.items()}
ROOM = 64 * 2**20  # bytes above what the largest legal picture takes


@pytest.fixture(scope="module")
def conductor() -> FakeConductor:
    return FakeConductor()


@pytest.fixture(scope="module")
def caller(conductor: FakeConductor) -> Iterator[httpx.Client]:
    """Yield a client of the service on a port, for a checkpoint of small images."""
    facts = replace(
        INFO, models=(replace(INFO.default_model, native_size=64),), default_image_count=1
    )
    with (
        serving(make_api(conductor, Ledger(None), facts)) as address,
        httpx.Client(base_url=address, timeout=60) as client,
    ):
        yield client


def refine(caller: httpx.Client, file: bytes) -> httpx.Response:
    body = {"images": [base64.b64encode(file).decode()], "prompt": "a"}
    return caller.post("/refine", json=body)


def edit(caller: httpx.Client, file: bytes) -> httpx.Response:
    form: Any = {"image": ("picture.png", file, "image/png"), "prompt": (None, "a")}
    return caller.post("/v1/images/edits", files=form)


@pytest.mark.parametrize(("route", "name"), BODIES)
def test_a_bad_body_gets_its_documented_refusal(
    caller: httpx.Client, conductor: FakeConductor, route: str, name: str
) -> None:
    body, code = corpus.bad_bodies(route)[name]
    conductor.calls.clear()
    answer = caller.post(route, content=body, headers=JSON)
    error = answer.json()["error"]
    assert (answer.status_code, error["code"].upper()) == (STATUSES.get(code, 400), code)
    assert len(answer.content) < 2000
    assert not conductor.calls


@pytest.mark.parametrize("ask", [refine, edit], ids=["refine", "edits"])
@pytest.mark.parametrize("name", BAD)
def test_a_bad_picture_gets_its_documented_refusal(
    caller: httpx.Client, conductor: FakeConductor, name: str, ask: Any
) -> None:
    file, sentence = BAD[name]
    conductor.calls.clear()
    answer = ask(caller, file)
    error = answer.json()["error"]
    assert (answer.status_code, error["code"].upper()) == (400, "INVALID_IMAGE"), error
    assert "image 0" in error["message"]
    assert sentence in error["message"]
    assert not conductor.calls


@pytest.mark.parametrize("ask", [refine, edit], ids=["refine", "edits"])
@pytest.mark.parametrize("name", GOOD)
def test_a_good_picture_comes_through_with_the_right_pixels(
    caller: httpx.Client, conductor: FakeConductor, name: str, ask: Any
) -> None:
    file, colours = GOOD[name]
    conductor.calls.clear()
    assert ask(caller, file).is_success
    (task,) = conductor.calls
    spec, source = task.spec, task.inputs.init_image
    assert (spec.width, spec.height) == (corpus.WIDTH, corpus.HEIGHT)
    image = Image.frombytes("RGB", (spec.width, spec.height), source or b"")
    for i, colour in enumerate(colours):
        middle = (corpus.WIDTH * (1 + 2 * (i % 2)) // 4, corpus.HEIGHT * (1 + 2 * (i // 2)) // 4)
        got: Any = image.getpixel(middle)
        assert max(abs(a - b) for a, b in zip(got, colour, strict=True)) <= 3, (i, got, colour)


_MAX_ROUNDS = 5  # two are the rule


@pytest.mark.skipif(sys.platform != "linux", reason="reads the kernel's own high-water mark")
@pytest.mark.parametrize("is_short", [True, pytest.param(False, marks=pytest.mark.long)])
def test_memory_stays_within_64_mb_of_the_largest_legal_picture(*, is_short: bool) -> None:
    """Measure the service in a process of its own.

    A WebP is compared with the largest legal WebP: the decoder of that format needs three canvases
    beside the image.
    """
    routes = ["/refine"] if is_short else ROUTES
    bodies = {
        f"{route}: {name}": (route, body)
        for route in routes
        for name, (body, _) in corpus.bad_bodies(route).items()
        if "10 MB" in name or not is_short
    }
    if is_short:
        largest = corpus.few_limit_pictures()
        pictures = {name: file for name, file in largest.items() if name != "colour"}
    else:
        largest = corpus.limit_pictures()
        pictures = {name: file for name, (file, _) in BAD.items()} | largest
        pictures |= {name: file for name, file in WITH_METADATA.items() if "bomb" in name}
    with apart() as (caller, process):

        def held(mark: str) -> int:
            """A line of the service's proc(5) status in bytes: VmRSS now, or VmHWM at most."""
            status = Path(f"/proc/{process}/status").read_text()
            (line,) = (line for line in status.splitlines() if line.startswith(f"{mark}:"))
            return int(line.split()[1]) * 1024

        def rise(send: Callable[[], httpx.Response]) -> int:
            """How far memory rose while `send` ran."""
            Path(f"/proc/{process}/clear_refs").write_text("5")  # resets the high-water mark
            before = held("VmRSS")
            send()
            return held("VmHWM") - before

        refine(caller, largest["colour"])  # what is loaded at first use is loaded
        kinds = {"colour", "WebP"} & set(largest)
        bases = {kind: rise(partial(refine, caller, largest[kind])) for kind in kinds}
        rises: Counter[str] = Counter()
        floors = []
        # Each of the threads that read keeps the memory of its largest image, which may come late.
        for _ in range(_MAX_ROUNDS):
            for name, file in pictures.items():
                base = bases["WebP" if name == "animated WebP" else "colour"]
                rises[name] = max(rises[name], rise(partial(refine, caller, file)) - base)
            for name, (route, body) in bodies.items():
                more = rise(partial(caller.post, route, content=body, headers=JSON))
                rises[name] = max(rises[name], more - bases["colour"])
            floors.append(held("VmRSS"))
            if len(floors) > 1 and floors[-1] - floors[-2] <= ROOM / 4:
                break
        kept = floors[-1] - floors[-2]
    rises.pop("WebP", None)
    worst = rises.most_common(6)
    print({name: f"{size / 2**20:.0f} MiB" for name, size in bases.items()})
    print([f"{name} {more / 2**20:+.0f}" for name, more in worst], f"kept {kept / 2**20:.0f}")
    assert worst[0][1] <= ROOM, worst
    assert kept <= ROOM / 4  # once everything was sent, nothing more stays


@contextmanager
def apart() -> Iterator[tuple[httpx.Client, int]]:
    """A client of the service in a process of its own, and that process's number."""
    program = (
        "import time\n"
        "from serve_app.deployments.ledger import Ledger\n"
        "from serve_app.process.allocator import give_back_large_blocks\n"
        "from tests.support.fake_conductor import InstantConductor\n"
        "from tests.support.api import make_api\n"
        "from tests.support.http_server import serving\n"
        "give_back_large_blocks()\n"  # as `open_ingress` does
        "with serving(make_api(InstantConductor(), Ledger(None))) as address:\n"
        "    print(address, flush=True)\n"
        "    input()\n"
    )
    service = subprocess.Popen(
        [sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert service.stdin
    assert service.stdout
    try:
        with httpx.Client(base_url=service.stdout.readline().strip(), timeout=60) as client:
            yield client, service.pid
    finally:
        service.communicate("\n", timeout=20)


def test_a_mark_in_front_of_json_is_passed_over(caller: httpx.Client) -> None:
    body = b"\xef\xbb\xbf" + json.dumps({"prompt": "a"}).encode()
    assert caller.post("/generate", content=body, headers=JSON).status_code == 201


@pytest.mark.parametrize(
    ("content", "kind"),
    [
        (b'--x\r\nContent-Disposition: form-data; name="prompt"\r\n\r\na', "boundary=x"),
        (b"--x--\r\n", "boundary=x"),
        (b"--y\r\n\r\n", "boundary=x"),
        (b"a", ""),
        (b"--x\r\n" + b"A: b\r\n" * 10_000, "boundary=x"),
        (
            b'--x\r\nContent-Disposition: form-data; name="a"\r\n\r\n\r\n' * 1000 + b"--x--\r\n",
            "boundary=x",
        ),
        (
            b'--x\r\nContent-Disposition: form-data; name="prompt"\r\n\r\n'
            + b"a" * 10_000_000
            + b"\r\n--x--\r\n",
            "boundary=x",
        ),
        (
            b'--x\r\nContent-Disposition: form-data; name="image"; filename="a"\r\n\r\n\r\n' * 40
            + b"--x--\r\n",
            "boundary=x",
        ),
        (b"--x\r\nContent-Disposition: form-data\r\n\r\na\r\n--x--\r\n", "boundary=x"),
    ],
    ids=[
        "cut",
        "empty",
        "another",
        "none",
        "headers",
        "1000 fields",
        "10 MB",
        "40 files",
        "nameless",
    ],
)
def test_a_bad_form_is_refused(caller: httpx.Client, content: bytes, kind: str) -> None:
    headers = {"Content-Type": f"multipart/form-data;{kind}"}
    answer = caller.post("/v1/images/edits", content=content, headers=headers)
    assert answer.status_code == 400, answer.text
    assert answer.json()["error"]["code"] == "validation_error"
