"""Viewer in a notebook: an inline frame over a server in this process."""

from __future__ import annotations

from pathlib import Path

from longvit.viewer.server import ViewServer
from longvit.viewer.sources import load_items


class View:
    """Viewer that runs in this process; a notebook shows it as a frame. `close` ends it.

    >>> import longvit
    >>> shown = longvit.view("examples/CMU-1-Small-Region.svs")
    >>> shown.url.startswith("http://127.0.0.1:")
    True
    >>> shown.close()
    """

    def __init__(self, server: ViewServer, height_px: int) -> None:
        self._server, self._height_px = server, height_px
        self._server.start()

    @property
    def url(self) -> str:
        """Address of the page, with its token."""
        return self._server.url

    def close(self) -> None:
        """Ends the server and closes its slides."""
        self._server.close()

    def __repr__(self) -> str:
        return f"View({self.url!r})"

    def _repr_html_(self) -> str:
        return (
            f'<iframe src="{self.url}" width="100%" height="{self._height_px}" style="border:0" '
            f'title="longvit view"></iframe>'
        )


def view(
    source: str | Path,
    *more_slides: str | Path,
    slides_dir: str | Path | None = None,
    cohort: str | Path | None = None,
    model: str | Path | None = None,
    device: str = "auto",
    port: int = 0,
    height_px: int = 720,
) -> View:
    """Viewer of a run, a predictions.csv or slides, shown as a frame by a notebook.

    The browser must reach this machine's 127.0.0.1 at `port` (0: any free one), if need be through `ssh -L`. The
    options are those of `longvit view`. Raises `InputError` for a source that is none of these.

    >>> import longvit
    >>> shown = longvit.view("examples/CMU-1-Small-Region.svs")
    >>> shown.url.startswith("http://127.0.0.1:")
    True
    >>> shown.close()
    """

    def path(value: str | Path | None) -> Path | None:
        return None if value is None else Path(value)

    items = load_items(
        [Path(source), *map(Path, more_slides)],
        slides_dir=path(slides_dir),
        cohort=path(cohort),
        model=path(model),
        device=device,
    )
    return View(ViewServer(items, port=port, in_frame=True), height_px)
