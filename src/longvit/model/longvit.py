"""LongViT: one vision transformer over all patches of a whole slide (Wang et al. 2023, arXiv 2312.03558).

    image (up to 32,768² px) → patches of 32 × 32 → linear embedding + positions → LongNet encoder → mean → norm → head

Models with a stem in their name are not the paper's: see `SIZES`.

Sizes are table 5 of the paper as data, segment lengths table 7. For lengths between its rows `segment_schedule`
interpolates, where the published code silently keeps the segments of pretraining.

B images, N patches, D width, K classes.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from longvit.attention.pattern import DilatedPattern
from longvit.config import check_bounds
from longvit.errors import InputError
from longvit.model import cuda_graph
from longvit.model.conv_stem import ConvPatchEmbedding, check_patch
from longvit.model.embedding import PatchEmbedding
from longvit.model.encoder import INITIALISERS, Encoder
from longvit.model.positions import PatchGrid, sine_positions

DILATED_RATIOS = (1, 2, 4, 8, 16)
BOUNDS = {  # far beyond every model that trains, and small enough that making one ends
    "embed_dim": (1, 65_536),
    "depth": (1, 256),
    "num_heads": (1, 65_536),
    "ffn_dim": (1, 2**20),
    "patch_px": (1, 4_096),
    "num_classes": (0, 100_000),
    "image_px": (1, 2**20),
    "grid_patches": (1, 4_096),
    "dilated_ratios": (1, 2**20),
    "segment_lengths": (1, 2**40),
}
SEGMENT_TABLE = {  # table 7: number of patches → segment lengths
    1_024: (64, 128, 256, 512, 1_024),  # 1,024² px, pretraining
    16_384: (1_024, 2_048, 4_096, 8_192, 16_384),  # 4,096²
    65_536: (1_024, 4_096, 8_192, 16_384, 65_536),  # 8,192²
    262_144: (1_024, 4_096, 16_384, 65_536, 262_144),  # 16,384²
    1_048_576: (1_024, 4_096, 32_768, 262_144, 1_048_576),  # 32,768²
}


@dataclass(frozen=True)
class LongViTConfig:
    """Configuration of a LongViT; stored beside its weights.

    Attributes:
        embed_dim, depth, num_heads, ffn_dim: width, layers, heads, hidden width of the FFN.
        patch_px: side of a patch.
        num_classes: outputs of the head, 0 for a model without one; class_names: one per output, or empty.
        task: the task of the head (longvit.tasks.catalogue): classes, or bins of time.
        positions: "grid": positions of the pretraining grid (1,024² px), interpolated on the fly. "per_patch":
            one vector per patch of a square image of image_px, as the published code has it after fine-tuning.
        segment_lengths: "auto" (`segment_schedule` of the number of patches) or one per dilated ratio.
        dilated_ratios: a ratio r per branch, which keeps every r-th token of a segment.
        gradient, ragged: see `longvit.attention.dilated_attention`.
        drop_path: rate of the last layer.
        image_px, fit: the canvas for `embed` (side in px, "stretch" or "pad").
        pool_norm: "fc_norm": mean over tokens, then LayerNorm, eps 1e-5 (fine-tuning). "token_norm": LayerNorm, eps
            1e-6, then mean (DINO).
        grid_patches: side of the pretraining grid in patches.
        stem: embedding of a patch: "linear", the paper's projection, or "conv", convolutions inside the patch
            (`longvit.model.conv_stem`).
        sub_norm: the paper's sub-LayerNorm inside the two branches of a block; False: a plain pre-norm block.
        init: initial weights: "published", small normal numbers as in the published code, or "xavier":
            Xavier-uniform matrices, and positions of sines (`longvit.model.positions.sine_positions`).

    >>> import longvit
    >>> longvit.LongViTConfig(embed_dim=192, depth=6, num_heads=8, ffn_dim=768, image_px=4096).patch_px
    32
    """

    embed_dim: int = 384
    depth: int = 12
    num_heads: int = 16
    ffn_dim: int = 1536
    patch_px: int = 32
    num_classes: int = 0
    class_names: tuple[str, ...] = ()
    task: str = "subtyping"
    positions: Literal["grid", "per_patch"] = "grid"
    segment_lengths: tuple[int, ...] | Literal["auto"] = "auto"
    dilated_ratios: tuple[int, ...] = DILATED_RATIOS
    gradient: Literal["exact", "detached"] = "exact"
    ragged: Literal["masked", "padded"] = "masked"
    drop_path: float = 0.0
    image_px: int = 1024
    fit: Literal["stretch", "pad"] = "stretch"
    pool_norm: Literal["fc_norm", "token_norm"] = "fc_norm"
    grid_patches: int = 32
    stem: Literal["linear", "conv"] = "linear"
    sub_norm: bool = True
    init: Literal["published", "xavier"] = "published"

    def __post_init__(self) -> None:
        check_bounds(self, BOUNDS)
        if self.embed_dim % self.num_heads:
            raise ValueError(f"embed_dim {self.embed_dim} is not a multiple of num_heads {self.num_heads}")
        if self.segment_lengths != "auto" and len(self.segment_lengths) != len(self.dilated_ratios):
            raise ValueError(
                f"{len(self.segment_lengths)} segment lengths for {len(self.dilated_ratios)} dilated ratios: "
                "give one each"
            )
        if self.class_names and len(self.class_names) != self.num_classes:
            raise ValueError(f"{len(self.class_names)} class names for {self.num_classes} classes")
        if not 0 <= self.drop_path < 1:
            raise ValueError(f"drop_path must be in [0, 1), got {self.drop_path}")
        if self.init == "xavier" and self.embed_dim % 4:
            raise ValueError(f"init 'xavier' needs an embed_dim that is a multiple of 4, got {self.embed_dim}")
        if self.stem == "conv":
            check_patch(self.patch_px)

    @property
    def grid(self) -> PatchGrid:
        """The grid on which positions are parameters."""
        side = self.grid_patches if self.positions == "grid" else self.image_px // self.patch_px
        return PatchGrid(side, side)


_TINY = LongViTConfig(embed_dim=192, depth=6, num_heads=8, ffn_dim=768)
_SMALL = LongViTConfig()  # table 5: LongViT-S
_BASE = LongViTConfig(embed_dim=768, depth=12, num_heads=16, ffn_dim=3072)


def _with_stem(config: LongViTConfig) -> LongViTConfig:
    """The size that learns from few slides: convolutional stem, plain pre-norm blocks, norm before pooling, Xavier."""
    return replace(config, stem="conv", sub_norm=False, pool_norm="token_norm", init="xavier")


SIZES = {
    "longvit_tiny_patch32": _TINY,
    "longvit_small_patch32": _SMALL,
    "longvit_base_patch32": _BASE,
    "longvit_tiny_stem_patch32": _with_stem(_TINY),
    "longvit_small_stem_patch32": _with_stem(_SMALL),
    "longvit_base_stem_patch32": _with_stem(_BASE),
}
"""Configurations by name: the paper's design in three sizes, and the same with a stem, for few slides."""


