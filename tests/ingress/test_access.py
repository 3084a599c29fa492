"""Every route, asked by who may not; and the plain decisions behind it."""

import logging
from typing import Any

import pytest

from serve_app.ingress.access import (
    AccessPolicy,
    digests,
    is_public,
)
from serve_app.ingress.http_errors import ForbiddenHost, ForbiddenOrigin
from tests.support.api import ORIGIN, Client
from tests.support.fake_conductor import FakeConductor
from tests.support.routes import every_route

KEYED = AccessPolicy(keys=digests(["secret-one", "secret-two"]), origins=(ORIGIN,))
RIGHT = {"Authorization": "Bearer secret-two"}


ROUTES = [*every_route(), ("GET", "/nothing")]
POSTS = [path for method, path in ROUTES if method == "POST"]


LINK = "/images/x/0.png"  # a signature takes the place of a key


def _open_status(path: str) -> int:
    return 400 if path == LINK else 200


WITHOUT_BODY = {  # of which a page of another origin is turned away like from any other
    f"/sdapi/v1/{name}"
    for name in ("interrupt", "skip", "refresh-checkpoints", "refresh-loras", "refresh-vae")
}


def code(answer: Any) -> str:
    error = answer.json()["error"]
    return str(error if isinstance(error, str) else error["code"]).upper()


def test_the_walk_meets_every_route() -> None:
    paths = {path for _, path in ROUTES}
    assert {"/generate", "/refine", "/v1/images/edits", "/jobs/x", "/openapi.json"} <= paths
    assert {path for method, path in ROUTES if is_public(method, path)} == {
        *("/", "/docs", "/openapi.json", "/static/docs.js", "/livez", "/health", "/licenses"),
        LINK,
    }


@pytest.mark.parametrize(("method", "path"), ROUTES)
@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"Authorization": "Bearer wrong"},
        {"Authorization": "Bearer "},
        {"Authorization": "Basic secret-one"},
        {"Authorization": "secret-one"},
        {"Authorization": "Bearer secret-one,secret-two"},
        {"X-Api-Key": "secret-one"},
    ],
    ids=lambda h: str(list(h.values())),
)
async def test_without_a_right_key_nothing_answers_but_what_is_open(
    client: Client, conductor: FakeConductor, method: str, path: str, headers: dict[str, str]
) -> None:
    answer = await client(policy=KEYED).request(method, path, headers=headers)
    if is_public(method, path):
        assert answer.status_code == _open_status(path)
    else:
        assert (answer.status_code, code(answer)) == (401, "UNAUTHORIZED")
        assert answer.headers["www-authenticate"] == "Bearer"
        assert "secret" not in answer.text
    assert not conductor.calls


@pytest.mark.parametrize(("method", "path"), ROUTES)
async def test_with_a_key_in_the_query_nothing_more_answers(
    client: Client, method: str, path: str
) -> None:
    query = "?api_key=secret-one&key=secret-one&Authorization=Bearer%20secret-one"
    answer = await client(policy=KEYED).request(method, path + query)
    assert answer.status_code == (_open_status(path) if is_public(method, path) else 401)


@pytest.mark.parametrize(("method", "path"), ROUTES)
async def test_with_a_right_key_every_route_answers_for_itself(
    client: Client, method: str, path: str
) -> None:
    answer = await client(policy=KEYED).request(method, path, headers=RIGHT)
    assert answer.status_code in ((400,) if path == LINK else (200, 404, 415))


@pytest.mark.parametrize(("method", "path"), ROUTES)
@pytest.mark.parametrize(
    "host", ["evil.example", "evil.example:4000", "localhost.evil.example", ""]
)
async def test_a_forged_host_is_turned_away(
    client: Client, method: str, path: str, host: str
) -> None:
    answer = await client().request(method, path, headers={"Host": host, "Origin": ORIGIN})
    if path in ("/livez", "/health"):
        assert answer.status_code == 200  # probes come by address
    else:
        assert (answer.status_code, code(answer)) == (403, "FORBIDDEN_HOST")
        assert answer.headers["access-control-allow-origin"] == ORIGIN


