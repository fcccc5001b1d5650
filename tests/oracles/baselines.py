"""The systems of `longvit.baselines` in float64 NumPy, written from the papers' equations alone; loops, no tricks.

Nothing here is shared with the package but the names of its parameters: `w` is a state dict as arrays, `sub(w, name)`
what lies below a name. Dropout is off.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
Weights = dict[str, Array]


def sub(w: Weights, name: str) -> Weights:
    return {k[len(name) + 1 :]: v for k, v in w.items() if k.startswith(name + ".")}


def linear(x: Array, w: Weights) -> Array:
    """One vector (I,) → (O,)."""
    return w["weight"] @ x + w.get("bias", 0.0)


def relu(x: Array) -> Array:
    return np.where(x > 0, x, 0.0)


def elu(x: Array) -> Array:
    return np.where(x > 0, x, np.exp(np.minimum(x, 0)) - 1)


def sigmoid(x: Array) -> Array:
    return 1 / (1 + np.exp(-x))


def gelu(x: Array) -> Array:
    return 0.5 * x * (1 + np.vectorize(math.erf)(x / math.sqrt(2)))


def softmax(x: Array) -> Array:
    e = np.exp(x - x.max())
    return e / e.sum()


def layer_norm(x: Array, w: Weights, eps: float) -> Array:
    """One vector."""
    return (x - x.mean()) / np.sqrt(x.var() + eps) * w["weight"] + w["bias"]


def hidden(x: Array, w: Weights) -> Array:
    """Linear and ReLU of one vector, of a layer whose linear part is called 0."""
    return relu(linear(x, sub(w, "0")))


def gated_attention(h: list[Array], w: Weights) -> Array:
    """→ a (N,)."""
    scores = []
    for h_i in h:
        gate = np.tanh(linear(h_i, sub(w, "tanh.0"))) * sigmoid(linear(h_i, sub(w, "sigmoid.0")))
        scores.append(linear(gate, sub(w, "score"))[0])
    return softmax(np.array(scores))


def weighted_sum(a: Array, h: list[Array]) -> Array:
    total = np.zeros_like(h[0])
    for a_i, h_i in zip(a, h, strict=True):
        total = total + a_i * h_i
    return total


# --- omics and fusion -----------------------------------------------------------------------------------------------


def snn(x: Array, w: Weights) -> Array:
    """Blocks 0, 1, … of a linear layer and ELU."""
    block = 0
    while f"{block}.0.weight" in w:
        x = elu(linear(x, sub(w, f"{block}.0")))
        block += 1
    return x


def concat(h: Array, g: Array, w: Weights) -> Array:
    return relu(linear(relu(linear(np.concatenate([h, g]), sub(w, "layers.0"))), sub(w, "layers.2")))


def bilinear(h: Array, g: Array, w: Weights) -> Array:
    both = np.concatenate([h, g])
    sides = []
    for x, of in ((h, sub(w, "tiles")), (g, sub(w, "omics"))):
        gate = sigmoid(linear(both, sub(of, "gate.0")))
        sides.append(np.append(hidden(gate * relu(linear(x, sub(of, "narrow.0"))), sub(of, "out")), 1.0))
    product = np.array([a * b for a in sides[0] for b in sides[1]])
    return hidden(hidden(product, sub(w, "layers.0")), sub(w, "layers.1"))


def head(h: Array, w: Weights, omics: Array | None = None, fusion: str | None = None) -> Array:
    if omics is not None:
        g = snn(omics, sub(w, "omics"))
        h = {"concat": concat, "bilinear": bilinear}[fusion or ""](h, g, sub(w, "fusion"))
    return linear(h, sub(w, "classifier"))


# --- table 1 --------------------------------------------------------------------------------------------------------


def mean_pooling(x: Array, w: Weights, **omics) -> tuple[Array, None]:
    return head(sum(x) / len(x), sub(w, "head"), **omics), None


def mil(x: Array, w: Weights) -> tuple[Array, Array, int]:
    """→ logits, attention, the critical tile."""
    logits = [linear(hidden(x_i, sub(w, "phi")), sub(w, "instances")) for x_i in x]
    p = [softmax(s) for s in logits]
    chosen_by = np.array([q[1] if len(q) == 2 else max(q) for q in p])
    critical = max(range(len(x)), key=lambda i: chosen_by[i])
    return logits[critical], chosen_by / chosen_by.sum(), critical


def deep_sets(x: Array, w: Weights, pooling: str = "sum", **omics) -> tuple[Array, None]:
    total = np.zeros(len(w["phi.0.bias"]))
    for x_i in x:
        total = total + hidden(x_i, sub(w, "phi"))
    if pooling == "mean":
        total = total / len(x)
    return head(hidden(total, sub(w, "rho")), sub(w, "head"), **omics), None


def attention_mil(x: Array, w: Weights, **omics) -> tuple[Array, Array]:
    h = [hidden(x_i, sub(w, "phi")) for x_i in x]
    a = gated_attention(h, sub(w, "attention"))
    return head(hidden(weighted_sum(a, h), sub(w, "rho")), sub(w, "head"), **omics), a


def svm(scores: Array, target: int, margin: float, temperature: float) -> float:
    """Smooth top-1 SVM of one vector of scores."""
    total = 0.0
    for j, s in enumerate(scores):
        total += math.exp((s + margin * (j != target) - scores[target]) / temperature)
    return temperature * math.log(total)


def clam(x: Array, w: Weights, label: int, k: int, other_classes: bool, **omics) -> tuple[Array, Array, float]:
    """→ logits, a, the loss of the instances without its weight."""
    h = [hidden(x_i, sub(w, "phi")) for x_i in x]
    a = gated_attention(h, sub(w, "attention"))
    logits = head(weighted_sum(a, h), sub(w, "head"), **omics)
    order = sorted(range(len(x)), key=lambda i: -a[i])
    k = min(k, len(x) // 2)
    total = 0.0
    for c in range(len(logits)):
        if c != label and not other_classes:
            continue
        of_class = sub(w, f"instances.{c}")
        pairs = [(i, int(c == label)) for i in order[:k]]
        if c == label:
            pairs += [(i, 0) for i in order[len(x) - k :]]
        losses = [svm(linear(h[i], of_class), target, 1.0, 1.0) for i, target in pairs]
        total += sum(losses) / len(losses) if losses else 0.0
    return logits, a, total / len(logits) if other_classes else total


def dsmil(x: Array, w: Weights) -> tuple[Array, Array, list[int]]:
    """→ logits, a (N, C), the critical tile of each class."""
    scores = [linear(x_i, sub(w, "instances")) for x_i in x]
    q = [linear(x_i, sub(w, "q")) for x_i in x]
    v = [linear(x_i, sub(w, "v.1")) for x_i in x]
    classes = len(scores[0])
    critical = [max(range(len(x)), key=lambda i: scores[i][c]) for c in range(classes)]
    a = np.stack(
        [softmax(np.array([q_i @ q[critical[c]] for q_i in q]) / math.sqrt(len(q[0]))) for c in range(classes)]
    )
    b = [weighted_sum(a[c], v) for c in range(classes)]
    kernel, bias = w["bag.weight"], w["bag.bias"]
    logits = []
    for c in range(classes):
        bag = bias[c] + sum(kernel[c, other, d] * b[other][d] for other in range(classes) for d in range(len(v[0])))
        logits.append((bag + scores[critical[c]][c]) / 2)
    return np.array(logits), a.T, critical


def deepattnmisl(x: Array, clusters: list[int], w: Weights, phenotypes: int, **omics) -> tuple[Array, Array]:
    """→ logits, a over the phenotypes."""
    h = []
    for k in range(phenotypes):
        total, count = np.zeros(len(w["phi.0.0.0.bias"])), 0
        for x_i, c in zip(x, clusters, strict=True):
            if c == k:
                total, count = total + hidden(hidden(x_i, sub(w, f"phi.{k}.0")), sub(w, f"phi.{k}.1")), count + 1
        h.append(hidden(total / max(1, count), sub(w, "reduce")))
    a = gated_attention(h, sub(w, "attention"))
    return head(hidden(weighted_sum(a, h), sub(w, "rho")), sub(w, "head"), **omics), a


def nearest(points: Array, k: int) -> list[list[int]]:
    """For each point the k nearest others, or all of them where there are fewer."""
    found = []
    for i, p in enumerate(points):
        others = [j for j in range(len(points)) if j != i]
        found.append(sorted(others, key=lambda j: float(((points[j] - p) ** 2).sum()))[:k])
    return found


def gcn_mil(x: Array, neighbours: list[list[int]], w: Weights, layers: int, **omics) -> tuple[Array, Array]:
    h = list(x)
    for layer in range(layers):
        of = sub(w, f"convolutions.{layer}")
        new = []
        for i, near in enumerate(neighbours):
            total = h[i]
            for j in near:
                total = total + h[j]
            new.append(relu(linear(relu(linear(total, sub(of, "0"))), sub(of, "2"))))
        h = new
    a = gated_attention(h, sub(w, "attention"))
    return head(hidden(weighted_sum(a, h), sub(w, "rho")), sub(w, "head"), **omics), a


# --- attention of tokens --------------------------------------------------------------------------------------------


def attend(q: list[Array], k: list[Array], v: list[Array], heads: int) -> tuple[list[Array], Array]:
    """→ per query the values seen (heads side by side), weights (heads, queries, keys)."""
    width = len(q[0]) // heads
    out, weights = [], np.zeros((heads, len(q), len(k)))
    for i, q_i in enumerate(q):
        parts = []
        for h in range(heads):
            s = slice(h * width, (h + 1) * width)
            weights[h, i] = softmax(np.array([q_i[s] @ k_j[s] for k_j in k]) / math.sqrt(width))
            parts.append(weighted_sum(weights[h, i], [v_j[s] for v_j in v]))
        out.append(np.concatenate(parts))
    return out, weights


def multihead(q: list[Array], k: list[Array], w: Weights, heads: int) -> tuple[list[Array], Array]:
    """With PyTorch's names: in_proj, out_proj; the keys are the values."""
    d = len(q[0])
    parts = [
        {"weight": w["in_proj_weight"][i * d : (i + 1) * d], "bias": w["in_proj_bias"][i * d :][:d]} for i in range(3)
    ]
    projected = [[linear(x, part) for x in of] for of, part in zip((q, k, k), parts, strict=True)]
    out, weights = attend(*projected, heads)
    return [linear(x, sub(w, "out_proj")) for x in out], weights


