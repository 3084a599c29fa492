"""The XMP packet: that a model made the image, and in JPEG and WebP also its record.

`DigitalSourceType` is IPTC's property for machines (Photo Metadata Standard 2023.1).
"""

import json
from typing import Any
from xml.parsers import expat
from xml.sax.saxutils import escape

from serve_app.ingress.containers.container import MAX_METADATA_BYTES

MAX_PACKET_BYTES = 65_502  # in the one segment of a JPEG (XMP specification part 3, 1.1.3)
_NAMESPACE = "urn:aura-serve:"
_BEFORE = (
    '<?xpacket begin="" id="W5M0MpCehiHzreSzNTczkc9d"?>'
    '<x:xmpmeta xmlns:x="adobe:ns:meta/">'
    '<rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">'
    '<rdf:Description rdf:about=""'
    ' xmlns:Iptc4xmpExt="http://iptc.org/std/Iptc4xmpExt/2008-02-29/"'
    " Iptc4xmpExt:DigitalSourceType="
    '"http://cv.iptc.org/newscodes/digitalsourcetype/trainedAlgorithmicMedia"'
)
_AFTER = '</rdf:RDF></x:xmpmeta><?xpacket end="r"?>'


def packet() -> str:
    """Return the packet of an image whose record is elsewhere."""
    return f"{_BEFORE}/>{_AFTER}"


def packet_with_record(record: str) -> bytes:
    """Return the packet with a record, a JSON object, in at most `MAX_PACKET_BYTES`.

    Of a longer record only its version and its prompt are kept.
    """
    fields = json.loads(record)
    whole = _packet_with(fields)
    if len(whole) <= MAX_PACKET_BYTES:
        return whole
    return _packet_with({name: fields[name] for name in ("version", "prompt")})


def record_in(packet: bytes) -> str | None:
    """Return the text of the record in anybody's packet, or None.

    A document type could define entities, which grow without bound, so such a packet is not parsed.
    """
    if len(packet) > MAX_METADATA_BYTES:
        return None
    try:
        text = packet.decode().strip("\0 \r\n\t\ufeff")
        return None if "<!" in text else _RecordReader().read(text)
    except (UnicodeDecodeError, expat.ExpatError):
        return None


class _RecordReader:
    """Finds the first record in a packet, as the text of an element or as an attribute.

    Names are compared with their prefixes: a parser that resolves them repeats the namespace in
    each name, which may be half the packet thousands of times.
    """

    def __init__(self) -> None:
        self._names: set[str] = set()  # of a record: one for each prefix of its namespace
        self._records: list[str] = []
        self._text: list[str] | None = None  # of the record that is being read

    def read(self, text: str) -> str | None:
        """Return the first record that is not empty. Raises `ExpatError`."""
        parser = expat.ParserCreate()
        parser.StartElementHandler = self._start
        parser.EndElementHandler = self._end
        parser.CharacterDataHandler = self._add
        parser.Parse(text, True)
        return next(filter(None, self._records), None)

    def _start(self, name: str, attributes: dict[str, str]) -> None:
        self._end(name)
        for attribute, value in attributes.items():
            if value == _NAMESPACE and attribute.partition(":")[0] == "xmlns":
                prefix = attribute.partition(":")[2]
                self._names.add(f"{prefix}:Record" if prefix else "Record")
        self._records += [value for key, value in attributes.items() if key in self._names]
        if name in self._names:
            self._text = []

    def _add(self, text: str) -> None:
        if self._text is not None:
            self._text.append(text)

    def _end(self, name: str) -> None:
        if self._text is not None:
            self._records.append("".join(self._text))
            self._text = None


def _packet_with(fields: dict[str, Any]) -> bytes:
    text = json.dumps(fields, ensure_ascii=False)
    text = "".join(_encodable(character) for character in text)
    return (
        f'{_BEFORE} xmlns:aura="{_NAMESPACE}"><aura:Record>{escape(text)}</aura:Record>'
        f"</rdf:Description>{_AFTER}"
    ).encode()


def _encodable(character: str) -> str:
    """Return a character of a JSON text as XML can hold it (XML 1.0, section 2.2)."""
    if character in "\ufffe\uffff" or "\x7f" <= character <= "\x9f":
        return f"\\u{ord(character):04x}"
    return character
