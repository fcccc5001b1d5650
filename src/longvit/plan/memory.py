"""Peak memory of one training step: a formula for each moment of forward and backward.

Kept for backward, per layer and token (s: bytes of the float32 stream, c: of the compute dtype; D width, F hidden
width, H heads; `model.encoder`, `model.norm_linear`, `model.feedforward`, `attention.operators`):

    without recomputation   x: sD   q, k, v: 3cD   out: cD   lse: 4H   middle x: sD   hidden: cF
    with recomputation      x: sD                  out: cD   lse: 4H

plus the uint8 image. With `offload` (CUDA, with recomputation) the image and the second line are in host memory. On the
device are the tensors of the current layer and those being copied for the next one. Backward goes from the last layer
to the first: a layer's temporaries are added, its kept tensors are freed, its gradients stay. The peak is the largest
of these moments:

    norm before the mean    its input, kept; its gradient on both sides (`pool_norm` "token_norm")
    FFN                     6 hidden chunks of tokens (`norm_linear.chunks`; 3 without sub-LayerNorm), the gradients of
                            x on both sides
    attention               q, k, v (recomputed with recomputation) and the gradient of out; their gradient in float32,
                            and a second copy from the first branch's call
    embedding               one chunk of patches; with a convolutional stem three tensors per layer of it (`conv_stem`)

T tokens of this device in all its sequences.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise

from longvit.model.conv_stem import CPU_CHUNK, GPU_CHUNK, channels
from longvit.model.embedding import CPU_CHUNK_PATCHES, GPU_CHUNK_PATCHES
from longvit.model.longvit import LongViTConfig
from longvit.model.norm_linear import CPU_CHUNK_TOKENS, GPU_CHUNK_TOKENS

_NARROW_BACKWARD_TOKENS = 512  # attention.backends: from here on the CPU kernel takes bfloat16 unconverted
_STREAM = 4  # bytes: parameters, gradients and the residual stream are float32 under autocast
DTYPE_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}


@dataclass(frozen=True)
class Load:
    """Load of one device: T = `tokens` of a model, and the settings of the computation."""

    config: LongViTConfig
    tokens: int
    columns: int
    """Patches of one row of the image, over all sequences of the batch."""
    first_segment: int
    """Segment length of the first branch, tokens."""
    dtype: str = "float32"
    recompute: bool = False
    offload: bool = False
    """Kept tensors and the image are in host memory (`model.offload`); on CUDA devices with `recompute`."""
    device: str = "cpu"
    shared_keys: int = 0
    """Tokens of the keys and values that sequence parallelism gathers here per layer, the own ones included."""


@dataclass(frozen=True)
class Memory:
    """Bytes on one device."""

    parameters: int
    gradients: int
    optimizer: int
    """AdamW's two moments, float32."""
    image: int
    saved: int
    """Kept on the device between forward and backward: activations and the image."""
    host: int
    """Page-locked host memory with offload, the image included, tensors rounded up to powers of two as PyTorch does."""
    peak: int
    """Peak of forward and backward above parameters and optimiser: kept tensors, gradients so far, temporaries."""
    moment: str
    """The moment of the peak."""
    inference: int
    """Peak of a forward pass without gradients, above the parameters."""

    @property
    def total(self) -> int:
        """Parameters, optimiser and the peak of a step."""
        return self.parameters + self.optimizer + self.peak


def parameter_counts(config: LongViTConfig) -> dict[str, int]:
    """Parameter counts of the embedding (positions included), one layer's attention and FFN, norm and head."""
    d, f, k = config.embed_dim, config.ffn_dim, config.num_classes
    grid = config.grid
    attention_norm, hidden_norm = (2 * d, 2 * f) if config.sub_norm else (0, 0)
    return {
        "embedding": _stem_parameters(config) + grid.height * grid.width * d,
        "attention": 4 * d * d + 4 * d + 2 * d + attention_norm,
        "ffn": 2 * d * f + d + f + 2 * d + hidden_norm,
        "head": 2 * d + (d * k + k if k else 0),
    }


