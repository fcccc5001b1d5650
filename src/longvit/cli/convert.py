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
            help="A published .pth, .pt, .bin or .safetensors file. With --to dino: a model folder or that of "
            "`longvit pretrain`."
        ),
    ],
    out: Annotated[Path, Parameter(help="Folder for config.json and model.safetensors. With --to dino: a .pth file.")],
    /,
    *,
    to: Annotated[
        Literal["model", "dino"],
        Parameter(
            help="model: a model folder of ours. dino: a checkpoint as DINO's code writes it, for the authors' code."
        ),
    ] = "model",
    which: Annotated[
        Literal["teacher", "student"], Parameter(help="Of a DINO checkpoint that holds both networks.")
    ] = "teacher",
    num_heads: Annotated[
        int | None, Parameter(help="Attention heads, which the file does not tell. Default: 16, as in the papers.")
    ] = None,
    segment_lengths: Annotated[
        tuple[int, ...] | None,
        Parameter(
            consume_multiple=True,
            negative="",
            help="One per dilated ratio, as the model was trained. Default: by the paper's table 7.",
        ),
    ] = None,
    image_px: Annotated[
        int | None, Parameter(help="Side of the canvas that the model takes of a slide. Default: as it was trained.")
    ] = None,
    class_names: Annotated[
        tuple[str, ...],
        Parameter(consume_multiple=True, negative="", help="Names of the classes of its head.", show_default=False),
    ] = (),
) -> int:
    """A published checkpoint into a model folder, or the way back.

    Reads the authors' LongViT (pretrained or fine-tuned) and Prov-GigaPath's slide encoder. Every tensor must find its
    place and every parameter its tensor; nothing is left at random. Pickles are opened without running code from them.

    --to dino writes student, teacher, their heads and the centre of a pretraining, or the teacher's backbone alone of
    a model folder. The optimiser's moments stay where they are.

    **Examples**

    ```
    longvit convert longvit_small_dino.pth longvit-s
    longvit convert finetuned.pth brca --class-names IDC ILC
    longvit convert slide_encoder.pth gigapath --num-heads 16
    longvit convert runs/dino dino.pth --to dino
    ```
    """
    if to == "dino":
        given = {
            "--which": which != "teacher",
            "--num-heads": num_heads is not None,
            "--segment-lengths": segment_lengths is not None,
            "--image-px": image_px is not None,
            "--class-names": class_names,
        }
        return _to_dino(source, out, [option for option, is_given in given.items() if is_given])
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


def _to_dino(source: Path, out: Path, given: list[str]) -> int:
    from longvit.errors import InputError
    from longvit.pretraining.export_dino import publish

    if given:
        raise InputError(f"{', '.join(given)}: for reading a published checkpoint, not for --to dino")
    written = publish(source, out)
    parts = ["the teacher's backbone"]
    if written.student is not None:
        parts = ["student and teacher with their heads", f"centre, after {written.epoch} epochs"]
    echo(f"{', '.join(parts)}: {out}")
    return 0
