"""PNG of a heat map with a script that lays it over the slide in QuPath.

<slide>.heat.png       RGBA, one pixel per patch; the opacity grows with the absolute score
<slide>.heat.groovy    run it in QuPath (Automate > Script editor) with the slide open
"""

from __future__ import annotations

import io
import json
from pathlib import Path

from longvit.files import printable, write_bytes, write_text
from longvit.heatmaps.colours import transparent
from longvit.heatmaps.heat_map import HeatMap

_SCRIPT = """\
// Lays the heat map of {slide} over the open slide: {measurement}
import javax.imageio.ImageIO
import javafx.application.Platform
import qupath.lib.gui.viewer.overlays.BufferedImageOverlay
import qupath.lib.regions.ImageRegion
def png = new File({path})  // edit it where the file was moved
def server = getCurrentServer(), viewer = getCurrentViewer()
def whole = ImageRegion.createInstance(0, 0, server.getWidth(), server.getHeight(), 0, 0)
def overlay = new BufferedImageOverlay(viewer.getOverlayOptions(), whole, ImageIO.read(png))
Platform.runLater {{ viewer.getCustomOverlayLayers().setAll(overlay) }}
println('Overlay: ' + png.getName() + '; remove it with viewer.getCustomOverlayLayers().clear()')
"""


def write_png(heat_map: HeatMap, path: str | Path) -> None:
    """Writes the PNG atomically."""
    from PIL import Image

    content = io.BytesIO()
    Image.fromarray(transparent(heat_map)).save(content, "PNG")
    write_bytes(path, content.getbuffer())


def write_groovy(heat_map: HeatMap, path: str | Path, png: str | Path) -> None:
    """Writes the script for QuPath atomically; it names the PNG by its absolute path."""
    text = _SCRIPT.format(
        slide=_comment(heat_map.slide_id), measurement=_comment(heat_map.measurement), path=_groovy(str(png))
    )
    write_text(path, text)


def _comment(text: str) -> str:
    return " ".join(printable(text).split())


def _groovy(path: str) -> str:
    """A Groovy string: JSON's escapes, and $, which would begin an expression."""
    return json.dumps(str(Path(path).absolute())).replace("$", "\\$")
