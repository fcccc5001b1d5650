"""Sphinx settings of the documentation site: `make docs` builds docs/_build/index.html, without any other host."""

from __future__ import annotations

import sys
from pathlib import Path

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE / "_ext"), str(HERE.parent / "src")]

from longvit import __version__  # noqa: E402

project = "longvit"
author = "LongViT developers"
copyright = "LongViT developers, MIT licence"
version = release = __version__

# The extensions of docs/_ext write the pages of commands and of the Python API, and the menu from index.md.
extensions = [
    *("myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"),
    *("menu", "notebook_page", "root_pages", "command_pages", "api_pages"),
]
exclude_patterns = ["_build", "_ext", "_scripts"]
source_suffix = {".md": "markdown"}

myst_heading_anchors = 4  # links to headings are those of a Git host
myst_enable_extensions = ["colon_fence"]

smartquotes = False  # --option stays as it is
highlight_language = "none"
napoleon_use_ivar = True
default_role = "code"  # a single backtick in a docstring
autodoc_member_order = "bysource"
autodoc_preserve_defaults = True  # note=_log.warning, not the function's address
autodoc_typehints_format = "short"
autodoc_class_signature = "mixed"
python_use_unqualified_type_names = True
nitpicky = True
INTERNAL = (
    "Opened|MppSearch|Kind|CanvasSource|OmicTable|SystemSpec|DilatedPattern|PatchGrid|TrainSettings|"
    "BagCohort|FoldSplit|ViewServer"
)
nitpick_ignore_regex = [
    (r"py:.*", r"(?!longvit).*"),  # types of other packages have no page here, and none is fetched
    (r"py:.*", rf"longvit\..*\.({INTERNAL})"),  # parameters of constructors that users do not call
]

html_theme = "furo"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_title = f"longvit {release}"
html_copy_source = False
html_show_sourcelink = False
html_theme_options = {"navigation_with_keys": True}
