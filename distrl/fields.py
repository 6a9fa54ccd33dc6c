"""The flat set of names that flags, TOML and `config.json` share, and how one value of it is read.

A command's `Schema` names its configuration and, where it has algorithms, their recipe. A field is one of
the configuration's or one of the recipe's: `env`, `workers`, `learning_rate`, … Each is described once, there;
this file reads that description and checks one value at a time, so that every wrong value of a command line is
found and not only the first.
"""

from __future__ import annotations

import dataclasses
import difflib
import os
import re
import types
import typing
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from decimal import Decimal, InvalidOperation
from functools import cache, cached_property
from typing import Annotated, Any, Generic, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from distrl.clashes import Clash
from distrl.plain_values import plain

C = TypeVar("C", bound=BaseModel)

LARGEST_EXPONENT = 18  # --total-steps 1e6 is meant well, 1e999999999 would fill the memory


@dataclass(frozen=True)
class FlatField:
    """One name of the flat set: what it takes, what it defaults to and where its help stands."""

    name: str
    hint: Any  # the type with its bounds, as `Annotated`
    default: Any
    help: str
    section: str
    in_recipe: bool
    presets: Mapping[str, Any] = field(default_factory=dict)  # algorithm -> its recipe

    @property
    def flag(self) -> str:
        """The name as the command line writes it."""
        return "--" + self.name.replace("_", "-")

    @property
    def _alternatives(self) -> tuple[Any, ...]:
        """The types of a union, without bounds; one for a plain type."""
        plain = _without_bounds(self.hint)
        if typing.get_origin(plain) in (types.UnionType, typing.Union):
            return tuple(_without_bounds(one) for one in typing.get_args(plain))
        return (plain,)

    @property
    def optional(self) -> bool:
        """Whether `none` is a value."""
        return type(None) in self._alternatives

    @property
    def kind(self) -> Any:
        """The bare type: int, float, bool, str, dict, tuple or Literal."""
        plain = next(one for one in self._alternatives if one is not type(None))
        return typing.get_origin(plain) or plain

    @property
    def choices(self) -> tuple[str, ...]:
        """The words it may be; empty where it is not a choice."""
        if self.name == "algo":
            return tuple(self.presets)
        return next(
            (typing.get_args(one) for one in self._alternatives if typing.get_origin(one) is Literal), ()
        )

    @property
    def metavar(self) -> str:
        """What the help shows in the place of a value."""
        if self.choices:
            return "|".join(self.choices)
        if self.kind is tuple and str in typing.get_args(self._alternatives[0]):
            return "TEXT,TEXT"
        return {int: "N", float: "X", tuple: "N,N", dict: "TABLE"}.get(self.kind, "TEXT")

    @property
    def default_text(self) -> str:
        """The default as the help shows it: one value, or one per algorithm where they differ."""
        if not self.in_recipe or not self.presets:
            return show(self.default)
        by_value: dict[str, list[str]] = {}
        for algo, recipe in self.presets.items():
            by_value.setdefault(show(getattr(recipe, self.name)), []).append(algo)
        if len(by_value) == 1:
            return next(iter(by_value))
        return "; ".join(f"{value} for {', '.join(algos)}" for value, algos in by_value.items())


def _without_bounds(hint: Any) -> Any:
    return typing.get_args(hint)[0] if typing.get_origin(hint) is Annotated else hint