def post_norm_transformer(x: list[Array], w: Weights, layers: int, heads: int) -> list[Array]:
    for layer in range(layers):
        of = sub(w, f"layers.{layer}")
        seen, _ = multihead(x, x, sub(of, "self_attn"), heads)
        x = [layer_norm(a + b, sub(of, "norm1"), 1e-5) for a, b in zip(x, seen, strict=True)]
        inner = [linear(relu(linear(a, sub(of, "linear1"))), sub(of, "linear2")) for a in x]
        x = [layer_norm(a + b, sub(of, "norm2"), 1e-5) for a, b in zip(x, inner, strict=True)]
    return x


def mcat(x: Array, signatures: list[Array], w: Weights, fusion: str) -> tuple[Array, Array]:
    h = [hidden(x_i, sub(w, "phi")) for x_i in x]
    genes = [snn(s, sub(w, f"signatures.{i}")) for i, s in enumerate(signatures)]
    seen, a = multihead(genes, h, sub(w, "coattention"), 1)
    sides = []
    for tokens, name in ((seen, "tiles"), (genes, "genes")):
        of = sub(w, name)
        tokens = post_norm_transformer(tokens, sub(of, "transformer"), 2, 8)
        sides.append(hidden(weighted_sum(gated_attention(tokens, sub(of, "attention")), tokens), sub(of, "rho")))
    fused = {"concat": concat, "bilinear": bilinear}[fusion](*sides, sub(w, "fusion"))
    return linear(fused, sub(w, "classifier")), a[0].mean(0)


