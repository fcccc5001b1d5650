"""Settings: frozen dataclasses <- a YAML recipe <- the command line, in this order.

A dataclass of settings sits beside the code that it sets; its field docs are the help text of the command
line. This file only reads and checks. cyclopts does the conversion and the precedence; what it lacks is added
here: the nearest name to an unknown key, and the refusal of a fraction where a whole number is meant
(cyclopts 5.5 rounds it down silently).
"""

from __future__ import annotations

import dataclasses
import difflib
import math
import os
import sys
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from datetime import date
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeVar, get_args, get_origin, get_type_hints

from longvit.errors import InputError, one_line

if TYPE_CHECKING:
    from cyclopts import App, ArgumentCollection

Settings = TypeVar("Settings")
RECIPES = Path(__file__).parent / "recipes"
RECIPE_OPTION = "--recipe"
_RECIPE_BYTES, _LONGEST_TEXT, _LONGEST_ERROR = 2**18, 4096, 1500


def recipe_names() -> tuple[str, ...]:
    """The recipes that come with the package, by name."""
    return tuple(sorted(path.stem for path in RECIPES.glob("*.yaml")))


def recipe_path(name_or_path: str | Path) -> Path:
    """The file of a recipe: a path to a YAML file, or the name of one that comes with the package."""
    path = Path(name_or_path)
    if path.is_file():
        return path
    if (shipped := RECIPES / f"{name_or_path}.yaml").is_file():
        return shipped
    names = recipe_names()
    raise InputError(
        f"{name_or_path}: no such recipe{_nearest(str(name_or_path), names)}; "
        f"give a YAML file or one of: {', '.join(names)}"
    )


def read_recipe(name_or_path: str | Path) -> dict[str, Any]:
    """The keys and values of a recipe, unchecked but for its form: one mapping, no key twice."""
    path = recipe_path(name_or_path)
    with path.open("rb") as file:
        data = file.read(_RECIPE_BYTES + 1)
    if len(data) > _RECIPE_BYTES:
        raise InputError(f"{path}: larger than {_RECIPE_BYTES:,} bytes: no recipe")
    try:
        values = read_yaml(data.decode("utf-8"), str(path))
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: not a text file") from error
    if values is None:
        return {}
    if not isinstance(values, dict):
        raise InputError(f"{path}: expected lines of the form 'key: value', found a {type(values).__name__}")
    return values


def read_yaml(text: str, source: str) -> Any:
    """What YAML text says, in numbers, texts, dates, lists and mappings from texts.

    Raises `InputError` in one line (`source`, the line, the reason) for all else: a key twice, an alias (a few lines of
    them are gigabytes), other kinds of values, nesting without end.
    """
    import yaml

    class Plain(yaml.SafeLoader):
        """PyYAML keeps the last of two equal keys without a word."""

        def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
            if self.check_event(yaml.AliasEvent):
                raise _not_read(self.peek_event().start_mark, "an alias (*) is not read; write the value out")
            return super().compose_node(parent, index)

        def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
            seen: set[Any] = set()
            for key_node, _ in node.value:
                if not isinstance(key_node, yaml.ScalarNode):
                    raise _not_read(key_node.start_mark, "a key that is no text")
                key = self.construct_object(key_node)
                if key in seen:
                    raise _not_read(key_node.start_mark, f"{_shown(key)} appears twice")
                seen.add(key)
            return {str(key): value for key, value in super().construct_mapping(node, deep).items()}

    def _not_read(mark: yaml.Mark, reason: str) -> InputError:
        return InputError(f"{source}, line {mark.line + 1}: {reason}")

    try:
        found = yaml.load(text, Plain)
        _check_plain(found, source)
    except InputError:
        raise
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f", line {mark.line + 1}" if mark else ""
        problem = " ".join(str(getattr(error, "problem", None) or error).split())[:200]
        raise InputError(f"{source}{where}: not YAML: {problem}") from error
    except RecursionError as error:
        raise InputError(f"{source}: nested too deeply") from error
    except Exception as error:  # of a value's own constructor: a month 13, a number of thousands of digits
        raise InputError(f"{source}: not YAML: {' '.join(str(error).split())[:200]}") from error
    return found


def _check_plain(value: Any, source: str) -> None:
    if isinstance(value, dict | list):
        for item in value.values() if isinstance(value, dict) else value:
            _check_plain(item, source)
    elif not isinstance(value, str | int | float | date | type(None)):
        raise InputError(f"{source}: {_shown(value)}: a {type(value).__name__} is no setting")


