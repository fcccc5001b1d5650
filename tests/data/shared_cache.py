"""A process that fills a shared cache: python shared_cache.py SLIDES CACHE LOG SECONDS [STOP_AFTER].

Every canvas that it makes takes SECONDS and leaves a line in LOG; in the STOP_AFTER-th one it waits to be killed.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Any

from longvit.data.cohort import SlideRow


def rows_of(folder: Path) -> list[SlideRow]:
    return [SlideRow(path.stem, path.stem, "x", path) for path in sorted(folder.glob("*.png"))]


def main(slides: Path, cache: Path, log: Path, seconds: float, stop_after: int) -> None:
    from longvit.data.canvas_cache import CanvasSettings, cache_canvases
    from longvit.slides.reader import Slide

    real = Slide.canvas
    made = []

    def canvas(slide: Slide, *args: Any, **kwargs: Any) -> Any:
        made.append(slide.path.stem)
        with log.open("a") as file:
            file.write(slide.path.stem + "\n")
        time.sleep(600 if len(made) == stop_after else seconds)
        return real(slide, *args, **kwargs)

    Slide.canvas = canvas  # type: ignore[method-assign]
    result = cache_canvases(rows_of(slides), CanvasSettings(64), cache, workers=1)
    assert not result.problems
    assert len(result.paths) == len(rows_of(slides))
    assert result.made == len(made)


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:4]), float(sys.argv[4]), int(sys.argv[5]) if sys.argv[5:] else 0)
