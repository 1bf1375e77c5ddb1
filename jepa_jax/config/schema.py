"""From nested mappings to frozen dataclasses: types, bounds, defaults, tagged unions, None.

A field's type hint is its whole contract: `Annotated[int, at_least(1)] | None`. A union of
dataclasses is told apart by their field `name`. All that is wrong ends in one `UserError`, which
names the field, its value and what is allowed.
"""

import ast
import dataclasses
import difflib
import functools
import math
import operator
import types
import typing
from collections.abc import Callable, Mapping
from typing import Annotated, Any, Literal, NamedTuple, TypeVar

from jepa_jax.errors import UserError

T = TypeVar("T")


class Bound(NamedTuple):
    """What a value must fulfil: its words follow "must"."""

    words: str
    holds: Callable[[Any], bool]


def at_least(lowest: int) -> Bound:
    return Bound(f"be at least {lowest}", lambda x: x >= lowest)


Positive = Annotated[int, at_least(1)]
NotNegative = Annotated[float, at_least(0)]
AboveZero = Annotated[float, Bound("be above 0", lambda x: x > 0)]
Share = Annotated[float, Bound("lie in 0..1", lambda x: 0 <= x <= 1)]
ShareBelowOne = Annotated[float, Bound("lie in 0..1, below 1", lambda x: 0 <= x < 1)]
ShareAboveZero = Annotated[float, Bound("lie in 0..1, above 0", lambda x: 0 < x <= 1)]
ShareBetween = Annotated[float, Bound("lie between 0 and 1", lambda x: 0 < x < 1)]
Scale = Annotated[  # shares of an area
    tuple[float, float],
    Bound("satisfy 0 < low <= high <= 1", lambda x: 0 < x[0] <= x[1] <= 1),
]
Ratio = Annotated[tuple[float, float], Bound("satisfy 0 < low <= high", lambda x: 0 < x[0] <= x[1])]


class Text(str):
    """A value typed on the command line: only the schema knows of which type."""


def from_mapping(schema: type[T], mapping: Any, prefix: str = "config") -> T:
    """Builds the dataclass `schema` from a (nested) mapping.

    Fields that are not given have their defaults. This holds for a section too that is given in
    part: what it lacks is as in the default of the field that it is (BYOL's `ema` rises along a
    cosine), not as in the section's own.

    Raises:
      UserError: a field is unknown, missing, of the wrong type, or out of bounds.
    """
    if not hasattr(mapping, "keys"):
        raise UserError(f"{prefix} = {_shown(mapping)}: expected the fields of {schema.__name__}")
    hints = typing.get_type_hints(schema, include_extras=True)
    for name in mapping:
        if name not in hints:
            nearest = difflib.get_close_matches(str(name), hints, n=1, cutoff=0.0)[0]
            raise UserError(f"{prefix}.{name}: no such field; did you mean {prefix}.{nearest}?")
    values = {}
    for field in dataclasses.fields(typing.cast(Any, schema)):
        default = field.default
        if field.default_factory is not dataclasses.MISSING:
            default = field.default_factory()
        if field.name in mapping:
            value = _completed(mapping[field.name], default)
            values[field.name] = convert(hints[field.name], value, f"{prefix}.{field.name}")
        elif default is dataclasses.MISSING:
            raise UserError(f"{prefix}.{field.name}: missing; the config file must set it")
    return schema(**values)


def _completed(section: Any, default: Any) -> Any:
    """A section with what it lacks from the default; if it names another type, as it is."""
    if dataclasses.is_dataclass(default) and not isinstance(default, type):
        default = dataclasses.asdict(default)
    if not hasattr(section, "keys") or not isinstance(default, dict):
        return section
    given = {name: section[name] for name in section}
    if "name" in given and str(given["name"]) != default.get("name"):
        return given
    return default | {name: _completed(value, default.get(name)) for name, value in given.items()}


def to_dict(config: Any) -> dict[str, Any]:
    """A configuration as plain dictionaries, for JSON."""
    return dataclasses.asdict(config)


