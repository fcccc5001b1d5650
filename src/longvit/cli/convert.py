"""`longvit convert SOURCE OUT`"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from cyclopts import Parameter

from longvit.cli.options import echo


def convert(
    source: Annotated[
        Path,
        Parameter(
            help="A published .pth, .pt, .bin or .safetensors file. With --to dino: a model folder, or the folder of a "
            "`longvit pretrain` run."
        ),
    ],
    out: Annotated[Path, Parameter(help="Folder for config.json and model.safetensors. With --to dino: a .pth file.")],
    /,
    *,
    to: Annotated[
        Literal["model", "dino"],
        Parameter(help="model: a longvit model folder. dino: a checkpoint in DINO's layout, for the authors' code."),
    ] = "model",
    which: Annotated[
        Literal["teacher", "student"], Parameter(help="Network to read from a DINO checkpoint that holds both.")
    ] = "teacher",
    num_heads: Annotated[
        int | None, Parameter(help="Attention heads, which the file does not state. Default: 16, as in the papers.")
    ] = None,
    segment_lengths: Annotated[
        tuple[int, ...] | None,
        Parameter(
            consume_multiple=True,
            negative="",
            help="Segment lengths of the training, one per dilated ratio. Default: the paper's table 7.",
        ),
    ] = None,
    image_px: Annotated[
        int | None, Parameter(help="Side of the canvas that the model makes of a slide. Default: that of the training.")
    ] = None,
    class_names: Annotated[
        tuple[str, ...],
        Parameter(consume_multiple=True, negative="", help="Class names of the head.", show_default=False),
    ] = (),
) -> int:
    """Convert a published checkpoint to a model folder, or a longvit model to a DINO checkpoint.

    Reads the authors' LongViT (pretrained or fine-tuned) and Prov-GigaPath's slide encoder. Every tensor must match a
    parameter and every parameter a tensor; no weight stays random. Pickles are read without running code from them.

    --to dino writes student, teacher, their heads and the centre of a pretraining run. Of a model folder, it writes
    the teacher's backbone only. The optimiser's moments are not converted.

    **Examples**

    ```
    longvit convert longvit_small_dino.pth longvit-s
    longvit convert finetuned.pth brca --class-names IDC ILC
    longvit convert slide_encoder.pth gigapath --num-heads 16
    longvit convert runs/dino dino.pth --to dino
    ```
    """
    if to == "dino":
        options = {
            "--which": which != "teacher",
            "--num-heads": num_heads is not None,
            "--segment-lengths": segment_lengths is not None,
            "--image-px": image_px is not None,
            "--class-names": class_names,
        }
        return _to_dino(source, out, [option for option, is_given in options.items() if is_given])
    from longvit.files import make_folder
    from longvit.model.pretrained import convert as read_checkpoint
    from longvit.model.pretrained import save_pretrained

    make_folder(out)
    model = read_checkpoint(
        source,
        which=which,
        num_heads=num_heads,
        segment_lengths=segment_lengths,
        image_px=image_px,
        class_names=class_names,
    )
    folder = save_pretrained(model, out)
    parameters = sum(p.numel() for p in model.parameters())
    echo(f"{type(model).__name__} with {parameters / 1e6:.1f} million parameters: {folder}")
    return 0


def _to_dino(source: Path, out: Path, given_options: list[str]) -> int:
    from longvit.errors import InputError
    from longvit.pretraining.export_dino import publish

    if given_options:
        raise InputError(f"{', '.join(given_options)}: for reading a published checkpoint, not for --to dino")
    written = publish(source, out)
    parts = ["the teacher's backbone"]
    if written.student is not None:
        parts = ["student and teacher with their heads", f"centre, after {written.epoch} epochs"]
    echo(f"{', '.join(parts)}: {out}")
    return 0
