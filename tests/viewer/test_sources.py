"""Every kind of run loads, with its predictions, errors, slides and heat maps; anything else is one line."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.small_slides import write_model, write_slide
from tests.viewer.runs import finetuned, stored

from longvit.errors import InputError
from longvit.viewer.content import ViewContent
from longvit.viewer.items import ViewItems
from longvit.viewer.sources import load_items


def heat(content: ViewContent, number: int, prediction: int = 0) -> dict[str, Any]:
    end = time.monotonic() + 60
    while (state := content.heat(number, prediction, start=True))["state"] == "waiting":
        assert time.monotonic() < end
        time.sleep(0.01)
    return state


def item_numbers(items: ViewItems) -> dict[str, int]:
    return {item.slide_id: number for number, item in enumerate(items.items)}


def test_a_fine_tuning_has_the_slides_by_error_and_contributions_that_add_up(tmp_path: Path) -> None:
    run = finetuned(tmp_path)
    (run / "problems.csv").write_text("slide,stage,error\nlost,open,lost.svs: no TIFF\ns1,tiles,2 unreadable tiles\n")
    items = load_items([run], slides_dir=tmp_path / "slides", device="cpu")
    assert items.kind == "fine-tuning"
    numbers = item_numbers(items)
    assert list(numbers) == ["s0", "s1", "s2", "s3", "lost"]
    assert items.items[numbers["s2"]].predictions[0].is_wrong
    assert items.items[numbers["s2"]].error == pytest.approx(0.9)
    assert "no TIFF" in items.items[numbers["lost"]].problem
    assert "unreadable" in items.items[numbers["s1"]].problem
    content = ViewContent(items)
    state = heat(content, numbers["s2"])
    assert [layer["name"] for layer in state["layers"]] == ["benign", "tumour"]
    from longvit.interpret import class_contributions
    from longvit.model.longvit import LongViT
    from longvit.slides.reader import open_slide

    model = LongViT.from_pretrained(run / "model")
    with open_slide(tmp_path / "slides" / "s2.tif") as slide:
        expected = class_contributions(model, slide.canvas(64), 1)
    stored_map = content.heats.ready(numbers["s2"], 0, state["key"])
    assert stored_map is not None
    np.testing.assert_array_equal(stored_map.per_patch[1], expected.per_patch)  # type: ignore[attr-defined]
    reply = content.patch(numbers["s2"], 0, state["key"], 1, "top", 0)
    assert reply.body.startswith(b"\xff\xd8")
    content.close()


def test_a_heat_map_is_kept_in_the_runs_folder_and_read_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = finetuned(tmp_path, 1)
    before = {path for path in tmp_path.rglob("*") if path.is_file()}
    content = ViewContent(load_items([run], slides_dir=tmp_path / "slides", device="cpu"))
    first = heat(content, 0)
    content.close()
    written = [path for path in tmp_path.rglob("*") if path.is_file() and path not in before]
    assert [path.parent for path in written] == [run / "view"]
    monkeypatch.setattr("longvit.viewer.model_heat.contributions_heat", None)
    content = ViewContent(load_items([run], slides_dir=tmp_path / "slides", device="cpu"))
    assert heat(content, 0) == first
    content.close()


def test_a_run_without_slide_files_shows_its_canvases(tmp_path: Path) -> None:
    from longvit.slides.canvas import write_canvas
    from longvit.slides.reader import open_slide

    run = finetuned(tmp_path)
    with open_slide(tmp_path / "slides" / "s0.tif") as slide:
        write_canvas(slide.canvas(64), run / "canvases" / "s0_64px_stretch_0123456789abcdef.tif")
    items = load_items([run], device="cpu")
    assert items.items[0].is_canvas
    assert items.items[1].path is None
    assert items.notes
    content = ViewContent(items)
    assert content.slide(0)["width"] == 64
    assert heat(content, 0)["state"] == "ready"
    assert "no file of this slide" in content.slide(1)["problem"]
    assert heat(content, 1)["state"] == "failed"
    content.close()


def test_a_cross_validation_has_the_model_of_the_fold_and_a_tab_for_each_fold_of_a_slide(tmp_path: Path) -> None:
    for fold in "01":
        write_model(tmp_path / "cv" / f"fold_{fold}" / "model", seed=int(fold))
    write_slide(tmp_path / "slides" / "a.tif")
    (tmp_path / "cv" / "crossval.json").write_text("{}")
    (tmp_path / "cv" / "predictions.csv").write_text(
        "fold,case_id,slide_id,split,label,prob_benign,prob_tumour,prediction\n"
        "0,P,a,test,benign,0.7,0.3,benign\n1,P,a,test,benign,0.2,0.8,tumour\n1,Q,b,test,tumour,0.4,0.6,tumour\n"
    )
    items = load_items([tmp_path / "cv"], slides_dir=tmp_path / "slides", device="cpu")
    first, second = items.items
    assert [p.tab for p in first.predictions] == ["fold 0", "fold 1"]
    assert [p.tab for p in second.predictions] == [""]
    content = ViewContent(items)
    maps = [content.heats.ready(0, i, heat(content, 0, i)["key"]) for i in range(2)]
    assert not np.array_equal(maps[0].per_patch, maps[1].per_patch)  # type: ignore[union-attr]
    assert content.overview()["items"][0]["wrong"] == 1
    content.close()


def test_stored_runs_of_every_kind_load(tmp_path: Path) -> None:
    folder = stored(tmp_path, "crossval", "predict", "embed", "benchmark", "pretrain", "finetune", "finished")
    slides, cohort = folder / "inputs" / "slides", folder / "inputs" / "cohort.csv"
    kinds = {
        "crossval/whole/crossval": "cross-validation",
        "predict/whole/predict": "predictions",
        "embed/whole/embed": "embeddings",
        "benchmark/whole/benchmark": "comparison",
        "pretrain/whole/pretrain": "pretraining",
        "finetune/whole/finetune": "fine-tuning",
        "finished/whole/finished": "fine-tuning",
    }
    for path, kind in kinds.items():
        items = load_items([folder / path], slides_dir=slides, cohort=cohort, device="cpu")
        assert items.kind == kind
        content = ViewContent(items)
        assert json.dumps(content.overview())
        for number in range(len(items.items)):
            assert "problem" not in content.slide(number)
            assert content.thumbnail(number).body
        if items.items[0].predictions and items.items[0].predictions[0].heat:
            assert heat(content, 0)["state"] == "ready"
        content.close()


def test_a_survival_run_has_risk_curve_outcome_and_the_discordant_patients_first(tmp_path: Path) -> None:
    folder = stored(tmp_path, "finished") / "finished" / "whole" / "finished"
    items = load_items([folder], slides_dir=tmp_path / "inputs" / "slides", device="cpu")
    for item in items.items:
        (prediction,) = item.predictions
        assert prediction.risk is not None
        assert len(prediction.curve) == 1
        assert "event" in item.label
    assert max(item.error for item in items.items) > 0
    content = ViewContent(items)
    layers = heat(content, 0)["layers"]
    assert len(layers) == 2
    assert "log-odds of an event" in layers[0]["meaning"]
    content.close()


def test_embeddings_have_the_nearest_slides_by_cosine_similarity(tmp_path: Path) -> None:
    vectors = np.random.default_rng(0).normal(size=(20, 6))
    lines = ["slide_id,path," + ",".join(f"f{i}" for i in range(6))]
    lines += [f"s{i},," + ",".join(map(repr, row.tolist())) for i, row in enumerate(vectors)]
    (tmp_path / "embeddings.csv").write_text("\n".join(lines))
    items = load_items([tmp_path])
    for i, item in enumerate(items.items):
        cosines = [v @ vectors[i] / np.linalg.norm(v) / np.linalg.norm(vectors[i]) for v in vectors]
        expected = sorted((j for j in range(20) if j != i), key=lambda j: -cosines[j])[:12]
        assert [n for n, _ in item.neighbours] == expected
        np.testing.assert_allclose([s for _, s in item.neighbours], [cosines[j] for j in expected])


def test_a_comparison_has_a_tab_for_each_system_and_its_stored_scores(tmp_path: Path) -> None:
    from longvit.comparison.tile_scores import read_attention

    folder = stored(tmp_path, "benchmark") / "benchmark" / "whole" / "benchmark"
    cohort = tmp_path / "inputs" / "cohort.csv"
    items = load_items([folder], slides_dir=tmp_path / "inputs" / "slides", cohort=cohort)
    item = next(item for item in items.items if item.slide_id == "s00")
    assert [p.tab for p in item.predictions] == ["mean pooling", "Attention MIL"]
    assert item.label == "benign"
    assert item.predictions[0].heat is None
    content = ViewContent(items)
    number = item_numbers(items)["s00"]
    state = heat(content, number, 1)
    scores = next(
        found["s00"]
        for fold in (0, 1)
        if "s00" in (found := read_attention(folder / "attention_mil" / f"fold_{fold}" / "attention.h5"))
    )
    assert state["layers"][0]["top"][0][4] == pytest.approx(float(scores.scores.max()), rel=1e-3)
    content.close()


def test_a_pretraining_run_shows_patches_as_colours_on_the_slides_that_are_named(tmp_path: Path) -> None:
    folder = stored(tmp_path, "pretrain") / "pretrain" / "whole" / "pretrain"
    with pytest.raises(InputError, match="name them"):
        load_items([folder])
    items = load_items([folder, tmp_path / "inputs" / "slides"], device="cpu")
    content = ViewContent(items)
    state = heat(content, 0)
    assert state["layers"][0]["is_colours"]
    assert "variance" in state["layers"][0]["meaning"]
    content.close()


def test_plain_slides_have_no_notes_and_write_nothing(tmp_path: Path) -> None:
    write_slide(tmp_path / "a.tif")
    content = ViewContent(load_items([tmp_path / "a.tif"]))
    assert not content.overview()["has_review"]
    assert content.slide(0)["mpp"] == [0.5, 0.5]
    with pytest.raises(InputError, match="folder of a run"):
        content.set_note(0, "agree", "")
    content.close()
    assert [path.name for path in tmp_path.iterdir()] == ["a.tif"]


def test_a_table_of_predictions_from_elsewhere_keeps_the_spelling_of_its_classes(tmp_path: Path) -> None:
    table = tmp_path / "mine.csv"
    table.write_text("Slide ID;Label;prob_IDC;prob_not IDC\na;IDC;0.2;0.8\nb;not IDC;0.1;0.9\n")
    items = load_items([table])
    assert dict(items.items[0].predictions[0].probabilities) == {"IDC": 0.2, "not IDC": 0.8}
    assert [item.predictions[0].is_wrong for item in items.items] == [True, False]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("slide_id,prob_a,prob_b\ns,0.1,x\n", "line 2: prob_b is 'x'"),
        ("slide_id,prob_a\ns,nan\n", "line 2"),
        ("name,prob_a\ns,1\n", "slide_id"),
        ("slide_id,prob_a,prob_b\ns,0.1\n", "line 2"),
        ("slide_id,risk,survival_months,event\ns,1,x,1\n", "line 2: survival_months"),
    ],
)
def test_a_broken_table_is_one_line_with_its_place(text: str, words: str, tmp_path: Path) -> None:
    (tmp_path / "p.csv").write_text(text)
    with pytest.raises(InputError, match=words):
        load_items([tmp_path / "p.csv"])


def test_a_slide_without_an_outcome_has_no_error(tmp_path: Path) -> None:
    (tmp_path / "p.csv").write_text("slide_id,risk,survival_months,event\na,1,9,1\nb,2,30,0\nc,3,,\n")
    items = load_items([tmp_path / "p.csv"])
    assert [item.error for item in items.items] == pytest.approx([1, 1, 0])


def test_values_that_are_not_finite_are_one_line(tmp_path: Path) -> None:
    (tmp_path / "embeddings.csv").write_text("slide_id,path,f0\na,,nan\nb,,1\n")
    with pytest.raises(InputError, match="not finite"):
        load_items([tmp_path])


def test_an_unfinished_run_two_runs_and_nothing_are_one_line(tmp_path: Path) -> None:
    run = finetuned(tmp_path, 1)
    with pytest.raises(InputError, match="one run at a time"):
        load_items([run, run])
    (run / "metrics.json").unlink()
    (run / "predictions.csv").unlink()
    (run / "run.json").write_text("{}")
    with pytest.raises(InputError, match="not finished"):
        load_items([run])
    with pytest.raises(InputError, match="no slides"):
        load_items([tmp_path / "run" / "model"])
    with pytest.raises(InputError):
        load_items([tmp_path / "none.svs"])


def test_a_read_only_run_is_viewed_and_its_notes_are_refused_in_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = finetuned(tmp_path, 1)

    def fail(*_: object, **__: object) -> None:
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr("pathlib.Path.mkdir", fail)
    monkeypatch.setattr("pathlib.Path.write_bytes", fail)
    content = ViewContent(load_items([run], slides_dir=tmp_path / "slides", device="cpu"))
    assert heat(content, 0)["state"] == "ready"
    with pytest.raises(InputError, match="read-only"):
        content.set_note(0, "agree", "")
    content.close()
