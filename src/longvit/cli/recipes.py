"""`longvit recipes`"""

from __future__ import annotations

import json
from typing import Annotated

from cyclopts import Parameter

from longvit.cli.options import echo


def recipes(
    name: Annotated[str | None, Parameter(help="Print this recipe whole.", show_default=False)] = None,
    /,
    *,
    as_json: Annotated[bool, Parameter(name="--json", negative="", help="Print JSON instead of lines.")] = False,
) -> int:
    """The recipes that come along: one for each cell of the paper's tables, and for a try.

    A recipe is a YAML file with settings for `longvit train --recipe NAME`; its first lines are the command, the
    hours and hardware to expect, and the published figure to compare with.

    **Examples**

    ```
    longvit recipes
    longvit recipes subtyping_brca_1024
    ```
    """
    from longvit.config import read_recipe, recipe_names, recipe_path

    if name is not None:
        text = recipe_path(name).read_text(encoding="utf-8")
        found = {"name": name, "about": about(text), "settings": read_recipe(name)}
        print(json.dumps(found, indent=1, ensure_ascii=False) if as_json else text.rstrip())
        return 0
    lines = {each: about(recipe_path(each).read_text(encoding="utf-8")) for each in recipe_names()}
    if as_json:
        listed = [{"name": each, "about": text} for each, text in lines.items()]
        print(json.dumps(listed, indent=1, ensure_ascii=False))
        return 0
    width = max(map(len, lines))
    for each, comment in lines.items():
        print(f"{each:<{width}}  {comment[0] if comment else ''}")
    echo("`longvit recipes NAME` prints one: its command, the hours to expect, the published figure, the settings")
    return 0


def about(text: str) -> list[str]:
    """The comment lines at the top of a recipe, without the empty ones."""
    comment: list[str] = []
    for line in text.splitlines():
        if not line.startswith("#"):
            break
        stripped = line.removeprefix("#").strip()
        if stripped:
            comment.append(stripped)
    return comment