SHIPPED_WEIGHTS = {"longvit_tiny_stem_patch32": "longvit-tiny-stem"}
"""Weights that ship with the package, by the name of the size."""
_SIZE_FIELDS = ("embed_dim", "depth", "num_heads", "ffn_dim", "patch_px", "stem", "sub_norm")


def segment_schedule(n_patches: int) -> tuple[int, ...]:
    """Segment lengths for a sequence of `n_patches` ≥ 1 tokens, one per dilated ratio 1, 2, 4, 8, 16.

    At the five lengths of table 7 of the paper these are its rows. Elsewhere:

    - below 1,024: the first row, cut to the sequence
    - between two rows: each segment interpolated in log(length) and rounded to a power of two
    - above the last row: that row

    The last segment is always the whole sequence, so that some path connects every two tokens.

    >>> import longvit
    >>> longvit.segment_schedule(4_096)
    (256, 512, 1024, 2048, 4096)
    """
    if n_patches < 1:
        raise ValueError(f"a sequence has at least one patch, got {n_patches}")
    rows = sorted(SEGMENT_TABLE)
    if n_patches in SEGMENT_TABLE:
        return SEGMENT_TABLE[n_patches]
    if n_patches < rows[0]:
        return tuple(min(w, n_patches) for w in SEGMENT_TABLE[rows[0]])
    if n_patches > rows[-1]:
        return (*SEGMENT_TABLE[rows[-1]][:-1], n_patches)
    above = bisect_right(rows, n_patches)
    low, high = rows[above - 1], rows[above]
    t = math.log(n_patches / low) / math.log(high / low)
    between = (
        2 ** round((1 - t) * math.log2(a) + t * math.log2(b))
        for a, b in zip(SEGMENT_TABLE[low][:-1], SEGMENT_TABLE[high][:-1], strict=True)
    )
    return (*(min(w, n_patches) for w in between), n_patches)


