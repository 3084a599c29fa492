import json
import random
import tracemalloc
from xml.sax.saxutils import quoteattr

import pytest

from serve_app.ingress.metadata.xmp import (
    MAX_PACKET_BYTES,
    packet,
    packet_with_record,
    record_in,
)

RECORD = json.dumps({"version": 1, "prompt": 'a <fox> & "föx"', "request": {"seed": 1}})


def test_a_packet_returns_its_record_and_says_that_a_model_made_the_image() -> None:
    written = packet_with_record(RECORD)
    assert json.loads(record_in(written) or "") == json.loads(RECORD)
    assert b"trainedAlgorithmicMedia" in written
    assert record_in(packet().encode()) is None


def test_a_packet_that_another_program_wrote_anew_still_has_its_record() -> None:
    """Adobe's toolkit chooses prefixes and order, pads the packet, and may write attributes."""
    text = packet_with_record(RECORD).decode()
    for old, new in (("xmlns:aura", "xmlns:ns1"), ("<aura", "<ns1"), ("</aura", "</ns1")):
        text = text.replace(old, new)
    text = text.replace("<ns1:Record>", "<dc:a xmlns:dc='b'/>\n<ns1:Record>")
    assert json.loads(record_in(text.encode() + b" " * 2000 + b"\0") or "") == json.loads(RECORD)
    compact = f"<a xmlns:b='urn:aura-serve:' b:Record={quoteattr(RECORD)}/>"
    assert json.loads(record_in(compact.encode()) or "") == json.loads(RECORD)


@pytest.mark.parametrize("character", ["a", "山", "🦊", '"', "&", "<", "\x01", "\x85", "\uffff"])
def test_a_long_record_fits_with_its_prompt_alone(character: str) -> None:
    prompt = character * 8000
    record = json.dumps(
        {"version": 1, "prompt": prompt, "request": {"prompt": prompt, "negativePrompt": prompt}}
    )
    written = packet_with_record(record)
    assert len(written) <= MAX_PACKET_BYTES
    kept = json.loads(record_in(written) or "")
    assert (kept["version"], kept["prompt"]) == (1, prompt)


@pytest.mark.parametrize(
    "hostile",
    [
        b"",
        b"\xff\xfe",
        b"<a>",
        b"<!DOCTYPE a [<!ENTITY b 'c'>]><a:Record xmlns:a='urn:aura-serve:'>&b;</a:Record>",
        b"<aura:Record xmlns:aura='urn:aura-serve:'/>",
        packet_with_record(RECORD).decode().encode("utf-16"),
        b"<aura:Record>{}</aura:Record>",
        b"<a>" * 150_000 + b"</a>" * 150_000,
        packet_with_record(RECORD) + b" " * 600_000,
    ],
    ids=lambda packet: repr(packet[:20]),
)
def test_a_hostile_packet_has_no_record(hostile: bytes) -> None:
    assert record_in(hostile) is None


def test_a_long_namespace_is_not_repeated_for_every_name_in_it() -> None:
    """Expat's names with namespaces would take 500 MB here, and 10 GB in the longest packet."""
    names = "".join(f"<a{number:x}/>" for number in range(6000))
    hostile = f"<r xmlns='{'x' * 60_000}'>{names}</r>".encode()
    tracemalloc.start()
    try:
        assert record_in(hostile) is None
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 30 * len(hostile)


def test_deep_nesting_is_read_or_refused() -> None:
    deep = 60_000
    record = b"<aura:Record xmlns:aura='urn:aura-serve:'>{}</aura:Record>"
    assert record_in(b"<a>" * deep + record + b"</a>" * deep) in ("{}", None)


def test_no_flipped_byte_is_an_error() -> None:
    chance = random.Random(2)
    good = packet_with_record(RECORD)
    for _ in range(3000):
        broken = bytearray(good)
        for _ in range(chance.choice((1, 3))):
            broken[chance.randrange(len(broken))] = chance.randrange(256)
        text = record_in(bytes(broken))
        assert text is None or isinstance(text, str)
