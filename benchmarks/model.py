"""Benchmark of LongViT-S against the authors' published code: whole model, separate processes, in turn.

    python benchmarks/model.py [--save] [--rounds 3] [--image 1024 4096] [--dtype float32 bfloat16]

Ratios of time: `speed` is published in the same dtype / ours, `speed_over_float32` published float32 / ours. Ratios of
memory: `memory` is ours / published as peak of the whole process, `memory_above_inputs` the same without the 0.3 GB of
libraries, weights and image. Rows `recompute` keep each layer's input and its attention only, on our side. Images above
2,048 px get a third of the rounds. One result file per image size.
"""

from __future__ import annotations

import argparse

from side_by_side import alternate, has_published, report, worker


def rows(image: int, dtype: str, rounds: int) -> list[dict[str, object]]:
    table = []
    for backward in (False, True):
        flags = ["--image", str(image), "--runs", "2" if image > 1024 else "5", *(["--backward"] if backward else [])]
        commands = {"ours": worker("ours", "model", *flags, "--dtype", dtype)}
        if backward:
            commands["recompute"] = worker("ours", "model", *flags, "--dtype", dtype, "--recompute")
        if has_published():
            commands["published"] = worker("published", "model", *flags, "--dtype", dtype)
            if dtype != "float32":
                commands["published float32"] = worker("published", "model", *flags)
        results = alternate(commands, rounds)
        published = results.get("published")
        for name in ("ours", "recompute"):
            if name not in results:
                continue
            r = results[name]
            row: dict[str, object] = {
                "what": ("forward + backward" if backward else "forward") + (", recompute" if name != "ours" else ""),
                "image_px": image,
                "dtype": dtype,
                "peak_mib": round(r["peak_mib"]),
            }
            if published:
                above = r["above_inputs_mib"] / published["above_inputs_mib"]
                row["memory_above_inputs"] = round(above, 3)
                row["speed"] = round(published["seconds"] / r["seconds"], 3)
                row["memory"] = round(r["peak_mib"] / published["peak_mib"], 3)
                row["published_peak_mib"] = round(published["peak_mib"])
            if wide := results.get("published float32"):
                row["speed_over_float32"] = round(wide["seconds"] / r["seconds"], 3)
            table.append(row)
    return table


def cosine(image: int) -> dict[str, object]:
    """Cosine of the embedding in bfloat16 to float32, for random weights and random pixels."""
    import torch

    import longvit

    torch.manual_seed(0)
    model = longvit.create_model("longvit_small_patch32").eval()
    pixels = torch.randint(0, 256, (1, 3, image, image), dtype=torch.uint8)
    with torch.inference_mode():
        wide = model(pixels)
        narrow = model.to(torch.bfloat16)(pixels).float()
    value = torch.cosine_similarity(wide, narrow).item()
    return {"what": "cosine of the embedding, bfloat16 to float32", "image_px": image, "cosine": round(value, 6)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--image", type=int, nargs="+", default=[1024, 4096])
    parser.add_argument("--dtype", nargs="+", default=["float32", "bfloat16"])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--save", action="store_true")
    args = parser.parse_args()
    for image in args.image:
        rounds = args.rounds if image <= 2048 else max(1, args.rounds // 3)
        table = [row for dtype in args.dtype for row in rows(image, dtype, rounds)]
        if "bfloat16" in args.dtype:
            table.append(cosine(image))
        report(f"model_{image}", table, args.save)


if __name__ == "__main__":
    main()
