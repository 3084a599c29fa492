"""Messages for what pydantic finds wrong."""

from typing import Any, Literal

import pytest
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator
from pydantic_core import PydanticCustomError

from serve_app.core.validation_message import validation_message


class Example(BaseModel):
    model_config = ConfigDict(extra="forbid")

    count: int = Field(1, ge=1, le=64)
    rate: float = Field(1, gt=0, allow_inf_nan=False)
    share: float = Field(0.5, ge=0.25)
    mode: Literal["a", "b"] = "a"
    name: str = Field("x", min_length=1)
    day: str = "Monday"
    tags: list[str] = []
    code: str = Field("a", pattern="^a+$")
    data: bytes = b""
    long: str = Field("aa", min_length=2, max_length=3)
    pair: list[str] = Field(["a"], min_length=1, max_length=2)
    even: int = Field(2, multiple_of=2)
    sort: str = "a"

    @field_validator("sort")
    @classmethod
    def _not_taken(cls, sort: str) -> str:
        if sort != "a":
            raise PydanticCustomError("taken", "is taken: {sort}", {"sort": sort})
        return sort

    @field_validator("day")
    @classmethod
    def _a_day(cls, day: str) -> str:
        if not day.endswith("day"):
            raise ValueError(f"must end in day, got {day}")
        return day


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("count", 0, "must be at least 1"),
        ("count", 65, "must be at most 64"),
        ("count", "many", "must be a whole number"),
        ("rate", 0, "must be above 0"),
        ("rate", float("inf"), "must be a finite number"),
        ("share", 0.1, "must be at least 0.25"),
        ("mode", "c", "must be 'a' or 'b'"),
        ("name", "", "must not be empty"),
        ("long", "a", "must have at least 2 characters"),
        ("long", "aaaa", "must have at most 3 characters"),
        ("pair", [], "must have at least 1 entry"),
        ("pair", ["a", "b", "c"], "must have at most 2 entries"),
        ("even", 3, "must be a multiple of 2"),
        ("name", 4, "must be a string"),
        ("day", "June", "must end in day, got June"),
        ("tags", "x", "must be a list"),
        ("colour", "red", "is unknown"),
        ("code", "b", "must match ^a+$"),
        ("data", 4, "must be a valid bytes"),  # no template: as pydantic has it
        ("sort", "b!", "is taken: b!"),  # a message of our own, as we wrote it
    ],
)
def test_a_message_says_what_is_legal(field: str, value: Any, message: str) -> None:
    with pytest.raises(ValidationError) as refused:
        Example.model_validate({field: value})
    (error,) = refused.value.errors()
    assert validation_message(error) == message
