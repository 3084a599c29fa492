"""Who a caller is: by which name, with which weight."""

import pytest
from starlette.datastructures import Headers

from serve_app.core.caller import Caller
from serve_app.ingress.access import (
    AccessPolicy,
    address_name,
    by_caller,
    digests,
)
from serve_app.ingress.http_errors import Unauthorized
from tests.support.api import Client
from tests.support.fake_conductor import FakeConductor

KEYED = AccessPolicy(keys=digests(["secret-one", "secret-two"]))


def test_a_caller_is_named_by_a_part_of_the_digest_and_never_by_the_key() -> None:
    def caller(key: str) -> str:
        headers = Headers({"authorization": f"bearer {key}"})
        return KEYED.caller("POST", "/generate", headers, "10.0.0.1")

    assert caller("secret-one") != caller("secret-two")
    assert "secret" not in caller("secret-one") + repr(KEYED)
    with pytest.raises(Unauthorized):
        caller("\xfc\xe7")


def test_a_key_may_have_letters_beyond_ascii() -> None:
    policy = AccessPolicy(keys=digests(["schlüssel"]))
    sent = Headers(raw=[(b"authorization", "Bearer schlüssel".encode())])
    assert policy.caller("POST", "/generate", sent, None).startswith("key:")


def test_an_ipv6_network_is_one_caller() -> None:
    assert address_name("2001:db8:1:2::1") == address_name("2001:db8:1:2:3:4:5:6")
    assert address_name("2001:db8:1:2::1") != address_name("2001:db8:1:3::1")
    assert address_name("::ffff:10.0.0.1") == address_name("10.0.0.1") == "address:10.0.0.1"


async def test_an_image_carries_its_caller_with_the_weight_of_its_key(
    client: Client, conductor: FakeConductor
) -> None:
    weights = by_caller({"secret-one": 3.0, "secret-two": 1.0})
    keyed = client(policy=KEYED, caller_weights=weights)
    for key in ("secret-one", "secret-two"):
        headers = {"Authorization": f"Bearer {key}"}
        body = {"prompt": "a fox", "imageCount": 1}
        assert (await keyed.post("/generate", json=body, headers=headers)).status_code == 201
    first, second = (task.caller for task in conductor.calls)
    assert (first.weight, second.weight) == (3.0, 1.0)
    assert {first.name, second.name} == set(weights)
    assert "secret" not in repr((first, second))


async def test_without_keys_the_caller_of_an_image_is_an_address(
    client: Client, conductor: FakeConductor
) -> None:
    body = {"prompt": "a fox", "imageCount": 1}
    assert (await client(peer="127.0.0.1").post("/generate", json=body)).status_code == 201
    assert conductor.calls[0].caller == Caller("address:127.0.0.1")
