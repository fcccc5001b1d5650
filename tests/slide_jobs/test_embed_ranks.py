"""Embedding on several ranks gives the vectors of one process; a slide that one rank cannot read is left out by all."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from tests.annotations.made import feature, random_polygon, write_geojson
from tests.parallel.ranks import on_mesh

from longvit.data.problems import read_problems
from longvit.data.slide_list import ListedSlide, find_slides
from longvit.errors import InputError
from longvit.model.longvit import LongViT, create_model
from longvit.parallel import Ranks
from longvit.slide_jobs.embed import FOLDER, embed_slides, read_features
from longvit.slide_jobs.embed_ranks import embed_over_ranks
from longvit.slide_jobs.job import read_record
from longvit.slide_jobs.reading import ReadSettings


@pytest.fixture
def slides(tmp_path: Path) -> tuple[ListedSlide, ...]:
    """Five images of which one is cut off."""
    folder = tmp_path / "slides"
    folder.mkdir()
    for i in range(5):
        pixels = np.random.default_rng(i).integers(0, 256, (150, 110, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"s{i}.png")
    path = folder / "s3.png"
    path.write_bytes(path.read_bytes()[:3000])
    return find_slides([folder])


def model() -> LongViT:
    import torch

    torch.manual_seed(0)
    return create_model("longvit_tiny_patch32", image_px=160)


@pytest.mark.parametrize(("data", "sequence"), [(1, 3), (2, 2), (3, 1)])
def test_vectors_and_records_are_those_of_one_process(tmp_path: Path, slides: Any, data: int, sequence: int) -> None:
    alone = embed_slides(slides, tmp_path / "alone", model())
    results = on_mesh(data, sequence, _embed, slides, tmp_path / "ranks")
    for result in results:
        assert sorted(result.done) == ["s0", "s1", "s2", "s4"]
        assert [(p.slide, p.stage) for p in result.left_out] == [(p.slide, p.stage) for p in alone.left_out]
    assert read_problems(tmp_path / "ranks" / "problems.csv") == read_problems(tmp_path / "alone" / "problems.csv")
    tables = [(tmp_path / run / "embeddings.csv").read_text().splitlines() for run in ("alone", "ranks")]
    assert [line.split(",")[0] for line in tables[1]] == [line.split(",")[0] for line in tables[0]]
    for name in ("s0", "s1", "s2", "s4"):
        ours, theirs = (read_features(tmp_path / run / FOLDER / f"{name}.h5") for run in ("ranks", "alone"))
        assert np.abs(ours - theirs).max() < 1e-5
        assert read_record(tmp_path / "ranks" / FOLDER / f"{name}.json") == read_record(
            tmp_path / "alone" / FOLDER / f"{name}.json"
        )
    again = on_mesh(data, sequence, _embed, slides, tmp_path / "alone")  # finished by one process
    assert sorted(again[0].skipped) == ["s0", "s1", "s2", "s4"]


def test_annotations_limit_the_strip_of_every_rank(tmp_path: Path, slides: Any) -> None:
    rng = np.random.default_rng(0)
    for listed in slides[:2]:
        write_geojson(tmp_path / "r" / f"{listed.slide_id}.geojson", [feature(random_polygon(rng, 110, 150), "Tumor")])
    settings = ReadSettings(regions=tmp_path / "r", region_class=("Tumor",))
    alone = embed_slides(slides[:3], tmp_path / "alone", model(), settings)
    results = on_mesh(1, 2, _embed, slides[:3], tmp_path / "ranks", settings)
    plain = embed_slides(slides[:2], tmp_path / "plain", model())
    for result in results:
        assert result.done == alone.done == plain.done == ("s0", "s1")
        assert [(p.slide, p.stage, p.error) for p in result.left_out] == [
            (
                "s2",
                "open",
                f"{tmp_path / 'r' / 's2.geojson'}: no such file, nor .geojson.gz or .png: the slide has no annotations",
            )
        ]
    for name in ("s0", "s1"):
        ours, theirs, whole = (
            read_features(tmp_path / run / FOLDER / f"{name}.h5") for run in ("ranks", "alone", "plain")
        )
        assert np.abs(ours - theirs).max() < 1e-5 < np.abs(theirs - whole).max()
        records = [read_record(tmp_path / run / FOLDER / f"{name}.json") for run in ("ranks", "alone")]
        assert records[0] == records[1]
        assert records[0]["canvas"]["regions"]["classes"] == ["Tumor"]


def test_a_slide_that_one_rank_alone_cannot_read_is_left_out_by_all(tmp_path: Path, slides: Any) -> None:
    results = on_mesh(1, 2, _embed_with_a_bad_rank, slides[:2], tmp_path / "ranks")
    for result in results:
        assert result.done == ("s1",)
        assert [(p.slide, p.stage) for p in result.left_out] == [("s0", "read")]
        assert "the network is gone" in result.left_out[0].error


def test_more_ranks_than_rows_of_patches_are_refused(tmp_path: Path, slides: Any) -> None:
    assert (
        on_mesh(1, 6, _refusal, slides, tmp_path / "ranks")
        == ["--sequence-ranks 6: a canvas has only 5 rows of patches to share"] * 6
    )


def _embed(ranks: Ranks, slides: Any, folder: Path, settings: ReadSettings | None = None) -> Any:
    return embed_over_ranks(model(), slides, folder, ranks, settings or ReadSettings())


def _embed_with_a_bad_rank(ranks: Ranks, slides: Any, folder: Path) -> Any:
    from longvit.slide_jobs import embed_ranks

    if ranks.rank == 1:
        real = embed_ranks._StripReader.read

        def read(self: Any) -> Any:
            if self.request.path.name == "s0.png":
                raise embed_ranks.SlideFailedError("read", "the network is gone")
            return real(self)

        embed_ranks._StripReader.read = read  # type: ignore[method-assign]
    return _embed(ranks, slides, folder)


def _refusal(ranks: Ranks, slides: Any, folder: Path) -> str:
    try:
        _embed(ranks, slides, folder)
    except InputError as error:
        return str(error)
    return ""
