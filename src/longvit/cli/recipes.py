"""`longvit recipes`"""

from __future__ import annotations

import json
from typing import Annotated

from cyclopts import Parameter

from longvit.cli.options import AsJson, echo


def recipes(
    name: Annotated[str | None, Parameter(help="Recipe to print in full.", show_default=False)] = None,
    /,
    *,
    as_json: AsJson = False,
) -> int:
    """List the built-in recipes: one for each entry of the paper's tables, and small ones to try.

    A recipe is a YAML file with settings for `longvit train --recipe NAME`. Its first lines state the command, the
    hours and hardware to expect, and the published metric to compare with.

    **Examples**

    ```
    longvit recipes
    longvit recipes subtyping_brca_1024
    ```
    """
    from longvit.config import read_recipe, recipe_names, recipe_path

    if name is not None:
        text = recipe_path(name).read_text(encoding="utf-8")
        content = {"name": name, "about": header_lines(text), "settings": read_recipe(name)}
        print(json.dumps(content, indent=1, ensure_ascii=False) if as_json else text.rstrip())
        return 0
    headers = {recipe: header_lines(recipe_path(recipe).read_text(encoding="utf-8")) for recipe in recipe_names()}
    if as_json:
        listed = [{"name": recipe, "about": lines} for recipe, lines in headers.items()]
        print(json.dumps(listed, indent=1, ensure_ascii=False))
        return 0
    width = max(map(len, headers))
    for recipe, lines in headers.items():
        print(f"{recipe:<{width}}  {lines[0] if lines else ''}")
    echo("`longvit recipes NAME` prints a recipe: command, expected hours, published metric, settings")
    return 0


def header_lines(text: str) -> list[str]:
    """Comment lines at the top of a recipe, without empty ones."""
    comment: list[str] = []
    for line in text.splitlines():
        if not line.startswith("#"):
            break
        stripped = line.removeprefix("#").strip()
        if stripped:
            comment.append(stripped)
    return comment
