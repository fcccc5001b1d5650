"""`longvit convert CHECKPOINT OUT`"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from cyclopts import Parameter

from longvit.cli.options import say


def convert(
    checkpoint: Annotated[Path, Parameter(help="A published .pth, .pt, .bin or .safetensors file.")],
    out: Annotated[Path, Parameter(help="Folder for config.json and model.safetensors.")],
    /,
    *,
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
    """A published checkpoint into a model folder.

    Reads the authors' LongViT (pretrained or fine-tuned) and Prov-GigaPath's slide encoder. Every tensor must find its
    place and every parameter its tensor; nothing is left at random. Pickles are opened without running code from them.

    **Examples**

    ```
    longvit convert longvit_small_dino.pth longvit-s
    longvit convert finetuned.pth brca --class-names IDC ILC
    longvit convert slide_encoder.pth gigapath --num-heads 16
    ```
    """
    from longvit.files import make_folder
    from longvit.model.pretrained import convert as read_checkpoint
    from longvit.model.pretrained import save_pretrained

    make_folder(out)
    model = read_checkpoint(
        checkpoint,
        which=which,
        num_heads=num_heads,
        segment_lengths=segment_lengths,
        image_px=image_px,
        class_names=class_names,
    )
    folder = save_pretrained(model, out)
    parameters = sum(p.numel() for p in model.parameters())
    say(f"{type(model).__name__} with {parameters / 1e6:.1f} million parameters: {folder}")
    return 0
