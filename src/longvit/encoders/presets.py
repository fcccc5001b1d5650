"""Table of published tile encoders: network, pooling, normalisation, tiles, licence and source of each.

A new encoder is one row of `PRESETS`. The networks are timm's, with the arguments of the model cards. `tokens` and
`parameters_m` are checked in the tests, so a wrong argument is found without weights.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from longvit.errors import InputError

Pooling = Literal["cls", "cls+mean", "attention", "average"]
Names = Literal["timm", "transformers", "conch", "conch_v1_5"]

IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
CLIP = ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711))
HALF = ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
BIOPTIMUS = ((0.707223, 0.578729, 0.703617), (0.211883, 0.230117, 0.177517))
LUNIT = ((0.70322989, 0.53606487, 0.66096631), (0.21716536, 0.26081574, 0.20723464))
_BIN, _SAFE = "pytorch_model.bin", "model.safetensors"
_SWIGLU = 2 * 2.66667
_ANY_20X_TO_5X = (0.5, 0.25, 1.0, 2.0)


@dataclass(frozen=True)
class Preset:
    """Published tile encoder: all that is needed to build it, to feed it and to cite it."""

    name: str
    title: str
    hub: str
    """Repository on the Hugging Face hub, owner/name; its page states the licence."""
    files: tuple[str, ...]
    """Names of the file of weights in the repository; the first that is there is used."""
    network: str
    """Name of the network in timm."""
    dim: int
    """Width of the vector of a tile."""
    pooling: Pooling
    """Vector of a tile: the class token; class token and mean patch token; attention pooling; average of the map."""
    parameters_m: float
    """Millions of parameters, with the pooling."""
    licence: str
    gated: bool
    """True where the hub gives the weights only to accounts that accepted the licence."""
    citation: str
    tokens: int = 0
    """Tokens of the network's output; 0: a map of a convolutional network."""
    prefix_tokens: int = 1
    """Tokens before those of the patches: class token and registers."""
    arguments: Mapping[str, Any] = field(default_factory=dict)
    """Arguments of the network beside its name."""
    swiglu: bool = False
    """SwiGLU in place of timm's default MLP."""
    norm_eps: float = 1e-6
    """Epsilon of LayerNorm."""
    names: Names = "timm"
    """Parameter names in the file (`parameter_names`)."""
    normalisation: tuple[tuple[float, float, float], tuple[float, float, float]] = IMAGENET
    """Mean and SD per channel of pixels from 0 to 1."""
    input_px: int = 224
    """Side of the network's input."""
    tile_px: tuple[int, ...] = (224,)
    """Sides of tiles that its authors use, the usual one first."""
    mpp: tuple[float, ...] = (0.5,)
    """Resolutions of tiles in µm per pixel that it was trained on, the usual one first."""
    resizing: Literal["bicubic", "bilinear", "crop"] = "bicubic"
    """Change of a tile of another side to `input_px`: resized, or its centre cut out."""

    @property
    def page(self) -> str:
        """Address of the page with licence, terms and weights."""
        return f"https://huggingface.co/{self.hub}"

    def as_json(self) -> dict[str, Any]:
        """All fields and the page, as a JSON value."""
        return {**asdict(self), "page": self.page}

    def check_tiles(self, tile_px: int, mpp: float) -> None:
        """Raises `InputError` for tiles of a side or a resolution that the encoder was not made for."""
        resolution_fits = any(abs(mpp - known) <= 1e-6 * known for known in self.mpp)
        if tile_px in self.tile_px and resolution_fits:
            return
        sides = " or ".join(map(str, self.tile_px))
        resolutions = " or ".join(f"{known:g}" for known in self.mpp)
        raise InputError(
            f"--encoder {self.name}: made for tiles of {sides} px at {resolutions} µm/px, not {tile_px} px at {mpp:g}; "
            f"give --tile-px {self.tile_px[0]} --tile-mpp {self.mpp[0]:g}"
        )


