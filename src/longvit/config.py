"""Settings: frozen dataclasses <- a YAML recipe <- the command line, in this order of precedence.

A settings dataclass sits beside the code that it configures. Its field docs are the help text of the command line. This
file reads and checks. cyclopts converts types and applies the precedence. Two checks are added here: the nearest name
to an unknown key, and the refusal of a fraction where a whole number is meant (cyclopts 5.5 rounds it down silently).
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
_RECIPE_BYTES, _MAX_TEXT, _MAX_ERROR = 2**18, 4096, 1500


def recipe_names() -> tuple[str, ...]:
    """Names of the recipes that ship with the package."""
    return tuple(sorted(path.stem for path in RECIPES.glob("*.yaml")))


def recipe_path(name_or_path: str | Path) -> Path:
    """Path of a recipe: a YAML file, or a recipe that ships with the package, by name."""
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
    """Keys and values of a recipe. Only the form is checked: one mapping, no duplicate key."""
    path = recipe_path(name_or_path)
    with path.open("rb") as file:
        data = file.read(_RECIPE_BYTES + 1)
    if len(data) > _RECIPE_BYTES:
        raise InputError(f"{path}: larger than {_RECIPE_BYTES:,} bytes, too large for a recipe")
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
    """Values of a YAML text: numbers, texts, dates, lists and mappings with text keys.

    Raises `InputError` in one line (`source`, line, reason) for a duplicate key, an alias, another kind of value, or
    nesting without end. Aliases are refused because a few lines of them expand to gigabytes.
    """
    import yaml

    class Plain(yaml.SafeLoader):
        """YAML loader that refuses duplicate keys; PyYAML silently keeps the last one."""

        def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
            if self.check_event(yaml.AliasEvent):
                raise _not_read(self.peek_event().start_mark, "an alias (*) is not read; write the value out")
            return super().compose_node(parent, index)

        def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
            seen: set[Any] = set()
            for key_node, _ in node.value:
                if not isinstance(key_node, yaml.ScalarNode):
                    raise _not_read(key_node.start_mark, "a key that is not text")
                key = self.construct_object(key_node)
                if key in seen:
                    raise _not_read(key_node.start_mark, f"{_short_repr(key)} appears twice")
                seen.add(key)
            return {str(key): value for key, value in super().construct_mapping(node, deep).items()}

    def _not_read(mark: yaml.Mark, reason: str) -> InputError:
        return InputError(f"{source}, line {mark.line + 1}: {reason}")

    try:
        values = yaml.load(text, Plain)
        _check_plain(values, source)
    except InputError:
        raise
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f", line {mark.line + 1}" if mark else ""
        problem = " ".join(str(getattr(error, "problem", None) or error).split())[:200]
        raise InputError(f"{source}{line}: not YAML: {problem}") from error
    except RecursionError as error:
        raise InputError(f"{source}: nested too deeply") from error
    except Exception as error:  # from a value's constructor: month 13, a number with thousands of digits
        raise InputError(f"{source}: not YAML: {' '.join(str(error).split())[:200]}") from error
    return values


def _check_plain(value: Any, source: str) -> None:
    if isinstance(value, dict | list):
        for item in value.values() if isinstance(value, dict) else value:
            _check_plain(item, source)
    elif not isinstance(value, str | int | float | date | type(None)):
        raise InputError(f"{source}: {_short_repr(value)}: a {type(value).__name__} is not a setting")


def recipe_config(app: App, commands: Sequence[str], arguments: ArgumentCollection) -> None:
    """cyclopts configuration source: fills options that the command line left open from the file of `--recipe`.

    Raises `InputError` for an unknown key (file and nearest key) and for a fraction where a whole number is meant
    (file). cyclopts reports other wrong types, with the file too.
    """
    from cyclopts.config import Dict

    recipe = next(
        (argument.tokens[0].value for argument in arguments if RECIPE_OPTION in argument.names and argument.tokens),
        None,
    )
    if recipe is not None:
        data = {key: value for key, value in read_recipe(recipe).items() if value is not None}
        source = str(recipe_path(recipe))
        names = [
            name[2:]
            for argument in arguments
            for name in argument.names
            if name.startswith("--") and name != RECIPE_OPTION
        ]
        check_keys(source, data, names)
        Dict(data, source=source, use_commands_as_keys=False)(app, tuple(commands), arguments)
    _check_whole_numbers(arguments)


def check_keys(source: str | Path, keys: Iterable[str], known: Iterable[str]) -> None:
    """Raises `InputError` for the first unknown key: the file, the key, the nearest known one."""
    known = {name.replace("-", "_") for name in known}
    for key in keys:
        if key.replace("-", "_") not in known:
            near = _nearest(key.replace("-", "_"), known) if len(key) < 100 else ""
            raise InputError(f"{source}: unknown key {_short_repr(key)}{near}")


def check_choices(settings: Any) -> None:
    """Raises `InputError` for the first field whose value is not among the values of its `Literal`."""
    for name, hint in get_type_hints(type(settings)).items():
        hints = [inner for inner in (hint, *get_args(hint)) if get_origin(inner) is Literal]
        choices = [choice for inner in hints for choice in get_args(inner)]
        value = getattr(settings, name)
        if choices and value is not None and value not in choices:
            raise InputError(f"{name} {value!r}: choose {', '.join(choices)}")


def convert_paths(settings: Any) -> None:
    """Turns texts into `Path` in the fields of a frozen dataclass that are declared as paths."""
    for name, hint in get_type_hints(type(settings)).items():
        if Path in (hint, *get_args(hint)) and isinstance(value := getattr(settings, name), str):
            object.__setattr__(settings, name, Path(value))


def check_bounds(settings: Any, bounds: Mapping[str, tuple[int, int]]) -> None:
    """Raises `InputError` for the first field out of its bounds. Members of a tuple are checked one by one; None and
    texts pass."""
    for name, (low, high) in bounds.items():
        value = getattr(settings, name)
        for number in value if isinstance(value, tuple) else (value,):
            if number is not None and not isinstance(number, str) and not low <= number <= high:
                raise InputError(f"{name} {_short_repr(number)}: between {low:,} and {high:,}")


def check_values(settings: Any, **most: int) -> None:
    """Raises `InputError` for a value that no setting can have.

    Refused are a non-finite number and a whole number above 2^31 − 1 or above its limit in `most`. So are fewer than
    one thread, and a text with NUL or thousands of characters.
    """
    for name, value in vars(settings).items():
        high = most.get(name, 2**31 - 1)
        for member in value if isinstance(value, tuple) else (value,):
            if isinstance(member, int) and abs(member) > high:
                raise InputError(f"{name} {_short_repr(member)}: at most {high:,}")
            if isinstance(member, float) and not math.isfinite(member):
                raise InputError(f"{name} {member}: a finite number")
            if isinstance(member, str | Path) and ("\0" in str(member) or len(str(member)) > _MAX_TEXT):
                raise InputError(
                    f"{name} {_short_repr(str(member))}: a text without NUL, at most {_MAX_TEXT:,} characters"
                )
    if getattr(settings, "threads", None) is not None and settings.threads < 1:
        raise InputError(f"threads {settings.threads}: at least 1")


def typed(kind: type, values: Mapping[str, Any], source: str | Path) -> dict[str, Any]:
    """Values read from JSON, converted to the field types of a dataclass; lists become tuples.

    Raises `InputError` for the first value of another type: `source`, the name, the value, the expected type.
    """
    hints = get_type_hints(kind)
    converted = {}
    for name, value in values.items():
        try:
            converted[name] = _typed(value, hints[name])
        except TypeError as error:
            raise InputError(f"{source}: {name} {_short_repr(value)}: {error} is expected") from None
    return converted


def _typed(value: Any, hint: Any) -> Any:
    """`value`, if it has this type. Raises `TypeError` with the expected type otherwise."""
    origin, inner = get_origin(hint), get_args(hint)
    if origin is Literal:
        if not isinstance(value, str | int) or value not in inner:
            raise TypeError(" or ".join(map(repr, inner)))
        return value
    if origin is tuple:
        if not isinstance(value, list | tuple) or (inner[-1] is not ... and len(value) != len(inner)):
            raise TypeError(_type_description(hint))
        member_hints = [inner[0]] * len(value) if inner[-1] is ... else inner
        try:
            return tuple(_typed(item, member_hint) for item, member_hint in zip(value, member_hints, strict=True))
        except TypeError:
            raise TypeError(_type_description(hint)) from None
    if origin is not None:  # a union
        for choice in inner:
            with suppress(TypeError):
                return _typed(value, choice)
        raise TypeError(" or ".join(_type_description(choice) for choice in inner))
    is_right = {
        int: isinstance(value, int) and not isinstance(value, bool),
        float: isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= sys.float_info.max,
        type(None): value is None,
    }.get(hint, isinstance(value, hint))
    if not is_right:
        raise TypeError(_type_description(hint))
    return value


def _type_description(hint: Any) -> str:
    if get_origin(hint) is Literal:
        return " or ".join(map(repr, get_args(hint)))
    if get_origin(hint) is tuple:
        members = get_args(hint)[:1] if get_args(hint)[-1] is ... else get_args(hint)
        return (
            f"a list, each of it {_type_description(members[0])}," if len(members) == 1 else f"a list of {len(members)}"
        )
    names = {int: "a whole number", float: "a finite number", str: "a text", bool: "true or false", type(None): "null"}
    return names.get(hint, getattr(hint, "__name__", str(hint)))


def _short_repr(value: Any) -> str:
    """Value for a message, shortened to 60 characters."""
    try:
        text = repr(value)
    except (ValueError, RecursionError):  # a number with thousands of digits; endless nesting
        text = f"a {type(value).__name__}"
    text = "".join(c if c.isprintable() else "�" for c in text)
    return text if len(text) <= 60 else f"{text[:59]}…"


def load_settings(kind: type[Settings], recipe: str | Path | None = None, **overrides: Any) -> Settings:
    """Settings from Python as the command line builds them: defaults <- recipe <- `overrides`."""
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
    text = text if len(text) <= _MAX_ERROR else f"{text[:_MAX_ERROR]}…"
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
                continue  # not a number at all: cyclopts reports it
            if not abs(number) < 2**63:
                where = f" from {source}" if (source := _source([token])) else ""
                raise InputError(f"{argument.name}{where}: {_short_repr(str(value))} is too large for a whole number")
            if not number.is_integer():
                where = f" from {source}" if (source := _source([token])) else ""
                raise InputError(f"{argument.name}{where}: {value} is not a whole number")


def _source(tokens: Iterable[Any]) -> str:
    """Recipe that the tokens came from; empty for the command line."""
    return next((token.source for token in tokens if token.source not in ("", "cli")), "")


def _nearest(name: str, known: Iterable[str]) -> str:
    match = difflib.get_close_matches(name, list(known), n=1, cutoff=0.5)
    return f"; did you mean {match[0]!r}?" if match else ""
