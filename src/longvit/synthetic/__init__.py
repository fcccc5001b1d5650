"""Synthetic slides with a known label: fields of tissue, laid out so that only composition or place tells the class.

fields = read_fields("fields/cohort.csv", tumour="adenocarcinoma")     # or drawn_fields()
cohort_csv = make_slides(match_colours(fields), "slides", SyntheticSettings(task="border", side_px=4096))
"""

from longvit.synthetic.colour import colour_controls, match_colours
from longvit.synthetic.fields import Field, drawn_fields, read_fields
from longvit.synthetic.settings import SyntheticSettings
from longvit.synthetic.slides import make_slides
from longvit.synthetic.truth import heat_map_auc, patch_truth, read_truth

__all__ = [
    "Field",
    "SyntheticSettings",
    "colour_controls",
    "drawn_fields",
    "heat_map_auc",
    "make_slides",
    "match_colours",
    "patch_truth",
    "read_fields",
    "read_truth",
]
