"""`InputFile`: a file that came in a request, which is in memory until it is taken."""

from typing import Any

from pydantic import GetCoreSchemaHandler
from pydantic_core import CoreSchema
from pydantic_core.core_schema import (
    ValidatorFunctionWrapHandler,
    no_info_wrap_validator_function,
    plain_serializer_function_ser_schema,
    str_schema,
)

from serve_app.core.errors import InvalidImage
from serve_app.ingress.data_uri import read_data


class InputFile:
    """The bytes of a file, to be taken once.

    Frames of the framework keep the body of a request until its response is sent, which may be
    minutes later. So what they keep must not be the bytes themselves.
    """

    __slots__ = ("_content",)

    def __init__(self, content: bytes | None) -> None:
        self._content = content  # None: taken, or the text was no file

    @classmethod
    def of_text(cls, text: str) -> "InputFile":
        """Return the file in a data URI or in bare base64."""
        try:
            return cls(read_data(text))
        except ValueError:
            return cls(None)

    def take(self, subject: str) -> bytes:
        """Return the bytes, and forget them. Raises `InvalidImage` of the subject without any."""
        content, self._content = self._content, None
        if content is None:
            raise InvalidImage("is neither base64 nor a data URI", subject=subject)
        return content

    @classmethod
    def __get_pydantic_core_schema__(cls, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        """Describe a field of this type: text on the wire, which may have been decoded already.

        It is written without its content: what tells requests apart is the digest of the bytes.
        """

        def read(value: Any, read_text: ValidatorFunctionWrapHandler) -> InputFile:
            return value if isinstance(value, InputFile) else cls.of_text(read_text(value))

        return no_info_wrap_validator_function(
            read,
            str_schema(strict=True),
            serialization=plain_serializer_function_ser_schema(lambda _: ""),
        )
