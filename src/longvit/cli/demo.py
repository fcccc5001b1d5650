"""`longvit demo`"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter


def demo(
    *,
    out: Annotated[Path, Parameter(help="Folder of the demo.")] = Path("demo"),
    slide: Annotated[
        Path | None,
        Parameter(
            help="Another slide than the example, at least 1.2 mm wide, with a known resolution.", show_default=False
        ),
    ] = None,
    device: Annotated[str, Parameter(help="auto, cpu, cuda (or cuda:1) or mps.")] = "auto",
) -> int:
    """The whole job on the example slide, with a report, in three minutes.

    Cuts 64 regions out of a real slide, labels them by their haematoxylin content (a stand-in that needs no
    pathologist), fine-tunes a tiny LongViT on the left part, tests on the right part, and draws what each patch of the
    whole slide contributes. Open `OUT/index.html` afterwards.

    **Examples**

    ```
    longvit demo
    longvit demo --out /tmp/demo --slide my.svs
    ```
    """
    from longvit.demo import run_demo

    outcome = run_demo(out, slide=slide, device=device)
    print(outcome.summary())
    print(f"report: {outcome.report}")
    return 0
