"""`longvit plan`"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter

from longvit.cli.options import AsJson

if TYPE_CHECKING:
    from longvit.plan import Plan


def plan(
    *,
    side_px: Annotated[int, Parameter(help="Side of the canvas, a multiple of 32.")],
    gpus: Annotated[int, Parameter(help="Devices that share each image (sequence parallelism).")] = 1,
    gpu_gb: Annotated[
        float | None, Parameter(help="Memory of one device, in GiB. Default: what --device has.", show_default=False)
    ] = None,
    model: Annotated[
        str,
        Parameter(
            help="longvit_tiny_patch32, longvit_small_patch32 or longvit_base_patch32; with a convolutional stem "
            "longvit_tiny_stem_patch32, longvit_small_stem_patch32 or longvit_base_stem_patch32."
        ),
    ] = "longvit_small_patch32",
    dtype: Annotated[
        str, Parameter(help="float32, bfloat16 or float16; parameters and optimiser are float32.")
    ] = "bfloat16",
    batch_size: Annotated[int, Parameter(help="Images per forward pass, over all devices.")] = 1,
    recompute: Annotated[bool, Parameter(help="Recompute each layer in backward.")] = False,
    offload: Annotated[
        bool, Parameter(help="With --recompute: keep the layers' stored tensors in host memory until backward.")
    ] = False,
    device: Annotated[
        str,
        Parameter(help="h100, h200, a100-80gb, v100-32gb, or cpu (this machine, with a short timing)."),
    ] = "h100",
    as_json: AsJson = False,
) -> int:
    """Estimate memory, communication, arithmetic and least time of a training step, without running it.

    Exit code 0 if the step fits into memory, 1 if not. It then lists settings with which it fits.

    **Examples**

    ```
    longvit plan --side-px 32768 --gpus 8 --gpu-gb 32
    longvit plan --side-px 32768 --gpus 1 --gpu-gb 24 --recompute --offload
    longvit plan --side-px 16384 --device v100-32gb --dtype float16 --recompute
    longvit plan --side-px 4096 --device cpu --dtype float32 --json
    ```
    """
    from longvit.plan import PlanSettings
    from longvit.plan import plan as plan_step

    step = plan_step(
        PlanSettings(
            side_px=side_px,
            gpus=gpus,
            gpu_gb=gpu_gb,
            model=model,
            dtype=dtype,
            batch_size=batch_size,
            recompute=recompute,
            offload=offload,
            device=device,
        )
    )
    print(json.dumps(plan_json(step), indent=1, ensure_ascii=False) if as_json else "\n".join(plan_lines(step)))
    return 0 if step.fits else 1


def plan_json(plan: Plan) -> dict[str, Any]:
    """The plan as JSON values: bytes, FLOPs, seconds."""
    import dataclasses

    values = dataclasses.asdict(plan)
    values["fits"] = plan.fits
    for name in ("plain", "recomputed", "offloaded"):
        if values[name] is not None:
            values[name]["total"] = getattr(plan, name).total
    for name in ("forward_floor", "training_floor"):
        values[name]["seconds"] = getattr(plan, name).seconds
    return values


def plan_lines(plan: Plan) -> list[str]:
    """Formats a plan as text, one quantity per line."""
    from longvit.plan.feasibility import EXISTS

    s, moved = plan.settings, plan.exchange
    ways = {"kept layers": plan.plain, "recomputed": plan.recomputed, "offloaded": plan.offloaded}
    memories = {name: memory for name, memory in ways.items() if memory}
    rows = s.side_px // s.config.patch_px
    branches = zip(plan.segment_lengths, s.config.dilated_ratios, strict=True)
    shape = f"{rows:,} × {rows:,}" + (f", {s.batch_size} images" if s.batch_size > 1 else "")
    lines = [
        ("image", f"{s.side_px:,} × {s.side_px:,} px: {plan.patches:,} patches ({shape})"),
        ("model", f"{s.model}: {plan.parameters / 1e6:.1f} M parameters, {s.dtype}"),
        ("segments", " ".join(f"{w:,}/{r}" for w, r in branches)),
        ("devices", f"{s.gpus} × {plan.device.name}, {_size(plan.budget)} each for tensors"),
        ("", ""),
        ("memory per device", "  ".join(f"{name:>12}" for name in memories)),
    ]
    for name, field in (
        ("  parameters", "parameters"),
        ("  gradients", "gradients"),
        ("  optimiser", "optimizer"),
        ("  kept for backward", "saved"),
        ("  peak of the step", "total"),
        ("  forward pass alone", "inference"),
    ):
        lines += [(name, "  ".join(f"{_size(getattr(m, field)):>12}" for m in memories.values()))]
    if plan.offloaded:
        lines += [("  on the host", f"{_size(plan.offloaded.host)}, page-locked (offloaded), per device")]
    lines += [
        ("  the peak is in", "; ".join(m.moment for m in memories.values())),
        ("", ""),
        ("between devices", f"{_size(moved.total)} received per device and step" if s.gpus > 1 else "nothing"),
    ]
    if s.gpus > 1:
        lines += [
            ("  keys and values", _size(moved.keys_and_values)),
            ("  their gradients", _size(moved.their_gradients)),
            ("  parameters' gradients", _size(moved.parameter_gradients)),
        ]
    lines += [("", ""), ("arithmetic", f"floor on {s.gpus} × {plan.device.name} ({plan.device.source})")]
    for name, work, floor in (
        ("  forward", plan.forward, plan.forward_floor),
        ("  training step", plan.training, plan.training_floor),
    ):
        limits = f"matrix products {floor.matrix_s:.3g} s, exponentials {floor.exponentials_s:.3g} s"
        lines += [(name, f"{work.flops / 1e12:,.4g} TFLOP; at least {floor.seconds:.3g} s ({limits})")]
    lines += [
        ("", ""),
        ("fits" if plan.fits else "does not fit", f"{_size(plan.memory.total)} of {_size(plan.budget)}"),
    ]
    for a in plan.alternatives[1:]:
        lines += [(f"  {' + '.join(a.changes)}", f"{_size(a.total)}: {'fits' if a.fits else 'does not fit'}")]
    if plan.cards:
        enough = (f"{gb} GiB: {way or 'too small'}" for gb, way in plan.cards.items())
        lines += [("cards", f"{s.gpus} of {s.dtype}, " + "; ".join(enough))]
    names = ("recompute", "offload", "dtype", "batch_size")
    lines += [("today", "; ".join(f"{name}: {EXISTS[name]}" for name in names))]
    lines += [("note", note) for note in plan.notes]
    width = max(len(name) for name, _ in lines)
    return [f"{name:<{width}}  {value}".rstrip() for name, value in lines]


def _size(size_bytes: int) -> str:
    return f"{size_bytes / 2**30:,.2f} GiB"