@pytest.mark.parametrize(("method", "path"), ROUTES)
@pytest.mark.parametrize(
    "origin", ["null", "http://evil.example", "https://localhost:5173", "x", "http://["]
)
async def test_a_page_of_another_origin_is_turned_away(
    client: Client, method: str, path: str, origin: str
) -> None:
    preflight = {"Origin": origin, "Access-Control-Request-Method": method}
    for body, headers in ((method, {"Origin": origin}), ("OPTIONS", preflight)):
        answer = await client().request(body, path, headers=headers)
        assert (answer.status_code, code(answer)) == (403, "FORBIDDEN_ORIGIN")
        assert "access-control-allow-origin" not in answer.headers


async def test_a_rebound_page_is_turned_away_though_its_origin_is_its_host(client: Client) -> None:
    headers = {"Host": "evil.example:4000", "Origin": "http://evil.example:4000"}
    assert (await client().get("/licenses", headers=headers)).status_code == 403


@pytest.mark.parametrize(
    "origin", ["http://evil-localhost:4000", "http://localhost:4000.evil.example", "localhost:4000"]
)
async def test_an_origin_that_only_looks_like_ours_is_turned_away(
    client: Client, origin: str
) -> None:
    headers = {"Host": "localhost:4000", "Origin": origin}
    assert (await client().get("/licenses", headers=headers)).status_code == 403


async def test_a_page_of_our_own_may_ask(client: Client) -> None:
    headers = {"Host": "localhost:4000", "Origin": "http://localhost:4000"}
    assert (await client().get("/licenses", headers=headers)).status_code == 200


@pytest.mark.parametrize("path", [path for path in POSTS if path not in WITHOUT_BODY])
@pytest.mark.parametrize("kind", ["text/plain", "application/x-www-form-urlencoded", "", "a/b"])
async def test_what_a_page_may_post_without_asking_is_not_taken(
    client: Client, conductor: FakeConductor, path: str, kind: str
) -> None:
    body = b'{"prompt": "a"}'
    answer = await client().post(path, content=body, headers={"Content-Type": kind})
    assert (answer.status_code, code(answer)) == (415, "UNSUPPORTED_MEDIA_TYPE")
    assert not conductor.calls


@pytest.mark.parametrize("path", POSTS)
async def test_a_browser_may_ask_first_and_then_with_its_key(client: Client, path: str) -> None:
    body = {
        "Origin": ORIGIN,
        "Access-Control-Request-Method": "POST",
        "Access-Control-Request-Headers": "content-type, authorization, idempotency-key",
    }
    answer = await client(policy=KEYED).options(path, headers=body)
    assert answer.status_code == 200
    assert answer.headers["access-control-allow-origin"] == ORIGIN
    assert answer.headers["access-control-max-age"] == "600"
    assert "POST" in answer.headers["access-control-allow-methods"]


@pytest.mark.parametrize(
    ("peer", "headers", "allowed"),
    [
        ("127.0.0.1", {}, True),
        ("127.8.8.8", {}, True),
        ("::1", {}, True),
        ("::ffff:127.0.0.1", {}, True),
        ("192.168.1.7", {}, False),
        ("::ffff:10.0.0.1", {}, False),
        ("2001:db8::1", {}, False),
        ("127.0.0.1", {"X-Forwarded-For": "203.0.113.7"}, False),
        ("127.0.0.1", {"Forwarded": "for=127.0.0.1"}, False),
        ("127.0.0.1", {"X-Forwarded-Proto": "https"}, False),
        ("127.0.0.1", {"X-Real-IP": "203.0.113.7"}, False),
        ("127.0.0.1", {"Via": "1.1 proxy"}, False),
        ("127.0.0.1", {"CF-Connecting-IP": "203.0.113.7"}, False),
        ("not an address", {}, False),
    ],
)
async def test_without_keys_this_machine_alone_may_ask(
    client: Client, peer: str, headers: dict[str, str], allowed: bool
) -> None:
    answer = await client(peer=peer).get("/v1/models", headers=headers)
    assert answer.status_code == (200 if allowed else 401)
    opened = client(peer=peer, policy=AccessPolicy(anonymous=True))
    assert (await opened.get("/v1/models", headers=headers)).status_code == 200
    assert (await client(peer=peer).get("/livez", headers=headers)).status_code == 200


