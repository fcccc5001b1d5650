"""Notes of a reader on slides: `review.csv` in the run's folder, `slide_id,verdict,comment,time`.

Every note is written at once and atomically. The file is read again before, so other columns and the notes of another
viewer on the same folder stay.
"""

from __future__ import annotations

import csv
import io
import threading
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from longvit.errors import InputError
from longvit.files import require_regular_file, write_csv
from longvit.locks import folder_lock

REVIEW_CSV = "review.csv"
COLUMNS = ("slide_id", "verdict", "comment", "time")
VERDICTS = ("", "agree", "disagree")
MOST_COMMENT = 2000


@dataclass(frozen=True)
class Note:
    """Note on a slide."""

    verdict: str = ""
    """`agree`, `disagree`, or "" for none."""
    comment: str = ""


class Review:
    """Notes of a run, by slide_id."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / REVIEW_CSV
        self._lock = threading.Lock()

    def notes(self) -> dict[str, Note]:
        """All notes. Raises `InputError` for a file that cannot be read."""
        _, rows = self._read()
        return {row["slide_id"]: Note(row.get("verdict", ""), row.get("comment", "")) for row in rows}

    def set(self, slide_id: str, note: Note) -> None:
        """Writes the note of a slide; an empty one removes its row. Raises `InputError` where that fails."""
        if note.verdict not in VERDICTS or len(note.comment) > MOST_COMMENT:
            raise InputError(f"a verdict is one of agree, disagree; a comment has at most {MOST_COMMENT:,} characters")
        with self._lock, folder_lock(self.path.parent):
            columns, rows = self._read()
            row = next((row for row in rows if row["slide_id"] == slide_id), None)
            if note == Note():
                rows = [other for other in rows if other is not row]
            else:
                if row is None:
                    rows.append(row := {"slide_id": slide_id})
                time = datetime.now(UTC).isoformat(timespec="seconds")
                row |= {"verdict": note.verdict, "comment": note.comment, "time": time}
            write_csv(self.path, columns, ([row.get(name, "") for name in columns] for row in rows))

    def _read(self) -> tuple[list[str], list[dict[str, str]]]:
        """Columns, ours first, and rows."""
        try:
            require_regular_file(self.path)
            text = self.path.read_text(encoding="utf-8-sig")
        except FileNotFoundError:
            return list(COLUMNS), []
        except (OSError, UnicodeDecodeError) as error:
            raise InputError(f"{self.path}: not read ({error}); rename it to start a new one") from error
        reader = csv.DictReader(io.StringIO(text, newline=""))
        names = list(reader.fieldnames or ())
        if text.strip() and "slide_id" not in names:
            raise InputError(f"{self.path}: no column 'slide_id'; rename it to start a new one")
        rows = [{name: value or "" for name, value in row.items() if name in names} for row in reader]
        return [*COLUMNS, *(name for name in names if name not in COLUMNS)], rows
