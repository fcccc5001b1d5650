"""Padding of ragged segments as in the authors' code (`ragged="padded"`), for weights that were trained with it.

That code pads the sequence to a multiple of w' and every segment to a multiple of r with zeros. The zero keys take part
in the softmax (logit 0, value 0). Two cases:

- n zero keys only add n to the denominator of their offset group: (out, lse) → `with_zero_keys`, no copy.
- Where r does not divide w' and there are several segments, its results are W = r·ceil(w'/r) apart while the segments
  were w' apart. From the second segment on each result is shifted by (W − w') positions per segment, with results of
  zero queries in between. Prov-GigaPath's fourth branch (185,363 / 8) does this above 185,363 tiles. `spread` and
  `gathered` reproduce it on copies of q, k, v with the zeros in place.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor


def with_zero_keys(out: Tensor, lse: Tensor, n: int) -> tuple[Tensor, Tensor]:
    """(out (…, D), lse (…)) of a softmax → those with n more keys of logit 0 and value 0."""
    if n == 0:
        return out, lse
    more = torch.logaddexp(lse, lse.new_tensor(math.log(n)))
    return out * (lse - more).exp_().unsqueeze(-1).to(out.dtype), more


def is_shifted(length: int, segment_length: int, dilated_ratio: int) -> bool:
    """True if the published code returns this branch's results at other positions than those of its queries."""
    return length > segment_length and segment_length % dilated_ratio != 0


def spread(x: Tensor, w: int, r: int, value: float = 0.0) -> Tensor:
    """(B, N, …) → (B, S·W, …): every segment of w tokens padded with `value` to W, the next multiple of r."""
    short, tail = -w % r, -x.shape[1] % w
    inner = (0, 0) * (x.ndim - 2)
    x = F.pad(x, (*inner, 0, tail), value=value).unflatten(1, (-1, w))
    return F.pad(x, (*inner, 0, short), value=value).flatten(1, 2)


def gathered(x: Tensor, length: int, w: int, r: int) -> Tensor:
    """The inverse of `spread`: (B, S·W, …) → (B, length, …), without the padding."""
    return x.unflatten(1, (-1, w + -w % r))[:, :, :w].flatten(1, 2)[:, :length]