def _stem_parameters(config: LongViTConfig) -> int:
    d = config.embed_dim
    if config.stem == "linear":
        return 3 * config.patch_px**2 * d + d
    widths = [3, *channels(d, config.patch_px)]
    return sum(9 * i * o + 2 * o for i, o in pairwise(widths)) + 4 * d * d + d


def parameters(config: LongViTConfig) -> int:
    """Parameter count of the model."""
    n = parameter_counts(config)
    return n["embedding"] + config.depth * (n["attention"] + n["ffn"]) + n["head"]


def saved_per_layer(load: Load) -> dict[str, int]:
    """Bytes that a layer keeps for its backward without recomputation, by tensor."""
    t, d, c = load.tokens, load.config.embed_dim, DTYPE_BYTES[load.dtype]
    return {
        "x": _STREAM * t * d,
        "qkv": 3 * c * t * d,
        "out": c * t * d,
        "lse": 4 * t * load.config.num_heads,
        "shared keys": 2 * c * load.shared_keys * d,
        "middle x": _STREAM * t * d,
        "hidden": c * t * load.config.ffn_dim,
    }


_KEPT_WITH_RECOMPUTE = ("x", "out", "lse", "shared keys")


def _kept(load: Load) -> int:
    layer = saved_per_layer(load)
    return sum(layer[name] for name in _KEPT_WITH_RECOMPUTE) if load.recompute else sum(layer.values())


def _offloads(load: Load) -> bool:
    return load.offload and load.recompute and load.device == "cuda"


def _kept_by(layers: int, load: Load) -> int:
    """Bytes on the device of the kept tensors of so many layers, below the current one."""
    return (min(layers, 1) if _offloads(load) else layers) * _kept(load)


def image_bytes(load: Load) -> int:
    """The uint8 pixels on the device: with offload a few rows are moved at a time."""
    return 0 if _offloads(load) else _pixels(load)


def _pixels(load: Load) -> int:
    return 3 * load.config.patch_px**2 * load.tokens


def saved_bytes(load: Load) -> int:
    """Kept on the device between forward and backward, the image included."""
    return image_bytes(load) + _kept_by(load.config.depth - 1, load) + _kept(load) + _kept_by_pool(load)


def _kept_by_pool(load: Load) -> int:
    """Bytes of the tokens, which a norm before the mean keeps."""
    return _STREAM * load.tokens * load.config.embed_dim if load.config.pool_norm == "token_norm" else 0


def host_bytes(load: Load) -> int:
    """Page-locked host memory that offload takes."""
    if not _offloads(load):
        return 0
    layer = saved_per_layer(load)
    tensors = [_pixels(load), *(load.config.depth - 1) * [layer[name] for name in ("x", "out", "lse")]]
    return sum(1 << (size - 1).bit_length() for size in tensors)


def training_memory(load: Load) -> Memory:
    """The peak of one training step (forward, backward, AdamW) of `load`."""
    moment, peak = max(_moments(load), key=lambda m: m[1])
    p = _STREAM * parameters(load.config)
    return Memory(
        p, p, 2 * p, image_bytes(load), saved_bytes(load), host_bytes(load), peak, moment, inference_bytes(load)
    )


def inference_bytes(load: Load) -> int:
    """Peak of a forward pass without gradients: image, stream and one layer's temporaries."""
    layer, casts = saved_per_layer(load), _cast_weights(load)
    held = image_bytes(load) + layer["x"]
    attention = held + layer["qkv"] + layer["lse"] + layer["shared keys"] + _attention_forward(load)
    ffn = held + layer["middle x"] + layer["out"] + casts + 3 * _hidden_chunk(load)
    return max(_embedding(load), attention, ffn)


def _chunk_tokens(load: Load) -> int:
    return CPU_CHUNK_TOKENS if load.device == "cpu" else GPU_CHUNK_TOKENS


