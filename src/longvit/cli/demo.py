"""`longvit demo`"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from longvit.cli.options import Device, echo


def demo(
    *,
    out: Annotated[Path, Parameter(help="Folder of the demo.")] = Path("demo"),
    slide: Annotated[
        Path | None,
        Parameter(
            help="Slide to use instead of the example; at least 1.2 mm wide, with a known resolution.",
            show_default=False,
        ),
    ] = None,
    public: Annotated[
        bool,
        Parameter(
            negative="",
            help="Fetch a whole slide of 36 MB from the Imaging Data Commons and use it instead (longvit[public], a "
            "network).",
        ),
    ] = False,
    device: Device = "auto",
) -> int:
    """Run the whole pipeline on the example slide, with a report, in two minutes.

    Cuts regions out of a real slide and puts a square of each copy out of focus. Fine-tunes a tiny LongViT on the left
    part to tell the two apart, and tests it on the right part. Plots its heat map beside the known squares. Open
    `OUT/index.html` afterwards.

    **Examples**

    ```
    longvit demo
    longvit demo --out /tmp/demo --slide my.svs
    longvit demo --public --out demo-public
    ```
    """
    from longvit.demo import run_demo

    if public:
        from longvit.errors import InputError
        from longvit.public.demo_slide import fetch_demo_slide

        if slide is not None:
            raise InputError(f"--slide {slide} and --public: two slides; give one")
        slide, citation = fetch_demo_slide(out / "public")
        echo(f"cite: {citation}")
    outcome = run_demo(out, slide=slide, device=device)
    print(outcome.summary())
    print(f"report: {outcome.report}")
    return 0