class LongViT(nn.Module):
    """The model. Images are (B, 3, height, width), both divided by the patch; uint8 raw or float normalised."""

    def __init__(self, config: LongViTConfig) -> None:
        super().__init__()
        self.config = config
        embedding = ConvPatchEmbedding if config.stem == "conv" else PatchEmbedding
        self.patch_embed = embedding(config.embed_dim, config.patch_px, config.grid)
        if config.init == "xavier":
            with torch.no_grad():
                self.patch_embed.pos_embed.copy_(sine_positions(config.grid, config.embed_dim))
        self.blocks = Encoder(
            config.depth,
            config.embed_dim,
            config.num_heads,
            config.ffn_dim,
            drop_path_rate=config.drop_path,
            sub_norm=config.sub_norm,
        )
        self.fc_norm = nn.LayerNorm(config.embed_dim, eps=1e-5 if config.pool_norm == "fc_norm" else 1e-6)
        self.head: nn.Module = nn.Identity()
        self.blocks.apply(INITIALISERS[config.init])
        self.reset_classifier(config.num_classes, config.class_names)

    @property
    def num_features(self) -> int:
        """D, the width of an embedding."""
        return self.config.embed_dim

    @property
    def num_classes(self) -> int:
        """Outputs of the head; 0 without a head."""
        return self.config.num_classes

    def no_weight_decay(self) -> set[str]:
        """Names of parameters without weight decay, in addition to biases and norms."""
        return {"patch_embed.pos_embed"}

    def get_classifier(self) -> nn.Module:
        """The head: a linear layer, or `nn.Identity` for a model without one."""
        return self.head

    def reset_classifier(self, num_classes: int, class_names: tuple[str, ...] = ()) -> None:
        """Replaces the head by a randomly initialised one for `num_classes` (0: none)."""
        self.config = replace(self.config, num_classes=num_classes, class_names=tuple(class_names))
        device = self.fc_norm.weight.device
        self.head = nn.Linear(self.num_features, num_classes, device=device) if num_classes else nn.Identity()
        self.head.apply(INITIALISERS[self.config.init])

    def set_recompute(self, enable: bool = True, *, offload: bool = False) -> None:
        """Recompute each layer in backward: about a third of the memory for two thirds of a forward without attention.

        `offload`: the tensors that are still kept stay in host memory until backward (CUDA only). Leave the images in
        host memory too: `forward` moves a few rows at a time.
        """
        self.blocks.recompute, self.blocks.offload = enable, offload

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Gradient checkpointing under timm's name; the same as `set_recompute` without offload."""
        self.set_recompute(enable)

    def pattern(self, n_patches: int) -> DilatedPattern:
        """The branches of dilated attention for a sequence of this length."""
        c = self.config
        if c.segment_lengths == "auto":
            if c.dilated_ratios != DILATED_RATIOS:
                raise ValueError(
                    f"segment_lengths='auto' is for dilated ratios {DILATED_RATIOS}, got {c.dilated_ratios}"
                )
            segments = segment_schedule(n_patches)
        else:
            segments = c.segment_lengths
        return DilatedPattern(segments, c.dilated_ratios, c.gradient, c.ragged)

    def forward_features(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) → tokens (B, N, D), row-major. uint8 images may stay in host memory beside a model on a GPU.

        >>> import torch, longvit
        >>> model = longvit.create_model("longvit_tiny_patch32")
        >>> model.forward_features(torch.zeros(1, 3, 64, 96, dtype=torch.uint8)).shape
        torch.Size([1, 6, 192])
        """
        return self.encode(self.patch_embed(images))

    def encode(self, x: Tensor) -> Tensor:
        """Embedded patches (B, N, D), row-major → tokens (B, N, D)."""
        return self.blocks(x, self.pattern(x.shape[1]))

    def forward_intermediates(
        self,
        images: Tensor,
        indices: int | Sequence[int] | None = None,
        *,
        norm: bool = False,
        stop_early: bool = False,
        output_fmt: Literal["NCHW", "NLC"] = "NCHW",
        intermediates_only: bool = False,
    ) -> Any:
        """Tokens after the last layer and after chosen layers, as in timm: (tokens (B, N, D), list).

        - `indices`: layers to return, negative from the end; a number n: the last n layers; None: all. The list is in
          the order of the layers.
        - `norm`: applies the token norm of a model that pools by `token_norm`.
        - `stop_early`: skips the layers above the last index.
        - `output_fmt`: "NCHW" gives each as (B, D, rows, columns), "NLC" as (B, N, D).
        - `intermediates_only`: returns the list alone.

        Gradient checkpointing does not apply.

        >>> import torch, longvit
        >>> model = longvit.load_model("longvit-tiny-stem")
        >>> tokens, layers = model.forward_intermediates(torch.zeros(1, 3, 64, 96), indices=2)
        >>> tokens.shape, [layer.shape for layer in layers]
        (torch.Size([1, 6, 192]), [torch.Size([1, 192, 2, 3]), torch.Size([1, 192, 2, 3])])
        """
        depth, patch_px = len(self.blocks), self.config.patch_px
        if indices is None:
            indices = range(depth)
        elif isinstance(indices, int):
            indices = range(-indices, 0)
        if not indices or not all(-depth <= index < depth for index in indices):
            raise ValueError(f"indices {list(indices)}: from {-depth} to {depth - 1} for a model of {depth} layers")
        wanted = {index % depth for index in indices}
        x = self.patch_embed(images)
        rows, columns = images.shape[-2] // patch_px, images.shape[-1] // patch_px
        pattern, intermediates = self.pattern(x.shape[1]), []
        for index, block in enumerate(self.blocks):
            if stop_early and index > max(wanted):
                break
            x = block(x, pattern)
            if index in wanted:
                layer = self.fc_norm(x) if norm and self.config.pool_norm == "token_norm" else x
                is_grid = output_fmt == "NCHW"
                intermediates.append(layer.transpose(1, 2).unflatten(2, (rows, columns)) if is_grid else layer)
        return intermediates if intermediates_only else (x, intermediates)

    def pool(self, tokens: Tensor) -> Tensor:
        """(B, N, D) → (B, D): the mean of the tokens and its LayerNorm, in the order of `pool_norm`."""
        if self.config.pool_norm == "token_norm":
            return self.fc_norm(tokens).mean(1)
        return self.fc_norm(tokens.mean(1))

    def forward_head(self, tokens: Tensor, pre_logits: bool = False) -> Tensor:
        """(B, N, D) → logits (B, K), or the embedding (B, D) with `pre_logits` or without a head."""
        x = self.pool(tokens)
        return x if pre_logits else self.head(x)

    def forward(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) → logits (B, K); (B, D) for a model without head."""
        return self.forward_head(self.forward_features(images))

    @torch.inference_mode()
    def embed(self, slide: Any) -> np.ndarray:
        """The embedding of a slide or canvas, float32 (D,), from its canvas of `config.image_px`.

        `slide` is a slide from `longvit.open_slide`, or a uint8 (height, width, 3) array or canvas. The canvas of a
        slide is never held: strips are embedded while threads decode the next ones. Both ways give the same bits. On a
        card small canvases run as a CUDA graph (`longvit.model.cuda_graph`), again with the same bits.

        >>> import longvit
        >>> model = longvit.load_model("longvit-tiny-stem")
        >>> model.embed(longvit.open_slide("examples/CMU-1-Small-Region.svs")).shape
        (192,)
        """
        if isinstance(slide, (str, Path)):
            raise TypeError(f"embed takes an open slide: model.embed(longvit.open_slide({str(slide)!r}))")
        was_training = self.training
        self.eval()
        try:
            tokens = self.tokens_of(slide)
            return self.forward_head(tokens, pre_logits=True)[0].float().cpu().numpy()
        finally:
            self.train(was_training)

    def tokens_of(self, slide: Any) -> Tensor:
        """A slide, or pixels (height, width, 3) → tokens (1, N, D) in the mode of the caller; see `embed`."""
        if not hasattr(slide, "strips"):
            return cuda_graph.encode(self, self.patch_embed(image_of(np.asarray(slide))))
        side_px = self.config.image_px
        image = self.patch_embed.patches_in(side_px, side_px)
        strips = slide.strips(side_px, self.config.fit, strip_px=self.patch_embed.strip_px(side_px))
        return cuda_graph.encode(self, self.patch_embed.from_strips((strip.pixels for strip in strips), image))

    @classmethod
    def from_pretrained(cls, name: str | Path) -> LongViT:
        """Loads a LongViT from a model folder, by the name of a shipped model, or from the hub, in eval mode.

        Raises `InputError` as `longvit.load_model` does, and for a model of another kind.

        >>> import longvit
        >>> longvit.LongViT.from_pretrained("longvit-tiny-stem").config.depth
        6
        """
        from longvit.model.pretrained import load_model

        model = load_model(name)
        if not isinstance(model, cls):
            raise InputError(f"{name}: a {type(model).__name__} reads tile features, not slides; use load_model")
        return model

    def save_pretrained(self, folder: str | Path, *, dtype: Literal["float16", "bfloat16"] | None = None) -> Path:
        """Writes model.safetensors and config.json (see `longvit.model.pretrained.save_pretrained`)."""
        from longvit.model.pretrained import save_pretrained

        return save_pretrained(self, folder, dtype=dtype)