@pytest.mark.parametrize(
    ("host", "known"),
    [
        ("localhost", True),
        ("LOCALHOST:4000", True),
        ("127.0.0.1:1", True),
        ("[::1]:4000", True),
        ("pictures.example.org", True),
        ("a.studio.example.org:80", True),
        ("studio.example.org", False),
        ("evilstudio.example.org", False),
        ("10.0.0.1.evil.example", False),
        ("[evil.example]", False),
        ("fd00::5", False),  # without brackets, as no browser writes it
    ],
)
def test_a_host_is_known_by_its_name_whatever_its_port(host: str, known: bool) -> None:
    policy = AccessPolicy(hosts=("Pictures.example.org", "*.studio.example.org"))
    if known:
        policy.check_host("/generate", host)
    else:
        with pytest.raises(ForbiddenHost):
            policy.check_host("/generate", host)
    AccessPolicy(hosts=("*",)).check_host("/generate", host)


@pytest.mark.parametrize("host", ["192.168.1.5", "192.168.1.5:4000", "[fd00::5]", "[fd00::5]:4000"])
async def test_an_address_in_the_host_header_is_ours_since_none_can_be_rebound(
    client: Client, host: str
) -> None:
    keyed = client(policy=KEYED, peer="192.168.1.7")
    page = {"Host": host, "Origin": f"http://{host}"}
    answer = await keyed.get("/v1/models", headers=page | RIGHT)
    assert answer.status_code == 200
    answer = await keyed.get("/v1/models", headers=page)
    assert (answer.status_code, code(answer)) == (401, "UNAUTHORIZED")
    answer = await keyed.get("/v1/models", headers={"Host": host, "Origin": "http://10.9.9.9"})
    assert (answer.status_code, code(answer)) == (403, "FORBIDDEN_ORIGIN")


def test_an_origin_is_compared_whole() -> None:
    policy = AccessPolicy(origins=("https://app.example.org",))
    policy.check_origin("https://app.example.org", "localhost")
    for origin in ("https://app.example.org.evil.example", "http://app.example.org", "null", ""):
        with pytest.raises(ForbiddenOrigin):
            policy.check_origin(origin, "localhost")


async def test_a_body_limit_is_the_operators_to_set(client: Client) -> None:
    small = client(policy=AccessPolicy(max_body_bytes=2**20))
    headers = {"Content-Type": "application/json"}
    for path in ("/generate", "/v1/images/generations"):
        answer = await small.post(path, content=b" " * (2**20 + 1), headers=headers)
        assert (answer.status_code, code(answer)) == (413, "PAYLOAD_TOO_LARGE")
        assert "1 MiB" in answer.text


async def test_no_log_at_info_and_no_error_repeats_a_prompt_a_picture_or_a_key(
    client: Client, caplog: pytest.LogCaptureFixture
) -> None:
    canary = "canary-7f3a"
    with caplog.at_level(logging.INFO):
        keyed = client(policy=AccessPolicy(keys=digests([canary])))
        key = {"Authorization": f"Bearer {canary}"}
        fine = {"prompt": canary, "negativePrompt": canary}
        assert (await keyed.post("/generate", json=fine, headers=key)).status_code == 201
        wrong = [
            fine | {"steps": 0},
            fine | {"model": canary},
            fine | {"sampler": canary},
            fine | {"aspectRatio": canary},
            {"prompt": canary * 100},
            {"prompt": [canary]},
        ]
        for body in wrong:
            answer = await keyed.post("/generate", json=body, headers=key)
            assert answer.status_code in (400, 404)
            assert canary not in answer.text
        image = {"images": [canary], "prompt": canary}
        assert canary not in (await keyed.post("/refine", json=image, headers=key)).text
    ours = [r for r in caplog.records if not r.name.startswith("httpx")]
    assert not [r for r in ours if canary in r.getMessage()]


@pytest.mark.parametrize(
    "name", ["../x", "..\\x", "/etc/passwd", "%2e%2e/x", "a\0b", "\\\\host\\x", "nul", "x" * 4096]
)
@pytest.mark.parametrize("field", ["model", "config", "loras"])
async def test_a_name_is_looked_up_and_never_a_path(
    client: Client, conductor: FakeConductor, name: str, field: str
) -> None:
    value: Any = {"model": name, "config": {"modelPath": name}, "loras": [{"name": name}]}[field]
    body = {"prompt": "a", "images": ["bm9uZQ=="], field: value}
    route = "/refine"
    if field == "model":
        route, body = "/generate", {"prompt": "a", "model": name}
    answer = await client().post(route, json=body)
    assert answer.status_code in (400, 404)
    assert name not in answer.text
    assert not conductor.calls