# --- HIPT -----------------------------------------------------------------------------------------------------------


def cubic(t: float) -> float:
    """Keys' kernel with a = −0.75, as bicubic interpolation of positions takes it."""
    a, t = -0.75, abs(t)
    if t < 1:
        return (a + 2) * t**3 - (a + 3) * t**2 + 1
    return a * t**3 - 5 * a * t**2 + 8 * a * t - 4 * a if t < 2 else 0.0


def resized(grid: Array, size: int) -> Array:
    """(n, n, D) → (size, size, D) with the scale n / (size + 0.1); beyond the edge, the edge."""
    n = len(grid)
    matrix = np.zeros((size, n))
    for i in range(size):
        centre = (i + 0.5) * n / (size + 0.1) - 0.5
        for j in range(math.floor(centre) - 1, math.floor(centre) + 3):
            matrix[i, min(max(j, 0), n - 1)] += cubic(centre - j)
    return np.einsum("in,jm,nmd->ijd", matrix, matrix, grid)


def vit(tokens: list[Array], w: Weights, heads: int, there: list[bool] | None = None) -> Array:
    """DINO's transformer of a square of tokens → CLS; `there`: tokens that may be seen."""
    side = math.isqrt(len(tokens))
    positions = w["pos_embed"][0]
    grid = positions[1:].reshape(14, 14, -1)
    grid = grid if side == 14 else resized(grid, side)
    x = [w["cls_token"][0, 0] + positions[0]]
    x += [t + p for t, p in zip(tokens, grid.reshape(side * side, -1), strict=True)]
    if there is not None:  # a token that nobody sees may as well be gone
        x = [x[0]] + [t for t, is_there in zip(x[1:], there, strict=True) if is_there]
    block, d = 0, len(x[0])
    while f"blocks.{block}.norm1.weight" in w:
        of = sub(w, f"blocks.{block}")
        qkv = [linear(layer_norm(t, sub(of, "norm1"), 1e-6), sub(of, "attn.qkv")) for t in x]
        seen, _ = attend(*([t[i * d : (i + 1) * d] for t in qkv] for i in range(3)), heads)
        x = [t + linear(s, sub(of, "attn.proj")) for t, s in zip(x, seen, strict=True)]
        for i, t in enumerate(x):
            inner = gelu(linear(layer_norm(t, sub(of, "norm2"), 1e-6), sub(of, "mlp.fc1")))
            x[i] = t + linear(inner, sub(of, "mlp.fc2"))
        block += 1
    return layer_norm(x[0], sub(w, "norm"), 1e-6)


