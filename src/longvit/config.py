"""Settings: frozen dataclasses <- a YAML recipe <- the command line, in this order.

A dataclass of settings sits beside the code that it sets; its field docs are the help text of the command
line. This file only reads and checks. cyclopts does the conversion and the precedence; what it lacks is added
here: the nearest name to an unknown key, and the refusal of a fraction where a whole number is meant
(cyclopts 5.5 rounds it down silently).
"""

from __future__ import annotations

import dataclasses
import difflib
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeVar, get_args, get_origin, get_type_hints

from longvit.errors import InputError

if TYPE_CHECKING:
    from cyclopts import App, ArgumentCollection

Settings = TypeVar("Settings")
RECIPES = Path(__file__).parent / "recipes"
RECIPE_OPTION = "--recipe"


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
    import yaml

    path = recipe_path(name_or_path)

    class UniqueKeys(yaml.SafeLoader):
        """PyYAML keeps the last of two equal keys without a word."""

        def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
            seen: set[Any] = set()
            for key_node, _ in node.value:
                key = self.construct_object(key_node)
                if key in seen:
                    raise InputError(f"{path}, line {key_node.start_mark.line + 1}: {key!r} appears twice")
                seen.add(key)
            return super().construct_mapping(node, deep)

    try:
        data = yaml.load(path.read_text(encoding="utf-8"), UniqueKeys)
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: not a text file") from error
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f", line {mark.line + 1}" if mark else ""
        raise InputError(f"{path}{where}: not YAML: {getattr(error, 'problem', None) or error}") from error
    if data is None:
        return {}
    if not isinstance(data, dict):
        raise InputError(f"{path}: expected lines of the form 'key: value', found a {type(data).__name__}")
    return {str(key): value for key, value in data.items()}


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
            raise InputError(f"{source}: unknown key {key!r}{_nearest(key.replace('-', '_'), known)}")


def check_choices(settings: Any) -> None:
    """An `InputError` for the first field of a dataclass that has none of the values that its `Literal` lists."""
    for name, hint in get_type_hints(type(settings)).items():
        choices = [c for h in (hint, *get_args(hint)) if get_origin(h) is Literal for c in get_args(h)]
        value = getattr(settings, name)
        if choices and value is not None and value not in choices:
            raise InputError(f"{name} {value!r}: choose {', '.join(choices)}")


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
        raise InputError(one_line(error)) from error
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


def one_line(error: Exception) -> str:
    """An error on one line; with the option and the recipe that it is about, where cyclopts leaves them out."""
    text = " ".join(str(error).split())
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
                whole = float(str(value).replace("_", "")).is_integer()
            except ValueError:
                continue  # not a number at all: cyclopts says so
            if not whole:
                where = f" from {source}" if (source := _source([token])) else ""
                raise InputError(f"{argument.name}{where}: {value} is not a whole number")


def _source(tokens: Iterable[Any]) -> str:
    """The recipe that the tokens came from; empty for the command line."""
    return next((token.source for token in tokens if token.source not in ("", "cli")), "")


def _nearest(name: str, known: Iterable[str]) -> str:
    match = difflib.get_close_matches(name, list(known), n=1, cutoff=0.5)
    return f"; did you mean {match[0]!r}?" if match else ""
