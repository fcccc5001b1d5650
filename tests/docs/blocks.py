"""Code blocks of the pages, with their marks; `python -m tests.docs.blocks` counts those that run.

Marks are HTML comments, so a rendered page does not show them. Before a block:

    <!-- not run: GPU: why -->    the block is left out and counted; the first word is one of `REASONS`
    <!-- output -->               the text block shows the output of the block above; numbers within 1 %
    <!-- output, numbers within 20 % -->
    <!-- exit code 1 -->          the block above ends with this code

Anywhere on a page, `<!-- needs: runs/first, job -->` names what earlier work has left in the folder (`folders.NEEDS`).
The cells of a notebook run together, in `test_notebook.py`. Examples of docstrings run in tests/test_public_api.py.
"""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
CARDS = sorted(ROOT.glob("src/longvit/weights/*/README.md"))
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), *ROOT.glob("examples/*.md"), *CARDS])
LANGUAGES = ("bash", "python")
REASONS = {
    "GPU": "it needs GPUs",
    "cluster": "it needs a scheduler and nodes",
    "file": "it needs a published file that is not here, or is gated",
    "network": "it installs packages or downloads",
    "release": "it changes the repository or publishes",
    "hours": "it runs for hours",
    "elsewhere": "a test that the reason names runs it",
}
NOTEBOOK = "elsewhere: tests/docs/test_notebook.py runs its cells together"
FENCE = re.compile(r"^(?P<indent> *)```(?P<language>\w*)\n(?P<code>.*?)^(?P=indent)```$", re.MULTILINE | re.DOTALL)
MARK = re.compile(r"<!-- (.*?) -->", re.DOTALL)


@dataclass(frozen=True)
class Block:
    """One block of a page."""

    page: str
    line: int
    language: str
    code: str
    not_run: str = ""
    """`REASON: why`, or empty."""
    output: str | None = None
    """Text that the page shows as its output."""
    tolerance: float = 0.01
    """Relative, of the numbers in the output."""
    exit_code: int = 0

    @property
    def name(self) -> str:
        return f"{self.page}:{self.line}"


def blocks(page: Path) -> list[Block]:
    """The shell and Python blocks of a page, in its order."""
    text = page.read_text(encoding="utf-8")
    found: list[Block] = []
    for fence in FENCE.finditer(text):
        marks = marks_before(text[: fence.start()])
        code = re.sub(rf"^{fence['indent']}", "", fence["code"], flags=re.MULTILINE)
        if (output := next((mark for mark in marks if mark.startswith("output")), None)) is not None:
            within = re.search(r"within (\d+) %", output)
            last = vars(found.pop())
            found.append(Block(**{**last, "output": code, "tolerance": int(within[1]) / 100 if within else 0.01}))
        elif fence["language"] in LANGUAGES:
            reason = next((mark.removeprefix("not run: ") for mark in marks if mark.startswith("not run: ")), "")
            reason = NOTEBOOK if is_notebook(text) else reason
            code_mark = re.match(r"\s*<!-- exit code (\d+) -->", text[fence.end() :])
            found.append(
                Block(
                    page=page.relative_to(ROOT).as_posix(),
                    line=text.count("\n", 0, fence.start()) + 1,
                    language=fence["language"],
                    code=code,
                    not_run=" ".join(reason.split()),
                    exit_code=int(code_mark[1]) if code_mark else 0,
                )
            )
    return found


def is_notebook(text: str) -> bool:
    """True if the first lines of the page pair it with a notebook."""
    return text.startswith("---\njupyter:\n")


COMMAND = re.compile(r"^ *(?:\$ |# )?(?:longvit|pip|python|make|git|ssh|docker|sbatch|torchrun) .*$", re.MULTILINE)


def escaped(page: Path) -> list[str]:
    """Places of commands in blocks that are not marked as shell, so that no test would run them."""
    text = page.read_text(encoding="utf-8")
    found = []
    for fence in FENCE.finditer(text):
        shown = any(mark.startswith("output") for mark in marks_before(text[: fence.start()]))
        command = COMMAND.search(fence["code"])
        if fence["language"] not in LANGUAGES and not shown and command and "MODEL" not in command[0]:
            found.append(f"{page.relative_to(ROOT)}:{text.count(chr(10), 0, fence.start()) + 1}: {command[0].strip()}")
    return found


def marks_before(text: str) -> list[str]:
    """Comments directly before the end of `text`, with nothing but blanks between them and it."""
    end = re.search(r"((?:<!-- (?:(?!-->).)*? -->\s*)*)\Z", text, re.DOTALL)
    return MARK.findall(end[1]) if end else []


def needs(page: Path) -> list[str]:
    """Folders that the page takes as there."""
    found = re.search(r"<!-- needs: (.*?) -->", page.read_text(encoding="utf-8"))
    return [name.strip() for name in found[1].split(",")] if found else []


def differences(shown: str, printed: str, tolerance: float) -> list[str]:
    """Lines of the page that the output does not have, in order; `…` is any text, numbers may differ by `tolerance`."""
    lines = [" ".join(line.split()) for line in printed.splitlines()]
    missing, at = [], 0
    for line in (" ".join(line.split()) for line in shown.splitlines()):
        if line in ("", "…"):
            continue
        same = next((i for i in range(at, len(lines)) if alike(line, lines[i], tolerance)), None)
        if same is None:
            missing.append(line)
        else:
            at = same + 1
    return missing


NUMBER = re.compile(r"\d[\d,]*(?:\.\d+)?(?:e-?\d+)?|\.\d+")


def alike(shown: str, printed: str, tolerance: float) -> bool:
    """True if a printed line equals the line on the page."""
    pattern = ".*?".join(re.escape(part) for part in NUMBER.sub("\0", shown).split("…"))
    found = re.fullmatch(pattern.replace("\\\0", "\0").replace("\0", f"({NUMBER.pattern})"), printed)
    if found is None:
        return False
    pairs = zip(NUMBER.findall(shown), found.groups(), strict=True)
    return all(abs(number(a) - number(b)) <= tolerance * abs(number(a)) for a, b in pairs)


def number(text: str) -> float:
    return float(text.replace(",", ""))


def summary(kind: str, reasons: list[str]) -> list[str]:
    """Lines of a count: `reasons` has an entry per block or example, empty for one that runs."""
    by_test = [reason for reason in reasons if reason.startswith("elsewhere: ")]
    not_here = Counter(reason.split(":")[0] for reason in reasons if reason and reason not in by_test)
    run = len(reasons) - not_here.total()
    also = f" ({len(by_test)} of them by a test of their own)" if by_test else ""
    lines = [f"{kind}: {run} of {len(reasons)} run{also}, {not_here.total()} not runnable here"]
    return lines + [f"  {number:3} {name}: {REASONS[name]}" for name, number in not_here.most_common()]


def main() -> None:
    """Prints every block that does not run with its reason, then the counts."""
    from tests.docs.docstrings import NOT_RUN, examples
    from tests.docs.images import IMAGES

    found = [block for page in PAGES for block in blocks(page)]
    print("\n".join(f"{block.name}: {block.not_run}" for block in found if block.not_run))
    print("\n".join(summary("blocks of pages", [block.not_run for block in found])))
    print("\n".join(summary("examples of docstrings", [NOT_RUN.get(example.name, "") for example in examples()])))
    print("\n".join(summary("images of pages", [image.not_made for image in IMAGES])))


if __name__ == "__main__":
    main()