def recipe_config(app: App, commands: Sequence[str], arguments: ArgumentCollection) -> None:
    """A cyclopts configuration source: fills what the command line left open from the file of `--recipe`.

    An `InputError` names the file and the nearest key where a key is unknown, and the file where a whole
    number is a fraction; other wrong types are reported by cyclopts, with the file too.
    """
    from cyclopts.config import Dict

    recipe = next((a.tokens[0].value for a in arguments if RECIPE_OPTION in a.names and a.tokens), None)
    if recipe is not None:
        data = {key: value for key, value in read_recipe(recipe).items() if value is not None}
        source = str(recipe_path(recipe))
        names = [n[2:] for a in arguments for n in a.names if n.startswith("--") and n != RECIPE_OPTION]
        check_keys(source, data, names)
        Dict(data, source=source, use_commands_as_keys=False)(app, tuple(commands), arguments)
    _check_whole_numbers(arguments)


def check_keys(source: str | Path, keys: Iterable[str], known: Iterable[str]) -> None:
    """An `InputError` for the first key that is not known: the file, the key, the nearest known one."""
    known = {name.replace("-", "_") for name in known}
    for key in keys:
        if key.replace("-", "_") not in known:
            near = _nearest(key.replace("-", "_"), known) if len(key) < 100 else ""
            raise InputError(f"{source}: unknown key {_shown(key)}{near}")


def check_choices(settings: Any) -> None:
    """An `InputError` for the first field of a dataclass that has none of the values that its `Literal` lists."""
    for name, hint in get_type_hints(type(settings)).items():
        choices = [c for h in (hint, *get_args(hint)) if get_origin(h) is Literal for c in get_args(h)]
        value = getattr(settings, name)
        if choices and value is not None and value not in choices:
            raise InputError(f"{name} {value!r}: choose {', '.join(choices)}")


def check_bounds(settings: Any, bounds: Mapping[str, tuple[int, int]]) -> None:
    """An `InputError` for the first field that lies outside; of a tuple each member. None and texts pass."""
    for name, (low, high) in bounds.items():
        value = getattr(settings, name)
        for number in value if isinstance(value, tuple) else (value,):
            if number is not None and not isinstance(number, str) and not low <= number <= high:
                raise InputError(f"{name} {_shown(number)}: between {low:,} and {high:,}")


def check_values(settings: Any, **most: int) -> None:
    """An `InputError` for a value of a dataclass that no setting can mean: a number that is not finite, a whole one
    above 2^31 − 1 or above what `most` says of it, no thread, a text with a NUL or of thousands of characters."""
    for name, value in vars(settings).items():
        high = most.get(name, 2**31 - 1)
        for one in value if isinstance(value, tuple) else (value,):
            if isinstance(one, int) and abs(one) > high:
                raise InputError(f"{name} {_shown(one)}: at most {high:,}")
            if isinstance(one, float) and not math.isfinite(one):
                raise InputError(f"{name} {one}: a finite number")
            if isinstance(one, str | Path) and ("\0" in str(one) or len(str(one)) > _LONGEST_TEXT):
                raise InputError(f"{name} {_shown(str(one))}: a text without NUL, at most {_LONGEST_TEXT:,} characters")
    if getattr(settings, "threads", None) is not None and settings.threads < 1:
        raise InputError(f"threads {settings.threads}: at least 1")


def typed(kind: type, values: Mapping[str, Any], source: str | Path) -> dict[str, Any]:
    """Values read from JSON as the fields of a dataclass want them, lists as tuples.

    Raises `InputError` for the first that has another type: `source`, the name, the value, what is expected.
    """
    hints = get_type_hints(kind)
    found = {}
    for name, value in values.items():
        try:
            found[name] = _typed(value, hints[name])
        except TypeError as error:
            raise InputError(f"{source}: {name} {_shown(value)}: {error} is expected") from None
    return found


def _typed(value: Any, hint: Any) -> Any:
    """`value`, if it is of this type; `TypeError` with what is expected otherwise."""
    origin, inner = get_origin(hint), get_args(hint)
    if origin is Literal:
        if not isinstance(value, str | int) or value not in inner:
            raise TypeError(" or ".join(map(repr, inner)))
        return value
    if origin is tuple:
        if not isinstance(value, list | tuple) or (inner[-1] is not ... and len(value) != len(inner)):
            raise TypeError(_words_of(hint))
        kinds = [inner[0]] * len(value) if inner[-1] is ... else inner
        try:
            return tuple(_typed(item, of) for item, of in zip(value, kinds, strict=True))
        except TypeError:
            raise TypeError(_words_of(hint)) from None
    if origin is not None:  # a union
        for choice in inner:
            with suppress(TypeError):
                return _typed(value, choice)
        raise TypeError(" or ".join(_words_of(choice) for choice in inner))
    is_right = {
        int: isinstance(value, int) and not isinstance(value, bool),
        float: isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= sys.float_info.max,
        type(None): value is None,
    }.get(hint, isinstance(value, hint))
    if not is_right:
        raise TypeError(_words_of(hint))
    return value


