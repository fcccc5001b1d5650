"""Write the list of source files into docs/architecture.md, one line a file, from the first sentence of its docstring.

python .ci/map_files.py           write the list
python .ci/map_files.py --check   exit code 1 where the list differs from the files
"""

from __future__ import annotations

import ast
import re
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "src" / "longvit"
PAGE = ROOT / "docs" / "architecture.md"
BEGIN, END = "<!-- files: written by .ci/map_files.py -->\n", "<!-- end of files -->\n"


def first_sentence(path: Path) -> str:
    """The first sentence of a module's docstring, on one line; empty where there is no docstring."""
    text = " ".join((ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or "").split("\n\n")[0].split())
    return re.split(r"(?<=[.])\s(?=[A-Z`])", text)[0].rstrip(".:;").replace("|", "\\|")


def file_list() -> str:
    """Markdown: a heading and a table of files for the package and each of its folders."""
    folders = sorted({path.parent for path in PACKAGE.rglob("*.py")})
    parts = []
    for folder in folders:
        name = "longvit" if folder == PACKAGE else str(folder.relative_to(PACKAGE))
        about = first_sentence(folder / "__init__.py")
        parts.append(f"### `{name}/`\n\n{about}.\n\n| file | |\n|---|---|\n")
        parts += [
            f"| `{path.name}` | {first_sentence(path)} |\n"
            for path in sorted(folder.glob("*.py"))
            if path.name not in ("__init__.py", "__main__.py")
        ]
        parts.append("\n")
    return "".join(parts).rstrip() + "\n"


def page_with_list(text: str) -> str:
    """The page with its list of files replaced."""
    before, rest = text.split(BEGIN, 1)
    _, after = rest.split(END, 1)
    return f"{before}{BEGIN}\n{file_list()}\n{END}{after}"


def main() -> int:
    text = PAGE.read_text(encoding="utf-8")
    new = page_with_list(text)
    if "--check" in sys.argv[1:]:
        if new != text:
            print("docs/architecture.md does not list the files as they are; run `python .ci/map_files.py`")
        return int(new != text)
    PAGE.write_text(new, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
