"""The authors' model in DINO's wrapping, in a process of its own (their code puts modules of other names in place).

python authors_model.py PEERS save FILE OUT   writes FILE as `main_dino.py` does, from random weights
python authors_model.py PEERS load FILE OUT   loads FILE, every name in its place

OUT (safetensors): float64 pixels of two sizes, already normalised, and for each the embedding and the head's output of
teacher and student.
"""

from __future__ import annotations

import argparse
import sys

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

SIDES_PX = (128, 64)
DIM, HIDDEN, BOTTLENECK, PROTOTYPES = 48, 24, 8, 40


class Backbone(nn.Module):
    """Tokens of the authors' LongViT, LayerNorm, mean; the names are those of their pretraining code."""

    def __init__(self) -> None:
        super().__init__()
        import peer

        ratios = {"dilated_ratio": "[1, 2, 4]"}
        model = peer.longvit(128, (16, 64, 256), patch_size=8, embed_dim=DIM, depth=3, num_heads=4, **ratios)
        for name, child in model.named_children():
            setattr(self, name, child)
        self.pos_embed = model.pos_embed
        self.norm = nn.LayerNorm(DIM, eps=1e-6)
        self.tokens = [model]  # a list: no child, so no second set of names

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.tokens[0](x)).mean(1)


class Head(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        layers = [nn.Linear(DIM, HIDDEN), nn.GELU(), nn.Linear(HIDDEN, HIDDEN), nn.GELU()]
        self.mlp = nn.Sequential(*layers, nn.Linear(HIDDEN, BOTTLENECK))
        self.last_layer = nn.utils.weight_norm(nn.Linear(BOTTLENECK, PROTOTYPES, bias=False))
        self.last_layer.weight_g.data.fill_(1)

    def forward(self, x: Tensor) -> Tensor:
        return self.last_layer(nn.functional.normalize(self.mlp(x), dim=-1))


class Network(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.backbone, self.head = Backbone(), Head()


class Parallel(nn.Module):
    """Prefixes the names as DistributedDataParallel does."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module


def main(what: str, path: str, out: str) -> None:
    torch.manual_seed(1)
    teacher, student, center = Network(), Parallel(Network()), torch.randn(1, PROTOTYPES)
    if what == "save":
        with torch.no_grad():
            for name, p in [*teacher.named_parameters(), *student.named_parameters()]:
                if not name.endswith("weight_g"):
                    p.add_(torch.randn_like(p) * 0.1)
        optimizer = torch.optim.AdamW(student.parameters())
        sum(p.sum() for p in student.parameters()).backward()
        optimizer.step()
        student.module.head.last_layer.weight_g.data.fill_(1)
        content = {"student": student.state_dict(), "teacher": teacher.state_dict(), "epoch": 7}
        content |= {"optimizer": optimizer.state_dict(), "dino_loss": {"center": center}}
        torch.save({**content, "args": argparse.Namespace(arch="vit_small", lr=5e-4)}, path)
    else:
        content = torch.load(path, map_location="cpu", weights_only=True)
        student.load_state_dict(content["student"], strict=True)
        teacher.load_state_dict(content["teacher"], strict=True)
        center = content["dino_loss"]["center"]
    found = {"center": center}
    for side_px in SIDES_PX:
        found[f"pixels_{side_px}"] = x = torch.randn(2, 3, side_px, side_px, dtype=torch.float64)
        for name, network in (("teacher", teacher), ("student", student.module)):
            network.double().eval()
            with torch.no_grad():
                found[f"{name}_embedding_{side_px}"] = embedding = network.backbone(x)
                found[f"{name}_output_{side_px}"] = network.head(embedding)
    save_file(found, out)


if __name__ == "__main__":
    sys.path.insert(0, sys.argv[1])
    main(*sys.argv[2:])
