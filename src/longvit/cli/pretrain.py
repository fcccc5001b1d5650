"""`longvit pretrain SLIDES`"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from longvit.cli.options import SETTINGS, Recipe, Slides, SlidesDir, echo, listed_slides
from longvit.pretraining.settings import PretrainSettings


def pretrain(
    slides: Slides,
    /,
    *,
    out: Annotated[Path, Parameter(help="Folder of the run.")] = Path("pretrained"),
    recipe: Recipe = None,
    probe: Annotated[
        Path | None,
        Parameter(
            help="CSV of labelled regions (columns path, label and, if a patient has several, case_id): they monitor "
            "the run by probes and are never trained on.",
            show_default=False,
        ),
    ] = None,
    slides_dir: SlidesDir = None,
    settings: Annotated[PretrainSettings, Parameter(name="*", group=SETTINGS)] = PretrainSettings(),
) -> int:
    """Pretrain a LongViT on random regions of slides, without labels (DINO).

    Regions are read from the slides at 0.5 µm per pixel, at any resolution of the slides. Writes `OUT/teacher`, from
    which `longvit train --weights OUT/teacher` starts, and `OUT/index.html`, which is updated during the run: open it
    in a browser. Run the same command again to resume an interrupted run. A slide that cannot be used becomes a row of
    `problems.csv` and exit code 1; the run continues.

    **Examples**

    ```
    longvit pretrain slides/ --recipe dino-longvit-s-1024 --out runs/dino
    longvit pretrain slides/ --recipe dino-tiny --probe labelled.csv --out runs/try
    longvit pretrain tiles/ --ignore-mpp --recipe dino-tiny
    longvit pretrain slides/ --recipe dino-tiny --regions annotations/ --exclude-class Artefact
    torchrun --nproc-per-node 8 -m longvit pretrain slides/ --recipe dino-longvit-s-1024 --dtype bfloat16
    ```
    """
    from longvit.cli.train import ranks_or_none
    from longvit.device import pick_device
    from longvit.pretraining.run import pretrain as run
    from longvit.report.pretraining import pretrain_report

    pick_device(settings.device)  # before any slide is read
    listed = listed_slides(slides, slides_dir, out)
    with ranks_or_none(settings.sequence_ranks, settings.device) as ranks:
        result = run(listed, out, settings, probe=probe, ranks=ranks, show=pretrain_report)
        if ranks is not None and not ranks.is_first:
            return 0
    if result.was_finished:
        echo(f"{out}: finished before with these settings; nothing was computed")
        pretrain_report(out)
    print(result.summary())
    print(f"report: {out / 'index.html'}")
    if result.metrics["left_out"]:
        echo(f"{len(result.metrics['left_out'])} slides were left out, see {out / 'problems.csv'}")
        return 1
    return 0