def image_of(pixels: np.ndarray) -> Tensor:
    """(height, width, 3) → (1, 3, height, width), without a copy for contiguous pixels."""
    return torch.from_numpy(np.ascontiguousarray(pixels)).permute(2, 0, 1).unsqueeze(0)


def create_model(
    name: str, pretrained: bool | str | Path = False, *, num_classes: int | None = None, **settings: Any
) -> LongViT:
    """Creates a LongViT by name: `longvit_tiny_patch32`, `longvit_small_patch32` (the paper's) or `_base_`.

    `longvit_tiny_stem_patch32`, `_small_stem_` and `_base_stem_` are for few slides: convolutions inside each patch
    (`stem="conv"`), no sub-LayerNorm (`sub_norm=False`), and the norm before the mean (`pool_norm="token_norm"`).

    `pretrained`: a model folder, shipped name or hub id whose weights to load; True: those that ship with the package
    (longvit_tiny_stem_patch32 only). False: random weights. `num_classes`: None keeps the pretrained head (without
    weights: no head); any other number than the head's gives a new head. `settings`: fields of `LongViTConfig`.

    Raises `ValueError` for an unknown name or setting, and `InputError` for weights that do not fit the size.

    >>> import longvit
    >>> longvit.create_model("longvit_tiny_patch32", num_classes=2, image_px=4096).num_features
    192
    >>> longvit.create_model("longvit_tiny_stem_patch32", pretrained=True, num_classes=3).get_classifier()
    Linear(in_features=192, out_features=3, bias=True)
    """
    if name not in SIZES:
        raise ValueError(f"no model {name!r}; there are {', '.join(SIZES)}")
    known = asdict(SIZES[name])
    for key in settings:
        if key not in known:
            raise ValueError(f"no setting {key!r} of a LongViT; there are {', '.join(known)}")
    if pretrained is False:
        return LongViT(replace(SIZES[name], num_classes=num_classes or 0, **settings))
    if pretrained is True and name not in SHIPPED_WEIGHTS:
        raise InputError(f"{name}: no weights ship with the package; give pretrained=FOLDER (see `longvit convert`)")
    return _pretrained(name, SHIPPED_WEIGHTS[name] if pretrained is True else pretrained, num_classes, settings)


def _pretrained(name: str, source: str | Path, num_classes: int | None, settings: dict[str, Any]) -> LongViT:
    loaded = LongViT.from_pretrained(source)
    for field in _SIZE_FIELDS:
        if field in settings:
            raise ValueError(f"{field}: fixed by the pretrained weights")
        if (stored := getattr(loaded.config, field)) != (size := getattr(SIZES[name], field)):
            raise InputError(f"{source}: {field} {stored}, but {name} has {size}")
    has_new_head = num_classes not in (None, loaded.num_classes)
    head: dict[str, Any] = {"num_classes": num_classes, "class_names": ()} if has_new_head else {}
    model = LongViT(replace(loaded.config, **{**head, **settings}))
    own = {key: value for key, value in loaded.state_dict().items() if not (has_new_head and key.startswith("head."))}
    model.load_state_dict(own, strict=not has_new_head)
    return model
