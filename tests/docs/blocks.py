"""Code blocks of the pages, with their marks; as a script, a line per page: blocks that run, and those that do not.

Marks are HTML comments, so a rendered page does not show them. Before a block:

    <!-- not run: GPU: why -->    the block is left out and counted; the first word is one of `REASONS`
    <!-- output -->               the text block shows the output of the block above; numbers within 1 %
    <!-- output, numbers within 20 % -->
    <!-- exit code 1 -->          the block above ends with this code

Anywhere on a page, `<!-- needs: runs/first, job -->` names what earlier work has left in the folder (`folders.NEEDS`).
"""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), *ROOT.glob("examples/*.md")])
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
    """Whether a printed line equals the line on the page."""
    pattern = ".*?".join(re.escape(part) for part in NUMBER.sub("\0", shown).split("…"))
    found = re.fullmatch(pattern.replace("\\\0", "\0").replace("\0", f"({NUMBER.pattern})"), printed)
    if found is None:
        return False
    pairs = zip(NUMBER.findall(shown), found.groups(), strict=True)
    return all(abs(number(a) - number(b)) <= tolerance * abs(number(a)) for a, b in pairs)


def number(text: str) -> float:
    return float(text.replace(",", ""))


def main() -> None:
    total: Counter[str] = Counter()
    for page in PAGES:
        found = Counter(block.not_run.split(":")[0] or "run" for block in blocks(page))
        total += found
        if found:
            print(f"{page.relative_to(ROOT)}: " + ", ".join(f"{number} {name}" for name, number in found.items()))
    print(f"all {sum(total.values())}: " + ", ".join(f"{number} {name}" for name, number in total.most_common()))


if __name__ == "__main__":
    main()