def hipt_slide(regions: list[Array], w: Weights, **omics) -> tuple[Array, Array]:
    """Features of regions → logits, a over them."""
    h = post_norm_transformer([hidden(r, sub(w, "phi")) for r in regions], sub(w, "transformer"), 2, 3)
    a = gated_attention(h, sub(w, "attention"))
    return head(hidden(weighted_sum(a, h), sub(w, "rho")), sub(w, "head"), **omics), a


# --- TransMIL -------------------------------------------------------------------------------------------------------


def pinv_by_iteration(m: Array, steps: int) -> Array:
    n = len(m)
    one = max(sum(abs(m[i, j]) for i in range(n)) for j in range(n))
    infinity = max(sum(abs(m[i, j]) for j in range(n)) for i in range(n))
    z, eye = m.T / (one * infinity), np.eye(n)
    for _ in range(steps):
        mz = m @ z
        z = 0.25 * z @ (13 * eye - mz @ (15 * eye - mz @ (7 * eye - mz)))
    return z


def rows_softmax(x: Array) -> Array:
    return np.stack([softmax(row) for row in x])


def nystrom(x: list[Array], w: Weights, heads: int, landmarks: int, steps: int) -> tuple[list[Array], Array]:
    """→ out, mean over the heads of the matrix that stands for the softmax (S, S)."""
    n, d = len(x), len(x[0])
    missing = (landmarks - n % landmarks) % landmarks
    padded = [np.zeros(d)] * missing + list(x)
    qkv = np.stack([linear(t, sub(w, "qkv")) for t in padded])
    width, stretch = d // heads, len(padded) // landmarks
    out, seen = np.zeros((len(padded), d)), np.zeros((len(padded), len(padded)))
    for h in range(heads):
        q, k, v = (qkv[:, part * d + h * width : part * d + (h + 1) * width] for part in range(3))
        q_mean, k_mean = (
            np.stack([t[i * stretch : (i + 1) * stretch].mean(0) for i in range(landmarks)]) for t in (q, k)
        )
        scale = 1 / math.sqrt(width)
        f, m, b = (rows_softmax(l @ r.T * scale) for l, r in ((q, k_mean), (q_mean, k_mean), (q_mean, k)))
        matrix = f @ pinv_by_iteration(m, steps) @ b
        seen += matrix / heads
        kernel = w["residual.weight"][h, 0, :, 0]
        of_head = matrix @ v
        for i in range(len(padded)):
            for j, weight in enumerate(kernel):
                at = i + j - len(kernel) // 2
                if 0 <= at < len(padded):
                    of_head[i] += weight * v[at]
        out[:, h * width : (h + 1) * width] = of_head
    return [linear(o, sub(w, "out.0")) for o in out[missing:]], seen[missing:, missing:]


