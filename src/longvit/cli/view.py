"""`longvit view RUN | predictions.csv | SLIDE…`"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from longvit.cli.options import Device, SlidesDir, echo
from longvit.errors import InputError


def view(
    sources: Annotated[
        tuple[Path, ...],
        Parameter(
            help="Folder of a run (train, predict, embed, benchmark, pretrain, demo), a predictions.csv, or slides: "
            "files, folders, globs in quotes, a CSV."
        ),
    ],
    /,
    *,
    slides_dir: SlidesDir = None,
    cohort: Annotated[
        Path | None,
        Parameter(help="CSV with the slides' paths, and case_id, site, label where known.", show_default=False),
    ] = None,
    model: Annotated[
        Path | None,
        Parameter(help="Model folder for heat maps of predictions or slides that name none.", show_default=False),
    ] = None,
    host: Annotated[
        str, Parameter(help="Interface to listen on; the default lets only this machine connect.")
    ] = "127.0.0.1",
    port: Annotated[int, Parameter(help="Port to listen on; 0 takes a free one.")] = 0,
    no_browser: Annotated[bool, Parameter(negative="", help="Print the address without opening a browser.")] = False,
    device: Device = "auto",
) -> int:
    """View slides in the browser: deep zoom, heat map, prediction, metadata, and notes; the worst errors come first.

    Works offline. Notes are kept in `review.csv` and heat maps in `view/`, both in the run's folder; nothing else is
    written. Runs until Ctrl-C. The address contains a token; who has it can see the slides.

    From another machine: `ssh -L 8000:127.0.0.1:8000 server`, there `longvit view RUN --port 8000 --no-browser`.

    **Examples**

    ```
    longvit view examples/CMU-1-Small-Region.svs
    longvit view runs/cv --slides-dir /data/slides
    longvit view predictions --model runs/first/model
    longvit view comparison --cohort cohort.csv
    longvit view runs/dino slides/
    longvit view runs/first --cohort cohort.csv --port 8000 --no-browser
    ```
    """
    from longvit.viewer.server import ViewServer
    from longvit.viewer.sources import load_items

    if not 0 <= port < 65536:
        raise InputError(f"--port {port}: a port is a number from 0 to 65535")
    items = load_items(sources, slides_dir=slides_dir, cohort=cohort, model=model, device=device)
    server = ViewServer(items, host, port)
    for note in items.notes:
        echo(note)
    if not server.is_loopback:
        echo(
            f"--host {host}: every machine that reaches this port can connect, over unencrypted HTTP. Only addresses "
            "with the token get an answer; give it to those who may see the slides."
        )
    count = f"{len(items.items):,} slide{'s' * (len(items.items) != 1)}"
    echo(f"{items.kind} {items.title}: {count}. Ctrl-C ends the viewer.")
    print(server.url, flush=True)
    if not no_browser:
        import webbrowser

        webbrowser.open(server.url)
    # In another thread: an interrupt among the objects of a request that this thread frees could be swallowed.
    serving = server.start()
    try:
        serving.join()
    except KeyboardInterrupt:
        server.close()
    return 0