def _hidden_chunk(load: Load) -> int:
    return DTYPE_BYTES[load.dtype] * min(load.tokens, _chunk_tokens(load)) * load.config.ffn_dim


def _cast_weights(load: Load) -> int:
    """Bytes of the FFN's matrices cast to 16 bits; 0 in float32."""
    c = DTYPE_BYTES[load.dtype]
    return 2 * c * load.config.embed_dim * load.config.ffn_dim if c < _STREAM else 0


def _chunk_patches(load: Load) -> int:
    """Patches per chunk of the embedding: whole rows."""
    at_once = GPU_CHUNK_PATCHES if load.device == "cuda" else CPU_CHUNK_PATCHES
    return min(load.tokens, max(1, at_once // load.columns) * load.columns)


def _embedding_weight(load: Load) -> int:
    """Bytes of the projection's matrix in the compute dtype."""
    return 3 * load.config.patch_px**2 * load.config.embed_dim * DTYPE_BYTES[load.dtype]


def _embedding(load: Load) -> int:
    """Image, tokens, the weights in the compute dtype, and the temporaries of a chunk of patches."""
    c, chunk, pixels = DTYPE_BYTES[load.dtype], _chunk_patches(load), 3 * load.config.patch_px**2
    held, tokens = image_bytes(load) + saved_per_layer(load)["x"], 2 * _STREAM * chunk * load.config.embed_dim
    if load.config.stem == "conv":
        cast = c * _stem_parameters(load.config) if c < _STREAM else 0
        convolved = _stem_input(load) + 2 * _stem_layers(load)[0]  # of a layer, and normed
        return held + cast + pixels * chunk + convolved + tokens
    following = min(chunk, load.tokens - chunk)
    patches = pixels * max((1 + c) * chunk, c * chunk + (1 + c) * following)  # as uint8 first, then in the dtype
    return held + _embedding_weight(load) + patches + tokens


def _stem_input(load: Load) -> int:
    """Bytes of the pixels of a chunk of the stem in the compute dtype."""
    return DTYPE_BYTES[load.dtype] * 3 * load.config.patch_px**2 * _stem_patches(load)


def _stem_patches(load: Load) -> int:
    return min(_chunk_patches(load), GPU_CHUNK if load.device == "cuda" else CPU_CHUNK)


def _stem_layers(load: Load) -> list[int]:
    """Bytes of the result of each of the stem's convolutions but the last, for a chunk."""
    size, side = DTYPE_BYTES[load.dtype] * _stem_patches(load), load.config.patch_px
    widths = channels(load.config.embed_dim, side)
    return [size * width * (side >> i) ** 2 for i, width in enumerate(widths, 1)]


def _embedding_backward(load: Load) -> int:
    """Temporaries of a chunk of patches in the embedding's backward, beside the gradient of the parameters."""
    d, c, chunk = load.config.embed_dim, DTYPE_BYTES[load.dtype], _chunk_patches(load)
    pixels = 3 * load.config.patch_px**2 * chunk
    if (
        load.config.stem == "conv"
    ):  # three tensors of each layer; the parameters cast, their gradients, and a reordering
        own = 3 * c * _stem_parameters(load.config) + 2 * c * _stem_patches(load) * d
        copied = _STREAM * chunk * d if chunk < load.tokens else 0  # a part of the gradient
        return pixels + _stem_input(load) + 3 * sum(_stem_layers(load)) + own + copied
    patches = max((1 + c) * pixels, c * pixels + _embedding_weight(load))  # made; multiplied
    return patches + _STREAM * chunk * d + c * chunk * d


def _attention_forward(load: Load) -> int:
    """Temporaries: the running output in float32, the first branch's result, casts of q, k, v on a CPU."""
    wide = _STREAM * load.tokens * load.config.embed_dim
    if load.dtype == "float32":
        return wide
    return 4 * wide if load.device == "cpu" else 2 * wide


def _attention_backward(load: Load) -> int:
    """Temporaries: the gradient of q, k, v in float32, and the result of the first branch's call for all tokens."""
    t, d, c = load.tokens, load.config.embed_dim, DTYPE_BYTES[load.dtype]
    shared = 2 * _STREAM * load.shared_keys * d
    fused = 3 * _STREAM * t * d
    if load.device == "cuda":
        # the kernel's own float32 sum of the query's gradient, its head dim rounded up to 32
        accumulated = 4 * t * load.config.num_heads * -(-d // load.config.num_heads // 32) * 32
        return shared + fused + 3 * c * t * d + accumulated
    if c == _STREAM or (load.dtype == "bfloat16" and load.first_segment >= _NARROW_BACKWARD_TOKENS):
        return shared + fused + 3 * c * t * d
    return shared + fused + (5 + 3) * _STREAM * t * d  # grad_out, q, k, v and out widened


def _moments(load: Load) -> Iterator[tuple[str, int]]:
    """(moment, bytes above parameters and optimiser) of one forward and backward pass."""
    config, layer = load.config, saved_per_layer(load)
    counts = {name: _STREAM * n for name, n in parameter_counts(config).items()}
    t, d, c = load.tokens, config.embed_dim, DTYPE_BYTES[load.dtype]
    stream, narrow, chunk, casts = _STREAM * t * d, c * t * d, _hidden_chunk(load), _cast_weights(load)
    several_chunks = t > _chunk_tokens(load)
    sums = (2 if several_chunks else 1) * _STREAM * d * config.ffn_dim

    yield "embedding", _embedding(load)
    # forward: in the last layer the tensors of all others are kept
    before = image_bytes(load) + _kept_by(config.depth - 1, load) + layer["x"]
    attention = layer["qkv"] + layer["lse"] + layer["shared keys"]
    yield "forward, last layer's attention", before + attention + _attention_forward(load)
    ffn = attention + layer["out"]
    # recomputation: q, k, v are freed, and the middle x exists in chunks
    ffn += -layer["qkv"] if load.recompute else layer["middle x"] + layer["hidden"]
    yield "forward, last layer's FFN", before + ffn + (stream if load.recompute else narrow) + casts + 2 * chunk

    if config.pool_norm == "token_norm":
        yield "backward, norm", saved_bytes(load) + 2 * stream
    gradients, lean = counts["head"], 0 if config.sub_norm else 3 * chunk  # no norm of the hidden activations
    for i in reversed(range(config.depth)):
        moment = f"backward, layer {i + 1}"
        held = image_bytes(load) + _kept_by(i, load) + gradients + _kept(load) + stream  # the incoming gradient
        if load.recompute:
            rows = _STREAM * min(t, _chunk_tokens(load)) * d
            yield f"{moment}, FFN", held + stream + narrow + casts + 6 * chunk - lean + 2 * rows + sums
            gradients += counts["ffn"]
            held += counts["ffn"]
            yield f"{moment}, attention", held + narrow + layer["qkv"] + _attention_backward(load)
            gradients += counts["attention"]
            held += counts["attention"]
            yield f"{moment}, q, k, v", held + 3 * narrow + stream
            continue
        narrow_grad = narrow if c < _STREAM else 0
        yield f"{moment}, FFN", held + narrow_grad + casts + 5 * chunk - lean + sums + (stream if several_chunks else 0)
        gradients += counts["ffn"]
        held += counts["ffn"] - layer["hidden"] - layer["middle x"]
        yield f"{moment}, sum of the stream's gradients", held + 2 * stream
        yield f"{moment}, attention", held + narrow + _attention_backward(load)
        gradients += counts["attention"]
        held += counts["attention"] - layer["qkv"] - layer["out"] - layer["lse"] - layer["shared keys"]
        yield f"{moment}, q, k, v", held + 3 * narrow + stream + (stream if several_chunks else 0)
    held = image_bytes(load) + gradients + counts["embedding"] + stream
    yield "backward, embedding", held + _embedding_backward(load)