@dataclass(frozen=True, eq=False)
class Schema(Generic[C]):
    """What a command's configuration is: flags, TOML, `config.json` and `--dry-run` all follow from it."""

    command: str  # as a person types it
    config: type[C]
    sections: Mapping[
        str, str | tuple[str, ...]
    ]  # each heading of the help and the fields that it starts with
    changeable: tuple[str, ...]  # what a resumed run may be given anew
    fixed: str  # why nothing else may
    clashes: Callable[[C], list[Clash]]
    warnings: Callable[[C], list[str]]
    recipe: type | None = None  # a dataclass of `recipes.option`s; the configuration has it as `recipe`
    presets: Mapping[str, Any] = field(default_factory=dict)  # what `--algo` may be -> its recipe
    implied: Callable[[Mapping[str, Any]], dict[str, Any]] = lambda values: {}  # by other fields
    modules: tuple[str, ...] = ()  # fields that name code as module:name
    movable: tuple[
        str, ...
    ] = ()  # of `modules`: where a resumed run may be given the new place of the same functions
    paths: tuple[str, ...] = ()  # fields that name files or folders: `distrl.places`
    start_from: str = ""  # how a new run takes a resumed one's parameters
    hidden: tuple[str, ...] = ()  # the recipe's fields that mean nothing here
    before: Mapping[str, Any] = field(default_factory=dict)  # what a run did that is older than the field

    @cached_property
    def fields(self) -> dict[str, FlatField]:
        """All names in the order of the help: the configuration's fields, then the recipe's."""
        starts = {
            first: heading
            for heading, several in self.sections.items()
            for first in ((several,) if isinstance(several, str) else several)
        }
        found: dict[str, FlatField] = {}
        section = ""
        for name, info in self.config.model_fields.items():
            if name == "recipe":
                continue
            section = starts.get(name, section)
            hint = Annotated[(info.annotation, *info.metadata)] if info.metadata else info.annotation
            found[name] = FlatField(
                name, hint, info.default, info.description or "", section, False, self.presets
            )
        hints = typing.get_type_hints(self.recipe) if self.recipe else {}
        for name, one in self.recipe_fields.items():
            section = starts.get(name, section)
            bounds = {key: value for key, value in one.metadata.items() if key in ("gt", "ge", "lt", "le")}
            hint = Annotated[hints[name], Field(**bounds)] if bounds else hints[name]
            found[name] = FlatField(
                name, hint, one.default, one.metadata["help"], section, True, self.presets
            )
        order = list(self.sections)
        return dict(sorted(found.items(), key=lambda item: order.index(item[1].section)))

    @cached_property
    def recipe_fields(self) -> dict[str, dataclasses.Field[Any]]:
        """The recipe's fields that are flags, by name."""
        if self.recipe is None:
            return {}
        return {one.name: one for one in dataclasses.fields(self.recipe) if one.name not in self.hidden}

    @cached_property
    def _adapters(self) -> dict[str, TypeAdapter[Any]]:
        return {}

    def _adapter(self, name: str) -> TypeAdapter[Any]:
        if name not in self._adapters:
            hint = self.fields[name].hint
            self._adapters[name] = TypeAdapter(hint, config=ConfigDict(allow_inf_nan=False))
        return self._adapters[name]

    def unknown_name(self, name: str, where: str = "", also: Iterable[str] = ()) -> str:
        """The message for a name that is no field; `also` are further options of the command."""
        names = [one.replace("_", "-") for one in (*self.fields, *also)]
        guess = nearest(name.replace("_", "-"), names, "--") or f" `{self.command} --help` lists them"
        return f"--{name.replace('_', '-')}{where}: no such option;{guess}"

    def read_value(self, name: str, given: Any) -> Any:
        """One value of the flat set, from a string of the command line or a value of TOML, JSON or Python.

        Raises ValueError: the rule, what was given and what to do, without the field's name.
        """
        field = self.fields[name]
        value = _from_text(field, given)
        if field.kind in (int, float) and isinstance(value, bool):
            raise ValueError(f"must be a number, got {show(given)};{_way_out(field)}")
        try:
            value = self._adapter(name).validate_python(value)
        except ValidationError as error:
            raise ValueError(_rule(field, given, error)) from None
        if field.choices and value is not None and value not in field.choices:
            raise ValueError(_choice_rule(field, given))
        if field.kind is dict:
            return {key: plain(one, f"{field.flag}.{key}") for key, one in value.items()}
        return value

    def check_recipe(self, recipe: Any) -> None:
        """Checks a recipe made by hand as flags are: the dataclass itself checks nothing. Raises ValueError."""
        for name in self.recipe_fields:
            try:
                self.read_value(name, getattr(recipe, name))
            except ValueError as error:
                raise ValueError(f"{name}: {error}") from None


@cache
def train_schema() -> Schema[Any]:
    """That of `distrl train`."""
    from distrl.config import TRAIN  # which is made by this file

    return TRAIN


def flat_fields() -> dict[str, FlatField]:
    """The names of `distrl train`."""
    return train_schema().fields


def show(value: Any) -> str:
    """A value as a person types it: `none`, `64,64`, `true`, 0.001."""
    if value is None:
        return "none"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, tuple):
        return ",".join(str(one) for one in value) or "none"
    return str(value)


def nearest(name: str, names: Iterable[str], prefix: str = "") -> str:
    """` did you mean X?`, or nothing where no name is near."""
    close = difflib.get_close_matches(name, list(names), n=1, cutoff=0.6)
    return f" did you mean {prefix}{close[0]}?" if close else ""


def canonical(name: str) -> str:
    """`learning-rate` and `learning_rate` are one name."""
    return name.replace("-", "_")


def quoted_keys(toml: str) -> set[str]:
    """Keys that a TOML text writes in quotes: those are meant with their dashes, `"my-key" = 1`."""
    return {key for _, key in re.findall(r"""(["'])([^"'\n]+)\1\s*[=.\]:]""", toml)}


def _from_text(field: FlatField, given: Any) -> Any:
    """What a string stands for, where the field is not itself text."""
    if isinstance(given, os.PathLike):
        return (os.fspath(given),) if field.kind is tuple else os.fspath(given)
    if field.kind is tuple:
        if field.optional and isinstance(given, str) and given.lower() == "none":
            return None
        if isinstance(given, str):
            return tuple(part.strip() for part in given.split(",")) if given.strip() else ()
        if isinstance(given, (list, tuple)):
            return tuple(os.fspath(one) if isinstance(one, os.PathLike) else one for one in given)
        return (given,) if isinstance(given, (int, float)) else given
    if not isinstance(given, str):
        return given
    if field.optional and given.lower() == "none":
        return None
    return _whole_number(given) if field.kind is int else given


def _whole_number(text: str) -> int | str:
    """`1e6` is a number of steps too; what is no whole number is left for the rule to refuse."""
    try:
        number = Decimal(text)
        if number.is_finite() and number.adjusted() <= LARGEST_EXPONENT and number == int(number):
            return int(number)
    except (InvalidOperation, ValueError):
        pass
    return text


def _rule(field: FlatField, given: Any, error: ValidationError) -> str:
    if field.choices:
        return _choice_rule(field, given)
    rule = error.errors()[0]["msg"].partition(",")[0].replace("Input should", "must")
    return f"{rule}, got {given!r};{_way_out(field)}"


def _choice_rule(field: FlatField, given: Any) -> str:
    guess = nearest(str(given), field.choices) or _way_out(field)
    return f"must be one of {', '.join(field.choices)}, got {given!r};{guess}"


def _way_out(field: FlatField) -> str:
    default = field.default_text if ";" not in field.default_text else "the algorithm's own"
    return f" give another, or leave it out for {default}"