def _words_of(hint: Any) -> str:
    if get_origin(hint) is Literal:
        return " or ".join(map(repr, get_args(hint)))
    if get_origin(hint) is tuple:
        members = get_args(hint)[:1] if get_args(hint)[-1] is ... else get_args(hint)
        return f"a list, each of it {_words_of(members[0])}," if len(members) == 1 else f"a list of {len(members)}"
    names = {int: "a whole number", float: "a finite number", str: "a text", bool: "true or false", type(None): "null"}
    return names.get(hint, getattr(hint, "__name__", str(hint)))


def _shown(value: Any) -> str:
    """A value in a message; the beginning of a long one."""
    try:
        text = repr(value)
    except (ValueError, RecursionError):  # a number of thousands of digits; nested without end
        text = f"a {type(value).__name__}"
    text = "".join(c if c.isprintable() else "�" for c in text)
    return text if len(text) <= 60 else f"{text[:59]}…"


def load_settings(kind: type[Settings], recipe: str | Path | None = None, **overrides: Any) -> Settings:
    """The same as the command line does, from Python: defaults <- recipe <- `overrides`."""
    from cyclopts import App, Parameter

    def settings(*, settings: Any, recipe: Any = None) -> Any:
        return settings

    settings.__annotations__ = {"settings": Annotated[kind, Parameter(name="*")], "recipe": str | None}
    settings.__kwdefaults__ = {"settings": kind(), "recipe": None}
    app = App(config=recipe_config, result_action="return_value")
    app.default(settings)
    from cyclopts import CycloptsError

    try:
        tokens = [] if recipe is None else [RECIPE_OPTION, os.fspath(recipe)]
        loaded: Settings = app(tokens, exit_on_error=False, print_error=False)
    except CycloptsError as error:
        raise InputError(usage_error_line(error)) from error
    return dataclasses.replace(loaded, **overrides) if overrides else loaded  # type: ignore[type-var]


def settings_yaml(settings: Any) -> str:
    """The settings as YAML that `--recipe` reads back."""
    import yaml

    def plain(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: plain(item) for key, item in value.items()}
        if isinstance(value, (tuple, list)):
            return [plain(item) for item in value]
        return str(value) if isinstance(value, Path) else value

    return yaml.safe_dump(plain(dataclasses.asdict(settings)), sort_keys=False, allow_unicode=True)


def usage_error_line(error: Exception) -> str:
    """An error on one line; with the option and the recipe that it is about, where cyclopts leaves them out."""
    text = one_line(error)
    text = text if len(text) <= _LONGEST_ERROR else f"{text[:_LONGEST_ERROR]}…"
    argument = getattr(error, "argument", None)
    if argument is None or argument.name.lstrip("-") in text:
        return text
    where = f" from {source}" if (source := _source(argument.tokens)) else ""
    return f"{argument.name}{where}: {text}"


def _check_whole_numbers(arguments: ArgumentCollection) -> None:
    for argument in arguments:
        if not (argument.hint is int or set(get_args(argument.hint)) == {int, type(None)}):
            continue
        for token in argument.tokens:
            value = token.implicit_value if token.value == "" else token.value
            try:
                number = float(str(value).replace("_", ""))
            except (ValueError, OverflowError):
                continue  # not a number at all: cyclopts says so
            if not abs(number) < 2**63:
                where = f" from {source}" if (source := _source([token])) else ""
                raise InputError(f"{argument.name}{where}: {_shown(str(value))} is beyond every whole number")
            if not number.is_integer():
                where = f" from {source}" if (source := _source([token])) else ""
                raise InputError(f"{argument.name}{where}: {value} is not a whole number")


def _source(tokens: Iterable[Any]) -> str:
    """The recipe that the tokens came from; empty for the command line."""
    return next((token.source for token in tokens if token.source not in ("", "cli")), "")


def _nearest(name: str, known: Iterable[str]) -> str:
    match = difflib.get_close_matches(name, list(known), n=1, cutoff=0.5)
    return f"; did you mean {match[0]!r}?" if match else ""
