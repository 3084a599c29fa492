"""What `hub.client` expects of huggingface_hub's private `http_get`: signature, behaviour."""

import inspect
from io import BytesIO

import pytest
from huggingface_hub.errors import HfHubHTTPError
from huggingface_hub.file_download import http_get

from serve_app.hub.client import progress_class
from tests.support.fake_hub import BASE, Cut, FakeHub

PATH = "vae/diffusion_pytorch_model.safetensors"


@pytest.fixture
def content(hub: FakeHub) -> bytes:
    return hub.repos[BASE].files[PATH]


@pytest.fixture
def url(hub: FakeHub) -> str:
    return f"{hub.address}/cdn/{BASE}/{PATH}"


def test_its_signature_has_the_arguments_that_we_pass() -> None:
    parameters = inspect.signature(http_get).parameters
    assert list(parameters)[:2] == ["url", "temp_file"]
    assert {"resume_size", "headers", "tqdm_class"} <= set(parameters)
    assert parameters["resume_size"].default == 0


def test_it_passes_every_byte_count_to_the_progress_class(url: str, content: bytes) -> None:
    counts: list[int] = []
    stream = BytesIO()
    http_get(url, stream, tqdm_class=progress_class(0, counts.append))
    assert stream.getvalue() == content
    assert counts[0] == 0
    assert sum(counts) == len(content)


def test_it_resumes_with_a_range_and_appends(hub: FakeHub, url: str, content: bytes) -> None:
    counts: list[int] = []
    stream = BytesIO(content[:1000])
    stream.seek(1000)
    http_get(url, stream, resume_size=1000, tqdm_class=progress_class(1000, counts.append))
    assert hub.ranges_of(PATH) == ["bytes=1000-"]
    assert stream.getvalue() == content
    assert sum(counts) == len(content) - 1000


def test_without_a_partial_response_it_starts_over_and_takes_the_count_back(
    hub: FakeHub, url: str, content: bytes
) -> None:
    hub.page = content.decode("latin-1")  # status 200, whatever the range
    expected = hub.page.encode()
    counts: list[int] = []
    stream = BytesIO(b"x" * 1000)
    stream.seek(1000)
    http_get(url, stream, resume_size=1000, tqdm_class=progress_class(1000, counts.append))
    assert stream.getvalue() == expected
    assert counts[0] == -1000
    assert sum(counts) == len(expected) - 1000


def test_it_sends_our_headers(hub: FakeHub, url: str) -> None:
    headers = {"Authorization": "Bearer good"}
    http_get(url, BytesIO(), headers=headers, tqdm_class=progress_class(0, ignore))
    assert [request.authorization for request in hub.requests] == ["Bearer good"]


def test_it_retries_a_connection_that_ends_early(hub: FakeHub, url: str, content: bytes) -> None:
    hub.repos[BASE].cuts[PATH] = [Cut(2000, "close")]
    counts: list[int] = []
    stream = BytesIO()
    http_get(url, stream, tqdm_class=progress_class(0, counts.append))
    assert stream.getvalue() == content
    assert sum(counts) == len(content)


def test_a_range_beyond_the_end_is_an_http_error(url: str, content: bytes) -> None:
    size = len(content)
    with pytest.raises(HfHubHTTPError) as caught:
        http_get(url, BytesIO(), resume_size=size, tqdm_class=progress_class(size, ignore))
    assert caught.value.response.status_code == 416


def ignore(count: int) -> None: ...