def flatten(mapping: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested dictionaries as one: dotted name -> value, with lists for tuples."""
    flat: dict[str, Any] = {}
    for name, value in mapping.items():
        if isinstance(value, Mapping):
            flat |= flatten(value, f"{prefix}{name}.")
        else:
            flat[prefix + name] = list(value) if isinstance(value, tuple) else value
    return flat


def differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    """Fields whose values differ between two nested dictionaries: dotted name -> (old, new)."""
    old, new = flatten(old), flatten(new)
    return {
        name: (old.get(name), new.get(name))
        for name in sorted(old.keys() | new.keys())
        if old.get(name) != new.get(name)
    }


def convert(hint: Any, value: Any, name: str) -> Any:
    """`value` as the type `hint`; only lossless conversions (int to float, list to tuple)."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        return _convert_union(arguments, value, name)
    if origin is Annotated:
        hint, *bounds = arguments
        converted = convert(hint, value, name)
        for bound in bounds:
            if not bound.holds(converted):
                raise UserError(f"{name} = {_shown(converted)}: must {bound.words}")
        return converted
    if dataclasses.is_dataclass(hint):
        return from_mapping(typing.cast(type, hint), value, name)
    if isinstance(value, Text):
        is_text = hint is str or (origin is Literal and isinstance(arguments[0], str))
        value = str(value) if is_text else parse(value)
    if origin is Literal:
        if value not in arguments:
            allowed = ", ".join(map(str, arguments))
            raise UserError(f"{name} = {_shown(value)}: must be one of {allowed}")
        return value
    if origin is tuple:
        length = None if arguments[-1] is Ellipsis else len(arguments)
        if not isinstance(value, list | tuple) or (length is not None and len(value) != length):
            kind = "a tuple" if length is None else f"{length} values"
            element = typing.get_origin(arguments[0]) and typing.get_args(arguments[0])[0]
            element = element or arguments[0]
            raise UserError(f"{name} = {_shown(value)}: must be {kind} of type {element.__name__}")
        return tuple(convert(arguments[0], item, f"{name}[{i}]") for i, item in enumerate(value))
    if hint is dict and hasattr(value, "keys"):  # a ConfigDict is no dict
        return dict(value)
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if not isinstance(value, hint) or (hint is not bool and isinstance(value, bool)):
        raise UserError(f"{name} = {_shown(value)}: must be of type {hint.__name__}")
    if hint is float and not math.isfinite(value):
        raise UserError(f"{name} = {value}: must be a finite number")
    return value


def _convert_union(arguments: tuple[Any, ...], value: Any, name: str) -> Any:
    """One of several dataclasses, by its `name`; or a value that may be None."""
    alternatives = [a for a in arguments if a is not type(None)]
    if len(alternatives) < len(arguments):
        if is_none(value):
            return None
        try:
            return convert(functools.reduce(operator.or_, alternatives), value, name)
        except UserError as error:
            raise UserError(f"{error}, or None") from error
    tagged = {typing.get_args(typing.get_type_hints(a)["name"])[0]: a for a in alternatives}
    if not hasattr(value, "keys"):
        raise UserError(f"{name} = {_shown(value)}: expected a name and its fields")
    tag = value.get("name")
    if tag not in tagged:
        problem = f"{name}.name: missing" if tag is None else f"{name}.name = {_shown(tag)}"
        raise UserError(f"{problem}; must be one of {', '.join(tagged)}")
    return from_mapping(tagged[tag], value, name)


def is_none(value: Any) -> bool:
    """Whether a value is None, or says so on the command line."""
    return value is None or (isinstance(value, Text) and value == "None")


def parse(text: str) -> Any:
    """The Python literal that a text is, or the text itself."""
    if text.lower() in ("true", "false"):
        return text.lower() == "true"
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return str(text)


def _shown(value: Any) -> str:
    """`value` in one line, as errors are (the text of a ConfigDict has several)."""
    return " ".join(repr(value).split())