def ppeg(x: list[Array], w: Weights) -> list[Array]:
    side = math.isqrt(len(x) - 1)
    grid = np.stack(x[1:]).reshape(side, side, -1)
    total = grid.copy()
    for number in range(3):
        kernel, bias = w[f"convolutions.{number}.weight"], w[f"convolutions.{number}.bias"]
        reach = kernel.shape[-1] // 2
        for r in range(side):
            for c in range(side):
                total[r, c] += bias
                for dr in range(-reach, reach + 1):
                    for dc in range(-reach, reach + 1):
                        if 0 <= r + dr < side and 0 <= c + dc < side:
                            total[r, c] += kernel[:, 0, dr + reach, dc + reach] * grid[r + dr, c + dc]
    return [x[0], *total.reshape(side * side, -1)]


def transmil(x: Array, w: Weights, heads: int, landmarks: int, steps: int) -> tuple[Array, Array]:
    """→ logits, the tiles' shares of the attention."""
    n = len(x)
    h = [hidden(x_i, sub(w, "phi")) for x_i in x]
    side = math.ceil(math.sqrt(n))
    h = [w["cls_token"][0], *h, *h[: side * side - n]]
    for layer in range(2):
        normed = [layer_norm(t, sub(w, f"norms.{layer}"), 1e-5) for t in h]
        seen, matrix = nystrom(normed, sub(w, f"attentions.{layer}"), heads, landmarks, steps)
        h = [a + b for a, b in zip(h, seen, strict=True)]
        if layer == 0:
            h = ppeg(h, sub(w, "ppeg"))
    row = np.maximum(matrix[0, 1:], 0)
    a = np.array([row[i] + (row[n + i] if n + i < len(row) else 0.0) for i in range(n)])
    return head(layer_norm(h[0], sub(w, "norm"), 1e-5), sub(w, "head")), a / a.sum()
