"""Parts of the documentation site: plots, reference pages, the day-one table, versions. Sphinx is not needed."""

from __future__ import annotations

import importlib.util
import inspect
import re
import tomllib
from importlib import import_module
from pathlib import Path
from types import ModuleType

import pytest
from PIL import Image
from tests.conftest import ROOT

import longvit

DOCS = ROOT / "docs"


def load(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def extensions(monkeypatch: pytest.MonkeyPatch) -> None:
    """docs/_ext on the path, as the build has it."""
    monkeypatch.syspath_prepend(str(DOCS / "_ext"))


def test_the_plot_of_dilated_attention_shows_what_the_package_computes() -> None:
    script = load(DOCS / "_scripts" / "dilated_attention.py")
    with Image.open(script.PLOT) as image:
        assert image.text["content"] == script.content(), "run python docs/_scripts/dilated_attention.py"


def test_the_plot_of_dilated_attention_changes_with_the_pattern(monkeypatch: pytest.MonkeyPatch) -> None:
    script = load(DOCS / "_scripts" / "dilated_attention.py")
    before = script.content()
    for w, r in zip(script.SEGMENTS, script.RATIOS, strict=True):  # the count of pairs that the page and plot have
        assert (script.weights((w,), (r,))[0] > 0).sum() == script.TOKENS // w * (w // r) ** 2
    monkeypatch.setattr(script, "RATIOS", (1, 2, 8))
    assert script.content() != before


def test_the_first_day_has_26_steps_in_order() -> None:
    rows = re.findall(r"^\| (\d+) \| ([^|]+) \| ([^|]+) \|", (DOCS / "day-one.md").read_text(encoding="utf-8"), re.M)
    assert [int(number) for number, _, _ in rows] == list(range(1, 27))
    assert all("](" in pages for _, _, pages in rows)


def test_a_page_of_the_first_day_is_one_link_from_the_index() -> None:
    named = set(re.findall(r"\]\(([\w-]+\.md)", (DOCS / "day-one.md").read_text(encoding="utf-8")))
    index = set(re.findall(r"\]\(([\w-]+\.md)", (DOCS / "index.md").read_text(encoding="utf-8")))
    assert len(named) > 15
    assert named <= index


def test_a_site_has_a_page_for_every_command_and_subcommand(extensions: None) -> None:
    from longvit.cli.commands import app

    pages = import_module("command_pages")
    names = pages.command_names(app)
    assert set(names) == {name for name in app if not name.startswith("-")}
    text = pages.markdown(app, "cohort")
    assert text.startswith("# longvit cohort\n")
    assert "## longvit cohort split" in text
    assert "`--by-site`" in text


def test_angle_brackets_of_a_help_text_are_no_html(extensions: None) -> None:
    from longvit.cli.commands import app

    text = import_module("command_pages").markdown(app, "features")
    outside_code = re.sub(r"```.*?```|`[^`\n]+`", "", text, flags=re.DOTALL)
    assert "<" in outside_code
    assert not re.search(r"(?<!\\)<", outside_code)


def test_every_public_name_and_method_on_the_site_has_a_docstring(extensions: None) -> None:
    topics = import_module("api_pages").TOPICS.values()
    paths = [path for _, names, results in topics for path in (*names, *results)]
    assert {f"longvit.{name}" for name in longvit.__all__} - {"longvit.__version__"} <= set(paths)
    values = {path: getattr(import_module(path.rpartition(".")[0]), path.rpartition(".")[2]) for path in paths}
    missing = [path for path, value in values.items() if not inspect.getdoc(value)]
    for path, value in values.items():
        for name, member in vars(value).items() if isinstance(value, type) else ():
            member = getattr(member, "fget", None) or getattr(member, "func", None) or member
            member = getattr(member, "__func__", member)
            if not name.startswith("_") and callable(member) and not inspect.getdoc(member):
                missing.append(f"{path}.{name}")
    assert not missing


def test_links_from_another_folder_lead_to_the_same_page(extensions: None) -> None:
    from pathlib import PurePosixPath

    moved = import_module("root_pages").moved
    docs = PurePosixPath("docs")
    assert moved("[a](../CONTRIBUTING.md#rules)", docs / "index.md", docs) == "[a](project/contributing.md#rules)"
    image = "![a](data:image/png;base64,AA/BB)"
    assert moved(image, docs / "notebook.md", docs) == image
    text = "[a](docs/files.md) [b](CHANGELOG.md) [c](https://x.y) [d](#e) [f](../src/a.py)"
    root = moved(text.replace("../src", "src"), PurePosixPath("CONTRIBUTING.md"), docs / "project")
    assert root == "[a](../files.md) [b](changelog.md) [c](https://x.y) [d](#e) [f](../../src/a.py)"


def test_the_menu_has_every_page_that_a_table_of_the_index_links(extensions: None) -> None:
    menu = import_module("menu").toctrees((DOCS / "index.md").read_text(encoding="utf-8"))
    pages = {path.stem for path in DOCS.glob("*.md")} - {"index"}
    assert pages <= set(menu.split())
    assert re.findall(r":caption: (.*)", menu) == ["First hour", "How to", "Reference", "Explanation", "Project"]


def test_versions_of_package_citation_and_changelog_agree() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    citation = re.search(r"^version: (\S+)", (ROOT / "CITATION.cff").read_text(encoding="utf-8"), re.M)
    changelog = re.search(r"^## (\S+)", (ROOT / "CHANGELOG.md").read_text(encoding="utf-8"), re.M)
    assert citation is not None
    assert changelog is not None
    assert {project["version"], citation[1].strip("'\""), changelog[1]} == {longvit.__version__}


def test_readme_names_commands_and_options_that_exist_and_every_command_is_on_a_page() -> None:
    from longvit.cli.commands import app

    pages = "\n".join(path.read_text(encoding="utf-8") for path in [ROOT / "README.md", *DOCS.glob("*.md")])
    named = set(re.findall(r"\blongvit ([a-z][a-z-]+)\b", "\n".join(re.findall(r"`[^`\n]+`", pages))))
    commands = {name for name in app if not name.startswith("-")}
    assert commands <= named
    assert named - commands <= {"embed", "cohort"}


def test_a_dead_link_another_host_or_a_far_page_of_a_site_is_found(tmp_path: Path) -> None:
    check = load(ROOT / ".ci" / "check_site.py")
    site = tmp_path / "docs" / "_build"
    site.mkdir(parents=True)
    (tmp_path / "docs" / "a.md").write_text("# A")
    (site / "searchindex.js").write_text(" ".join(check.WORDS))
    (site / "index.html").write_text('<a href="a.html#here">a</a>')
    (site / "a.html").write_text('<h1 id="here">A</h1>')
    assert list(check.problems(site)) == []
    (site / "a.html").write_text(
        '<h1 id="there">A</h1><script src="https://cdn.x/y.js"></script><a href="b.html">b</a>'
        '<img src="data:image/png;base64,AA"><img src="_images/c.png?v=1">'
    )
    (tmp_path / "docs" / "far.md").write_text("# Far")
    found = "\n".join(check.problems(site))
    for text in (
        "no such heading",
        "loads https://cdn.x/y.js",
        "b.html: no such file",
        "loads _images/c.png?v=1: no such file",
        "far.md is more than two links",
    ):
        assert text in found
