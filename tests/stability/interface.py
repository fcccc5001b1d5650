"""Interface of the package: what a release promises to keep, computed from the code.

As a script it records the interface in `interface.json`, which `test_interface.py` compares with the code:

    python tests/stability/interface.py           # prints what the code has and the record lacks, and what it lost
    python tests/stability/interface.py --record  # before a release: the record becomes what the code has
    python tests/stability/interface.py commands  # one part alone

Three parts: `python` (names, parameters, members), `commands` (arguments and options) and `files` (columns of CSV
files and keys of JSON that small runs write, see `small_runs`).
"""

from __future__ import annotations

import inspect
import json
import re
import sys
from collections.abc import Iterator, Mapping
from importlib import import_module
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
RECORD = Path(__file__).with_name("interface.json")
PARTS = ("python", "commands", "files")
Tree = Mapping[str, Any]


def python_part() -> dict[str, Any]:
    """Path of each name on the site's API pages → its parameters and, of a class, its members."""
    sys.path.insert(0, str(ROOT / "docs" / "_ext"))
    try:
        topics = import_module("api_pages").TOPICS.values()
    finally:
        sys.path.pop(0)
    paths = [path for _, names, results in topics for path in (*names, *results)]
    values = {path: getattr(import_module(path.rpartition(".")[0]), path.rpartition(".")[2]) for path in paths}
    return {path: described(path, value) for path, value in sorted(values.items())}


def described(path: str, value: Any) -> dict[str, Any]:
    """Parameters of a function; members of a class, and its parameters where a user makes it by position.

    Fields of settings are given by name: they are members alone.
    """
    if not isinstance(value, type):
        return {"parameters": parameters(value)}
    found = {"members": members(value)}
    is_named = path.count(".") > 1 or path.endswith(("Settings", "Config")) or issubclass(value, Exception)
    return found if is_named else {"parameters": parameters(value), **found}


def parameters(function: Any) -> list[str]:
    """Parameters in order: `name`, `name=` with a default, `*` before those that are given by name alone."""
    found = []
    for parameter in inspect.signature(function).parameters.values():
        if parameter.name in ("self", "cls") or parameter.kind is parameter.VAR_KEYWORD:
            continue
        if parameter.kind is parameter.KEYWORD_ONLY and "*" not in found:
            found.append("*")
        found.append(parameter.name + ("" if parameter.default is parameter.empty else "="))
    return found


def members(cls: type) -> dict[str, list[str] | None]:
    """Public member → the parameters of a method; None for a field or property."""
    found: dict[str, list[str] | None] = {}
    for base in cls.__mro__:
        if base.__module__.partition(".")[0] != "longvit":
            continue
        for name, value in (*vars(base).items(), *((name, None) for name in vars(base).get("__annotations__", {}))):
            function = getattr(value, "__func__", value)
            if not name.startswith("_") and name not in found:
                found[name] = parameters(function) if inspect.isfunction(function) else None
    return dict(sorted(found.items()))


def commands_part() -> dict[str, Any]:
    """Command → its arguments in order, and its options."""
    from longvit.cli.commands import app

    return dict(sorted(described_commands(app)))


def described_commands(app: Any, above: str = "") -> Iterator[tuple[str, dict[str, list[str]]]]:
    for name in app:
        if name.startswith("-"):
            continue
        command, path = app[name], f"{above} {name}".strip()
        if command.default_command is not None:
            found = list(command.assemble_argument_collection())
            options = {option for one in found for option in one.names if option.startswith("--")}
            yield (
                path,
                {
                    "arguments": [
                        one.names[0] + ("" if one.required else "=")
                        for one in sorted(found, key=position)
                        if one.index is not None
                    ],
                    "options": sorted(option for option in options if not option.startswith("--empty-")),
                },
            )
        yield from described_commands(command, path)


def position(argument: Any) -> int:
    return -1 if argument.index is None else int(argument.index)


def lost(old: Any, new: Any, where: str = "") -> Iterator[str]:
    """Lines on what `old` has and `new` lacks. Lists of parameters keep their order, other lists their values."""
    if isinstance(old, Mapping):
        for key, value in old.items():
            if not isinstance(new, Mapping) or key not in new:
                yield f"{where}: {key} is gone".removeprefix(": ")
            else:
                yield from lost(value, new[key], f"{where} {key}".strip())
    elif isinstance(old, list):
        new = new if isinstance(new, list) else []
        if where.endswith((" columns", " options", " keys")):
            yield from (f"{where}: {value} is gone" for value in old if value not in new)
        else:
            yield from lost_parameters(old, new, where)


def lost_parameters(old: list[str], new: list[str], where: str) -> Iterator[str]:
    """Calls that were valid and are not: by position, by name, or without a new parameter."""
    gone = [name for name in plain(old) if name not in plain(new)]
    yield from (f"{where}: parameter {name} is gone" for name in gone)
    before, after = by_position(old), by_position(new)
    if not gone and before != after[: len(before)]:
        yield f"{where}: parameters by position were {before}, are {after}"
    for name in new:
        if name != "*" and not name.endswith("=") and name not in old:
            yield f"{where}: parameter {name} must now be given"


def plain(names: list[str]) -> list[str]:
    return [name.rstrip("=") for name in names if name != "*"]


def by_position(names: list[str]) -> list[str]:
    return plain(names[: names.index("*")] if "*" in names else names)


def current(part: str) -> dict[str, Any]:
    """One of `PARTS` as the code has it."""
    if part == "files":
        import tempfile

        from tests.stability.small_runs import files_part

        with tempfile.TemporaryDirectory() as folder:
            return files_part(Path(folder) / "files")
    return python_part() if part == "python" else commands_part()


def main() -> None:
    sys.path.insert(0, str(ROOT))
    old = json.loads(RECORD.read_text(encoding="utf-8")) if RECORD.exists() else {part: {} for part in PARTS}
    parts = [part for part in PARTS if part in sys.argv] or list(PARTS)
    new = {**old, **{part: current(part) for part in parts}}
    gone, added = list(lost(old, new)), list(lost(new, old))
    print("\n".join([*(f"- {line}" for line in gone), *(f"+ {line.removesuffix(' is gone')}" for line in added)]))
    if "--record" in sys.argv:
        text = json.dumps(new, indent=1, ensure_ascii=False)
        lists = re.sub(r"\[\s+([^\[\]]*?)\s+\]", lambda found: f"[{' '.join(found[1].split())}]", text)  # a line each
        RECORD.write_text((lists if json.loads(lists) == new else text) + "\n", encoding="utf-8")
    else:
        sys.exit(1 if gone or added else 0)


if __name__ == "__main__":
    main()