_UNI_PAPER = "Chen et al., Nature Medicine 2024, doi:10.1038/s41591-024-02857-3"
_VIRCHOW = {"img_size": 224, "init_values": 1e-5, "mlp_ratio": 5.3375}
_H_OPTIMUS = {"img_size": 224, "init_values": 1e-5}
_ROWS = (
    Preset(
        "uni", "UNI", "MahmoodLab/UNI", (_BIN,), "vit_large_patch16_224", 1024, "cls", 303.4,
        "CC-BY-NC-ND-4.0", True, _UNI_PAPER, 197, arguments={"init_values": 1e-5},
        tile_px=(256, 224), resizing="bilinear",
    ),
    Preset(
        "uni2-h", "UNI 2", "MahmoodLab/UNI2-h", (_BIN,), "vit_giant_patch14_224", 1536, "cls", 681.4,
        "CC-BY-NC-ND-4.0", True, _UNI_PAPER, 265, 9,
        arguments={
            "img_size": 224, "depth": 24, "num_heads": 24, "init_values": 1e-5, "embed_dim": 1536,
            "mlp_ratio": _SWIGLU, "no_embed_class": True, "reg_tokens": 8,
        },
        swiglu=True, tile_px=(256, 224), resizing="bilinear",
    ),
    Preset(
        "conch", "CONCH", "MahmoodLab/CONCH", (_BIN,), "vit_base_patch16_224", 512, "attention", 87.6,
        "CC-BY-NC-ND-4.0", True, "Lu et al., Nature Medicine 2024, doi:10.1038/s41591-024-02856-4", 785,
        arguments={"img_size": 448}, names="conch", normalisation=CLIP, input_px=448, tile_px=(512, 448),
    ),
    Preset(
        "conch-v1.5", "CONCH v1.5", "MahmoodLab/conchv1_5", ("pytorch_model_vision.bin",), "vit_large_patch16_224", 768,
        "attention", 306.7, "CC-BY-NC-ND-4.0", True, "Ding et al. 2024 (TITAN), arXiv:2411.19666", 785,
        arguments={"img_size": 448, "init_values": 1e-6}, names="conch_v1_5", input_px=448, tile_px=(512, 448),
    ),
    Preset(
        "virchow", "Virchow", "paige-ai/Virchow", (_BIN,), "vit_huge_patch14_224", 2560, "cls+mean", 631.2,
        "Apache-2.0", True, "Vorontsov et al., Nature Medicine 2024, doi:10.1038/s41591-024-03141-0", 257,
        arguments=_VIRCHOW, swiglu=True,
    ),
    Preset(
        "virchow2", "Virchow2", "paige-ai/Virchow2", (_BIN,), "vit_huge_patch14_224", 2560, "cls+mean", 631.2,
        "CC-BY-NC-ND-4.0", True, "Zimmermann et al. 2024, arXiv:2408.00738", 261, 5,
        arguments={**_VIRCHOW, "reg_tokens": 4}, swiglu=True, mpp=_ANY_20X_TO_5X,
    ),
    Preset(
        "h-optimus-0", "H-optimus-0", "bioptimus/H-optimus-0", (_SAFE, _BIN), "vit_giant_patch14_reg4_dinov2", 1536,
        "cls", 1134.8, "Apache-2.0", True, "Saillard et al. 2024, github.com/bioptimus/releases", 261, 5,
        arguments=_H_OPTIMUS, normalisation=BIOPTIMUS,
    ),
    Preset(
        "h-optimus-1", "H-optimus-1", "bioptimus/H-optimus-1", (_SAFE, _BIN), "vit_giant_patch14_reg4_dinov2", 1536,
        "cls", 1134.8, "CC-BY-NC-ND-4.0", True, "Bioptimus 2025, huggingface.co/bioptimus/H-optimus-1", 261, 5,
        arguments=_H_OPTIMUS, normalisation=BIOPTIMUS,
    ),
    Preset(
        "h0-mini", "H0-mini", "bioptimus/H0-mini", (_SAFE, _BIN), "vit_base_patch14_reg4_dinov2", 1536, "cls+mean",
        85.7, "CC-BY-NC-ND-4.0", True, "Filiot et al. 2025, arXiv:2501.16239", 261, 5,
        arguments={**_H_OPTIMUS, "mlp_ratio": _SWIGLU}, swiglu=True, normalisation=BIOPTIMUS,
    ),
    Preset(
        "gigapath", "Prov-GigaPath", "prov-gigapath/prov-gigapath", (_BIN,), "vit_giant_patch14_dinov2", 1536, "cls",
        1134.9, "Apache-2.0 with conditions", True, "Xu et al., Nature 2024, doi:10.1038/s41586-024-07441-w", 197,
        arguments={"img_size": 224, "patch_size": 16, "init_values": 1e-5, "mlp_ratio": _SWIGLU},
        tile_px=(256, 224), resizing="crop",
    ),
    Preset(
        "gigapath-flash", "GigaPath-Flash", "prov-gigapath/prov-gigapath-flash", (_BIN,), "vit_small_patch16_224", 384,
        "cls", 21.7, "Apache-2.0", True, "Usuyama et al. 2026, arXiv:2607.18218", 197,
        arguments={"init_values": 1e-5, "mlp_ratio": 2048 / 384}, swiglu=True, tile_px=(256, 224), resizing="crop",
    ),
    Preset(
        "phikon", "Phikon", "owkin/phikon", (_SAFE, _BIN), "vit_base_patch16_224", 768, "cls", 85.8,
        "Owkin non-commercial", False, "Filiot et al. 2023, medRxiv, doi:10.1101/2023.07.21.23292757", 197,
        norm_eps=1e-12, names="transformers", resizing="bilinear",
    ),
    Preset(
        "phikon-v2", "Phikon-v2", "owkin/phikon-v2", (_SAFE,), "vit_large_patch16_224", 1024, "cls", 303.4,
        "Owkin non-commercial", False, "Filiot et al. 2024, arXiv:2409.09173", 197,
        arguments={"init_values": 1.0}, names="transformers",
    ),
    Preset(
        "midnight-12k", "Midnight-12k", "kaiko-ai/midnight", (_SAFE,), "vit_giant_patch14_dinov2", 3072, "cls+mean",
        1134.8, "MIT", False, "Karasikov et al. 2025, arXiv:2504.05186", 257,
        arguments={"img_size": 224, "init_values": 1.0, "mlp_ratio": _SWIGLU}, names="transformers",
        normalisation=HALF, mpp=_ANY_20X_TO_5X, resizing="bilinear",
    ),
    Preset(
        "lunit-dino-s16", "Lunit DINO ViT-S/16", "1aurent/vit_small_patch16_224.lunit_dino", (_SAFE,),
        "vit_small_patch16_224", 384, "cls", 21.7, "Lunit non-commercial", False,
        "Kang et al., CVPR 2023, arXiv:2212.04690", 197, normalisation=LUNIT, mpp=(0.5, 0.25),
    ),
    Preset(
        "lunit-dino-s8", "Lunit DINO ViT-S/8", "1aurent/vit_small_patch8_224.lunit_dino", (_SAFE,),
        "vit_small_patch8_224", 384, "cls", 21.7, "Lunit non-commercial", False,
        "Kang et al., CVPR 2023, arXiv:2212.04690", 785, normalisation=LUNIT, mpp=(0.5, 0.25),
    ),
    Preset(
        "resnet50", "ResNet-50, ImageNet", "timm/resnet50.tv_in1k", (_SAFE, _BIN), "resnet50", 2048, "average", 23.5,
        "BSD-3-Clause", False, "He et al., CVPR 2016, arXiv:1512.03385", prefix_tokens=0,
        tile_px=(256, 224), mpp=_ANY_20X_TO_5X, resizing="bilinear",
    ),
)  # fmt: skip
PRESETS: Mapping[str, Preset] = {row.name: row for row in _ROWS}


def preset(name: str) -> Preset:
    """The row of an encoder. Raises `InputError` for a name that the table does not have.

    >>> from longvit.encoders.presets import preset
    >>> preset("virchow2").dim
    2560
    """
    if name in PRESETS:
        return PRESETS[name]
    raise InputError(f"{name}: no such encoder; take one of {', '.join(PRESETS)}")
