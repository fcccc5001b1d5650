"""Known truth of a synthetic slide: which squares are tumour, and how well a heat map finds the patches that count."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from longvit.errors import InputError, one_line
from longvit.files import atomic_path
from longvit.synthetic.settings import CLASSES

_TUMOUR = 255
_MAX_SQUARES = 4096


def write_truth(path: Path, is_tumour: NDArray[np.bool_]) -> None:
    """Writes the mask as a grey PNG with a pixel per square: 255 tumour, 0 healthy."""
    from PIL import Image

    with atomic_path(path) as temporary:
        Image.fromarray(is_tumour.astype(np.uint8) * _TUMOUR).save(temporary, format="PNG")


def read_truth(path: str | Path, rows: int | None = None, columns: int | None = None) -> NDArray[np.bool_]:
    """Mask of tumour, bool (rows, columns), from the PNG that `make_slides` writes; by default a value per square.

    With `rows` and `columns` (those of a model's patches) a value is that of the square at the patch's centre. Raises
    `InputError` for a file that is no such mask.
    """
    from PIL import Image

    try:
        with Image.open(path, formats=["PNG"]) as image:
            if image.mode != "L" or max(image.size) > _MAX_SQUARES:
                raise InputError(f"{path}: no mask of at most {_MAX_SQUARES} × {_MAX_SQUARES} squares in grey")
            mask = np.asarray(image) == _TUMOUR
    except InputError:
        raise
    except Exception as error:  # Pillow raises many kinds for a damaged file
        raise InputError(f"{path}: no mask of a synthetic slide ({one_line(error, 120)})") from error
    row = ((np.arange(rows or len(mask)) + 0.5) * len(mask) / (rows or len(mask))).astype(int)
    columns = columns or mask.shape[1]
    column = ((np.arange(columns) + 0.5) * mask.shape[1] / columns).astype(int)
    return mask[row[:, None], column]


def patch_truth(task: str, label: str, is_tumour: NDArray[np.bool_]) -> NDArray[np.bool_] | None:
    """Patches that count for the label of a slide; None where no patch counts more than another.

    For most labels it is the tumour, for "below" of task share the healthy tissue. For "none" of task any and for task
    arrangement there is nothing to find.
    """
    if label not in CLASSES[task]:
        raise InputError(f"task {task}: no class {label!r}, choose {', '.join(CLASSES[task])}")
    if task == "arrangement" or label == "none":
        return None
    return ~is_tumour if label == "below" else is_tumour


def heat_map_auc(heat: NDArray[np.floating], truth: NDArray[np.bool_]) -> float:
    """AUC of a heat map: the probability that a patch of the truth is hotter than another patch, 0 … 1.

    - `heat`: (rows, columns), for example `patch_contributions` for the label of the slide.
    - `truth`: (rows, columns), from `read_truth` and `patch_truth`.

    NaN where the truth has one value only. Raises `InputError` for arrays of different shapes.

    >>> import numpy as np
    >>> from longvit.synthetic import heat_map_auc
    >>> heat_map_auc(np.array([[0.1, 0.9], [0.2, 0.3]]), np.array([[False, True], [False, False]]))
    1.0
    """
    from longvit.metrics.classification import auc

    if heat.shape != truth.shape:
        raise InputError(f"a heat map of {heat.shape} patches, a truth of {truth.shape}")
    _, rank = np.unique(heat.ravel(), return_inverse=True)  # as a probability: only the order counts
    score = rank / max(1, rank.max(initial=0))
    return auc(truth.ravel().astype(int), np.stack([1 - score, score], 1))
