"""review.csv: written whole at every note, with what others wrote, and only in the run's folder."""

from __future__ import annotations

import csv
import threading
from pathlib import Path

import pytest

from longvit.errors import InputError
from longvit.viewer.review import MOST_COMMENT, Note, Review


def rows(folder: Path) -> list[dict[str, str]]:
    with (folder / "review.csv").open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_a_note_is_written_changed_and_removed(tmp_path: Path) -> None:
    review = Review(tmp_path)
    assert review.notes() == {}
    review.set("s1", Note("disagree", 'mucin, not "tumour"; see x'))
    review.set("s2", Note("agree"))
    assert review.notes() == {"s1": Note("disagree", 'mucin, not "tumour"; see x'), "s2": Note("agree")}
    review.set("s1", Note())
    assert [row["slide_id"] for row in rows(tmp_path)] == ["s2"]
    assert [path.name for path in tmp_path.iterdir()] == ["review.csv"]


def test_columns_and_notes_of_others_stay(tmp_path: Path) -> None:
    (tmp_path / "review.csv").write_text("\ufeffslide_id,reader,verdict\ns1,Dr A,agree\n", encoding="utf-8")
    one, two = Review(tmp_path), Review(tmp_path)
    one.set("s2", Note("agree"))
    two.set("s3", Note("disagree"))
    one.set("s4", Note("", "blurred"))
    assert [row["slide_id"] for row in rows(tmp_path)] == ["s1", "s2", "s3", "s4"]
    assert rows(tmp_path)[0]["reader"] == "Dr A"


def test_notes_of_many_threads_are_all_kept(tmp_path: Path) -> None:
    reviews = [Review(tmp_path) for _ in range(4)]
    threads = [threading.Thread(target=reviews[i % 4].set, args=(f"s{i}", Note("agree"))) for i in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(Review(tmp_path).notes()) == 16


def test_an_interrupted_write_leaves_the_old_notes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    review = Review(tmp_path)
    review.set("s1", Note("agree"))

    def fail(*_: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr("pathlib.Path.write_bytes", fail)
        with pytest.raises(InputError, match="no space left"):
            review.set("s2", Note("agree"))
    assert review.notes() == {"s1": Note("agree")}


def test_a_foreign_file_of_that_name_is_not_overwritten(tmp_path: Path) -> None:
    (tmp_path / "review.csv").write_text("a,b\n1,2\n")
    with pytest.raises(InputError, match="slide_id"):
        Review(tmp_path).set("s1", Note("agree"))
    assert (tmp_path / "review.csv").read_text() == "a,b\n1,2\n"


@pytest.mark.parametrize("note", [Note("maybe"), Note("agree", "x" * (MOST_COMMENT + 1))])
def test_other_verdicts_and_endless_comments_are_refused(note: Note, tmp_path: Path) -> None:
    with pytest.raises(InputError):
        Review(tmp_path).set("s1", note)
    assert not (tmp_path / "review.csv").exists()
