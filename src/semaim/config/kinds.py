"""Kinds of values: what an option must be, in words and as a strict check.

pydantic checks them: it is strict on request ("3" is not 3, true is not 1, nan is not a number), it composes lists and
alternatives, and MLflow depends on it anyway. Hydra's structured configs know types, but no ranges.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, StrictBool, TypeAdapter, ValidationError

LARGEST = 10**9  # of counts and sizes; a larger one is a slip, and would fill memory before anything complains


@dataclass(frozen=True)
class Kind:
    """A set of values.

    Attributes:
        words: completes "must be ...".
        type: the same for pydantic.
        choices: the values, if they are names.
        is_path: whether a leading ~ means the home folder.
    """

    words: str
    type: Any
    choices: tuple[str, ...] = ()
    is_path: bool = False

    def __or__(self, other: Kind) -> Kind:
        words = f"{self.words}, or {other.words}"
        return Kind(words, self.type | other.type, self.choices + other.choices, self.is_path or other.is_path)

    def accepts(self, value: Any) -> bool:
        """Whether a value, in plain types, is of this kind."""
        try:
            self._adapter.validate_python(value, strict=True)
        except ValidationError:
            return False
        return True

    @cached_property
    def _adapter(self) -> TypeAdapter[Any]:
        return TypeAdapter(self.type)


def whole(least: int, most: int = LARGEST) -> Kind:
    """Whole numbers in a range, limits included."""
    return Kind(f"a whole number from {least} to {most}", Annotated[int, Field(strict=True, ge=least, le=most)])


def number(words: str = "a number", **limits: Any) -> Kind:
    """Finite numbers; `limits` are pydantic's gt, ge, lt and le."""
    limited: Any = Field(strict=True, allow_inf_nan=False, **limits)
    return Kind(words, Annotated[float, limited])


def text(words: str, pattern: str, longest: int | None = None) -> Kind:
    """Texts that match a pattern as a whole."""
    return Kind(words, Annotated[str, Field(pattern=f"^{pattern}$", max_length=longest)])


def one_of(*names: str) -> Kind:
    """One of several names."""
    return Kind(" or ".join(filter(None, [", ".join(names[:-1]), names[-1]])), Literal[names], names)


def list_of(each: Kind, words: str, length: int | None = None, least: int = 1) -> Kind:
    """Lists of `least` or more values, or of exactly `length`."""
    limits = Field(min_length=length or least, max_length=length)
    return Kind(words, Annotated[list[each.type], limits], each.choices, each.is_path)  # type: ignore[name-defined]


def ascending(lists: Kind) -> Kind:
    """Those of some lists whose values do not descend."""
    return _in_order(lists, sorted)


def increasing(lists: Kind) -> Kind:
    """Those of some lists whose values ascend, each above the one before."""
    return _in_order(lists, lambda values: sorted(set(values)))


def _in_order(lists: Kind, in_order: Callable[[list[float]], list[float]]) -> Kind:
    """Those of some lists that a function leaves as they are."""

    def unchanged(values: list[float]) -> list[float]:
        if values != in_order(values):
            raise ValueError
        return values

    return Kind(lists.words, Annotated[lists.type, AfterValidator(unchanged)])


def _path(value: Any) -> Any:
    """Paths may hold any character but NUL, also bytes that are no UTF-8, which pydantic's texts may not.

    s3://bucket/x would be a folder "s3:" here.
    """
    if not isinstance(value, str) or not value.strip() or "\0" in value or "://" in value:
        raise ValueError
    return value


NULL = Kind("null", None)
SEED = Kind("a whole number, not negative", Annotated[int, Field(strict=True, ge=0, lt=2**63)])
TRUTH = Kind("true or false", StrictBool)
SHARE = number("a number from 0 to 1", ge=0, le=1)
POSITIVE = number("a number above 0", gt=0)
NOT_NEGATIVE = number("a number, not negative", ge=0)
_CHARACTER = r"[^\x00-\x1f\x7f]"  # no control character: they could forge lines of a log
TEXT = text("a text of one line, not empty", rf"{_CHARACTER}*[^\x00-\x20\x7f]{_CHARACTER}*")
PATH = Kind("a path", Annotated[Any, AfterValidator(_path)], is_path=True)
FOLDER_NAME = text(
    "the name of one folder, without /", r"[^\x00-\x1f\x7f/]*[^\x00-\x20\x7f/.][^\x00-\x1f\x7f/]*", longest=200
)
TARGET = text("the Python path of a class or function", r"\w+(\.\w+)+")
SIDE = whole(1, 65_536)
SIZE = SIDE | list_of(SIDE, "[height,width]", 2)
COLOUR = list_of(number(), "a list of three numbers", 3)
COLOUR_SCALE = list_of(POSITIVE, "a list of three numbers above 0", 3)
