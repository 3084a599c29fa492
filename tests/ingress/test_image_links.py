"""Links to images: signed for one image and for ten minutes, and followed without a key."""

from dataclasses import replace
from io import BytesIO
from urllib.parse import parse_qs, urlsplit

import httpx
import pytest
from PIL import Image

from serve_app.core.errors import LedgerAway
from serve_app.core.service.info import LedgerHealth
from serve_app.core.service.job_errors import JobNotFound
from serve_app.core.service.ledger_place import LedgerFile
from serve_app.deployments.ledger import Ledger
from serve_app.ingress.access import AccessPolicy, digests
from serve_app.ingress.image_links import ImageLinks, LinkedImage
from serve_app.ledger_store.sqlite_store import SqliteStore
from tests.support.api import Client
from tests.support.clock import Clock
from tests.support.ledgers import WatchedLedger

GENERATIONS = "/v1/images/generations"
KEYED = AccessPolicy(keys=digests(["a-key"]))
KEY = {"Authorization": "Bearer a-key"}


async def made(caller: httpx.AsyncClient, **fields: object) -> httpx.Response:
    answer = await caller.post(GENERATIONS, json={"prompt": "a", **fields}, headers=KEY)
    assert answer.status_code == 200, answer.text
    return answer


def path_of(answer: httpx.Response, number: int = 0) -> str:
    """Return the path and the query of a link."""
    url = urlsplit(answer.json()["data"][number]["url"])
    return f"{url.path}?{url.query}"


@pytest.mark.parametrize("kind", ["png", "jpeg", "webp"])
async def test_a_link_brings_the_image_without_a_key_through_any_process(
    client: Client, kind: str
) -> None:
    async with client(policy=KEYED) as caller, client(policy=KEYED) as other:
        answer = await made(caller, response_format="url", output_format=kind, n=2, seed=1)
        base64 = await made(caller, output_format=kind, n=2, seed=1)
        for number in range(2):
            found = await other.get(path_of(answer, number))
            assert found.status_code == 200
            assert found.headers["content-type"] == f"image/{kind}"
            assert found.headers["cache-control"] == "private, no-store"
            assert found.headers["referrer-policy"] == "no-referrer"
            assert found.headers["x-content-type-options"] == "nosniff"
            with Image.open(BytesIO(found.content)) as image:
                assert (image.format or "").lower() == kind
        assert base64.json()["data"][0]["b64_json"]
        head = await other.head(path_of(answer))
        assert (head.status_code, head.content) == (200, b"")


async def test_a_link_that_was_changed_is_none(client: Client) -> None:
    async with client(policy=KEYED) as caller:
        path = path_of(await made(caller, response_format="url", n=2))
        query = {name: value for name, (value,) in parse_qs(urlsplit(path).query).items()}
        later = str(int(query["expires"]) + 1)
        for changed in (
            path.replace("/0.png", "/1.png"),
            path.replace("/0.png", "/0.webp"),
            path.replace(query["expires"], later),
            path.replace("quality=90", "quality=91"),
            path.replace(query["signature"], "A" * 43),
            path.replace(query["signature"], ""),
        ):
            found = await caller.get(changed)
            assert found.status_code == 404, changed
            assert found.json()["error"]["code"] == "NOT_FOUND"


@pytest.mark.parametrize("model", ["dall-e-2", "dall-e-3"])
async def test_models_that_openai_links_to_by_default_are_linked_to(
    client: Client, model: str
) -> None:
    async with client(policy=KEYED) as caller:
        (image,) = (await made(caller, model=model)).json()["data"]
        assert image["url"].startswith("http://localhost/images/")
        (plain,) = (await made(caller, model=model, response_format="b64_json")).json()["data"]
        assert "url" not in plain


async def test_a_link_begins_with_the_public_address(client: Client) -> None:
    async with client(policy=KEYED, base_url="https://pictures.example.org/aura/") as caller:
        (image,) = (await made(caller, response_format="url")).json()["data"]
    assert image["url"].startswith("https://pictures.example.org/aura/images/")


class SecretlessLedger(Ledger):
    """A ledger that is away when links are to be signed."""

    async def secret(self, name: str) -> bytes:
        raise LedgerAway("away")


async def test_without_the_ledger_an_address_holds_the_image_itself(client: Client) -> None:
    async with client(policy=KEYED, ledger=SecretlessLedger(None)) as caller:
        (image,) = (await made(caller, response_format="url")).json()["data"]
    assert image["url"].startswith("data:image/png;base64,")


async def test_an_image_that_the_ledger_could_not_keep_is_in_its_address(client: Client) -> None:
    ledger = Ledger(opening=lambda place: SqliteStore(LedgerFile(None), max_bytes=10))
    async with client(policy=KEYED, ledger=ledger) as caller:
        (image,) = (await made(caller, response_format="url")).json()["data"]
    assert image["url"].startswith("data:image/png;base64,")


async def test_a_link_works_for_ten_minutes() -> None:
    clock, ledger = Clock(), WatchedLedger()
    links = ImageLinks(ledger, clock)
    query = parse_qs(urlsplit(await links.path("job", 0, "png", 90)).query)
    image = LinkedImage("job", 0, "png", 90, int(query["expires"][0]))
    clock.now += 600
    await links.check(image, query["signature"][0])
    clock.now += 1
    with pytest.raises(JobNotFound, match="has expired"):
        await links.check(image, query["signature"][0])
    clock.now -= 1
    with pytest.raises(JobNotFound):
        await ImageLinks(WatchedLedger(), clock).check(image, query["signature"][0])
    with pytest.raises(JobNotFound):
        await links.check(replace(image, job="another"), query["signature"][0])


async def test_a_link_says_no_more_than_that_the_image_is_gone(client: Client) -> None:
    ledger = WatchedLedger()
    async with client(policy=KEYED, ledger=ledger) as caller:
        links = ImageLinks(ledger)
        found = await caller.get(await links.path("nobody-s", 0, "png", 90))
    assert found.status_code == 404


async def test_no_link_is_waited_for_while_the_ledger_is_unwell(client: Client) -> None:
    class Unwell(WatchedLedger):
        async def health(self) -> LedgerHealth:
            return LedgerHealth("the disk is full")

        async def has_result(self, id: str) -> bool:
            raise AssertionError("the ledger was waited for")

    body = {"prompt": "a fox", "response_format": "url"}
    answer = await client(ledger=Unwell()).post("/v1/images/generations", json=body)
    assert answer.json()["data"][0]["url"].startswith("data:image/png;base64,")
