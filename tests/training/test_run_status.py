"""`longvit status` on the folders of trainings."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from longvit.cli.status import status
from longvit.errors import InputError
from longvit.training.run_folder import exclusive_lock
from longvit.training.run_status import training_status


def run(folder: Path, *, epochs: int = 4, done: int = 2, metrics: dict[str, object] | None = None) -> Path:
    """Folder of a training with `done` finished epochs."""
    folder.mkdir(parents=True)
    (folder / "run.json").write_text(json.dumps({"epochs": epochs}))
    rows = [f"{epoch},{10 * epoch},{1 / epoch},\n" for epoch in range(1, done + 1)]
    if rows:
        (folder / "history.csv").write_text("epoch,step,train_loss,test_auc\n" + "".join(rows))
    if metrics is not None:
        (folder / "metrics.json").write_text(json.dumps(metrics))
    return folder


def test_a_training_is_named_by_its_state_epochs_and_last_metrics(tmp_path: Path) -> None:
    run(tmp_path / "fold_0", metrics={"test_auc": 0.9})
    run(tmp_path / "fold_1")
    run(tmp_path / "fold_2", done=0)
    first, second, third = training_status(tmp_path)
    assert (first.run, first.state, first.epoch, first.epochs) == ("fold_0", "finished", 2, 4)
    assert first.metrics == {"train_loss": 0.5}
    assert (second.run, second.state) == ("fold_1", "stopped")
    assert (third.state, third.epoch, third.metrics) == ("stopped", 0, {})


def test_a_training_that_holds_its_lock_is_running_although_an_earlier_report_is_there(tmp_path: Path) -> None:
    folder = run(tmp_path / "dino", metrics={"finished": False})
    assert training_status(folder)[0].state == "stopped"
    with exclusive_lock(folder):
        assert training_status(folder)[0].state == "running"
    assert training_status(folder)[0].state == "stopped"


def test_status_of_a_training_does_not_hold_up_the_next_start(tmp_path: Path) -> None:
    folder = run(tmp_path / "first")
    training_status(folder)
    with exclusive_lock(folder):
        pass


@pytest.mark.parametrize(("metrics", "code"), [({"auc": 1}, 0), (None, 4)])
def test_the_exit_code_tells_finished_from_stopped(
    tmp_path: Path, metrics: dict[str, object] | None, code: int, capsys: pytest.CaptureFixture[str]
) -> None:
    run(tmp_path / "first", metrics=metrics)
    assert status(tmp_path / "first") == code
    assert ("rerun the command" in capsys.readouterr().out) == (code == 4)
    status(tmp_path / "first", as_json=True)
    assert json.loads(capsys.readouterr().out)[0]["epoch"] == 2


def test_a_damaged_run_json_is_one_line(tmp_path: Path) -> None:
    (run(tmp_path / "first") / "run.json").write_text("{")
    with pytest.raises(InputError, match=r"run\.json: damaged"):
        training_status(tmp_path)
