"""`longvit plan`: the formulas against what PyTorch counts on small models, the answer, one line per mistake."""

from __future__ import annotations

import gc
import json
import re
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch.profiler import ProfilerActivity, profile
from torch.utils.flop_counter import FlopCounterMode

import longvit
from longvit.cli import main
from longvit.errors import InputError
from longvit.model.longvit import SIZES, LongViT, LongViTConfig, segment_schedule
from longvit.plan import PlanSettings, plan
from longvit.plan.devices import CARDS
from longvit.plan.memory import Load, image_bytes, parameters, saved_bytes, training_memory
from longvit.plan.work import exchange, floor, forward_work, training_work

SMALL = LongViTConfig(embed_dim=64, depth=3, num_heads=4, ffn_dim=128, num_classes=3, grid_patches=8)
STEM = replace(SMALL, stem="conv", sub_norm=False, pool_norm="token_norm")
Captured = pytest.CaptureFixture[str]


def load_of(config: LongViTConfig, side_px: int, batch: int, dtype: str, recompute: bool) -> Load:
    rows = side_px // config.patch_px
    segments = segment_schedule(rows * rows)
    return Load(config, batch * rows * rows, batch * rows, segments[0], dtype, recompute)


def loss_of(model: LongViT, side_px: int, batch: int, dtype: str) -> torch.Tensor:
    images = torch.zeros(batch, 3, side_px, side_px, dtype=torch.uint8)
    with torch.autocast("cpu", torch.bfloat16, enabled=dtype == "bfloat16"):
        return F.cross_entropy(model(images), torch.zeros(batch, dtype=torch.long))


def peak_after(start: int, profiled: profile) -> tuple[int, int]:
    """(bytes alive at the end, most bytes alive) as PyTorch's allocator reports every tensor, kernels' own included."""
    assert profiled.profiler is not None
    events = [e for e in profiled.profiler.kineto_results.events() if e.name() == "[memory]"]
    alive = most = start
    for event in sorted(events, key=lambda e: e.start_ns()):
        alive += event.nbytes()
        most = max(most, alive)
    return alive, most


# --- memory ---------------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("classes", [0, 5])
@pytest.mark.parametrize(
    "config",
    [
        SMALL,
        STEM,
        SIZES["longvit_tiny_patch32"],
        SIZES["longvit_tiny_stem_patch32"],
        SIZES["longvit_small_patch32"],
    ],
)
def test_parameters_are_those_of_the_model(config: LongViTConfig, classes: int) -> None:
    model = LongViT(replace(config, num_classes=classes))
    assert parameters(model.config) == sum(p.numel() for p in model.parameters())


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize(("side_px", "batch"), [(256, 1), (320, 2), (1152, 1)])
@pytest.mark.parametrize("config", [SMALL, STEM], ids=["paper", "stem"])
def test_kept_tensors_are_those_that_autograd_keeps(
    config: LongViTConfig, side_px: int, batch: int, dtype: str
) -> None:
    """Every storage that autograd saves, parameters and what does not grow with the tokens apart: to the byte."""
    model = LongViT(config)
    own = {p.untyped_storage().data_ptr() for p in model.parameters()}
    kept: dict[int, torch.UntypedStorage] = {}

    def pack(x: torch.Tensor) -> torch.Tensor:
        if x.untyped_storage().data_ptr() not in own:
            kept[x.untyped_storage().data_ptr()] = x.untyped_storage()
        return x

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
        loss_of(model, side_px, batch, dtype)
    load = load_of(config, side_px, batch, dtype, recompute=False)
    per_token = sum(x.nbytes() for x in kept.values() if x.nbytes() >= load.tokens * SMALL.num_heads * 4)
    assert per_token == saved_bytes(load)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("recompute", [False, True])
@pytest.mark.parametrize(
    ("config", "side_px", "batch"),
    [
        (SMALL, 1152, 2),
        (SIZES["longvit_tiny_patch32"], 1024, 1),
        (STEM, 1024, 2),
        (SIZES["longvit_tiny_stem_patch32"], 1024, 1),
    ],
)
def test_peak_of_a_step_is_that_of_the_allocator(
    config: LongViTConfig, side_px: int, batch: int, recompute: bool, dtype: str
) -> None:
    model = LongViT(replace(config, num_classes=3))
    model.set_recompute(recompute)
    loss_of(model, 64, batch, dtype).backward()
    model.zero_grad()
    gc.collect()  # else the graph of the first step goes while the second one is counted
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as forward:
        loss = loss_of(model, side_px, batch, dtype)
    kept, peak_of_forward = peak_after(0, forward)
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as backward:
        loss.backward()
    _, peak = peak_after(kept, backward)
    memory = training_memory(load_of(model.config, side_px, batch, dtype, recompute))
    assert memory.saved == pytest.approx(kept, rel=0.01)
    assert memory.peak == pytest.approx(max(peak, peak_of_forward), rel=0.03)


# --- work -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("recompute", [False, True])
@pytest.mark.parametrize("config", [SMALL, STEM], ids=["paper", "stem"])
def test_flops_are_those_of_the_flop_counter(config: LongViTConfig, recompute: bool) -> None:
    model = LongViT(config)
    model.set_recompute(recompute)
    with FlopCounterMode(display=False) as counted_forward:
        loss = loss_of(model, 512, 2, "bfloat16")  # in float32 oneDNN's product is not known to the counter
    with FlopCounterMode(display=False) as counted_backward:
        loss.backward()
    forward = forward_work(config, 2, 256, segment_schedule(256))
    training = training_work(config, forward, 2 * 256, recompute=recompute)
    # beside them: head and the interpolation of the positions
    assert forward.flops == pytest.approx(counted_forward.get_total_flops(), rel=0.01)
    both = counted_forward.get_total_flops() + counted_backward.get_total_flops()
    assert training.flops == pytest.approx(both, rel=0.01)


def test_floors_of_a_whole_slide_are_those_of_the_design_note() -> None:
    """32,768² on an H200: 285 TFLOP, 0.63 s of exponentials, 0.36 s of matrix work (head dim 24 costs 32)."""
    config = SIZES["longvit_small_patch32"]
    work = forward_work(config, 1, 1 << 20, segment_schedule(1 << 20))
    assert work.flops == pytest.approx(285e12, rel=0.01)
    found = floor(work, config, CARDS["h200"], "bfloat16", 1)
    assert (round(found.exponentials_s, 2), round(found.matrix_s, 2)) == (0.63, 0.37)
    assert found.seconds == found.exponentials_s


def test_keys_that_travel_do_not_grow_with_the_sequence() -> None:
    config, segments = SIZES["longvit_small_patch32"], (1024, 4096, 8192, 16384, 32768)
    short, long = (exchange(config, 1, rows, 512, segments, 8, 2) for rows in (128, 512))
    # 8 ranks of 8,192 tokens: of 16,384 / 8 a half, of 32,768 / 16 three quarters come from others
    assert short.keys_and_values == 12 * 2 * 384 * 2 * (8192 // 8 + 24576 // 16)
    assert long.keys_and_values <= short.keys_and_values
    assert exchange(config, 1, 128, 512, segments, 1, 2).total == 0


# --- the answer -----------------------------------------------------------------------------------------------------


def test_what_does_not_fit_names_settings_that_do(capsys: Captured) -> None:
    words = ["plan", "--side-px", "32768", "--device", "v100-32gb", "--dtype", "float32", "--json"]
    assert main(words) == 1
    facts = json.loads(capsys.readouterr().out)
    assert not facts["fits"]
    fitting = [a for a in facts["alternatives"] if a["fits"]]
    assert fitting
    for found in fitting:
        again = PlanSettings(
            32768,
            device="v100-32gb",
            recompute=found["recompute"],
            offload=found["offload"],
            dtype=found["dtype"],
            batch_size=found["batch_size"],
            gpus=found["gpus"],
        )
        assert plan(again).fits
        assert plan(again).memory.total == found["total"]


def test_the_papers_machine_fits_and_the_lines_say_so(capsys: Captured) -> None:
    assert main(["plan", "--side-px", "32768", "--gpus", "8", "--gpu-gb", "32"]) == 0
    out = capsys.readouterr().out
    for words in (
        "1,048,576 patches",
        "22.9 M parameters",
        "fits",
        "keys and values",
        "TFLOP",
        "--sequence-ranks",
    ):
        assert words in out


def test_one_card_of_24_gb_takes_the_whole_slide_with_offload(capsys: Captured) -> None:
    words = ["plan", "--side-px", "32768", "--gpus", "1", "--gpu-gb", "24"]
    assert main(words) == 1
    assert re.search(r"recompute \+ offload +\d\d\.\d\d GiB: fits", capsys.readouterr().out)
    assert main([*words, "--recompute", "--offload"]) == 0


def test_offload_leaves_two_layers_on_the_card_and_the_rest_on_the_host() -> None:
    load = Load(SIZES["longvit_small_patch32"], 1 << 20, 1024, 1024, "bfloat16", recompute=True, device="cuda")
    stays, leaves = training_memory(load), training_memory(replace(load, offload=True))
    layer = (1 << 20) * (4 * 384 + 2 * 384 + 4 * 16)
    assert stays.saved - leaves.saved == 10 * layer + image_bytes(load)
    assert stays.host == 0
    assert leaves.host >= 11 * layer
    assert (
        training_memory(replace(load, offload=True, device="cpu")).peak
        == training_memory(replace(load, device="cpu")).peak
    )


def test_more_devices_and_recomputation_take_less() -> None:
    totals = [plan(PlanSettings(8192, gpus=n)).memory.total for n in (1, 2, 4, 8)]
    assert totals == sorted(totals, reverse=True)
    found = plan(PlanSettings(8192, recompute=True))
    assert found.memory is found.recomputed
    assert found.recomputed.total < found.plain.total
    assert found.recomputed.image == image_bytes(load_of(found.settings.config, 8192, 1, "bfloat16", True))


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--side-px", "1000"], "try 992"),
        (["--side-px", "0"], "try 32"),
        (["--side-px", "1024", "--gpus", "0"], "0 GPUs: at least 1"),
        (["--side-px", "1024", "--gpus", "64"], "32 rows of patches"),
        (["--side-px", "1024", "--gpu-gb", "0"], "above 0"),
        (["--side-px", "1024", "--batch-size", "-1"], "at least 1"),
        (["--side-px", "1024", "--device", "tpu"], "v100-32gb"),
        (["--side-px", "1024", "--model", "vit"], "longvit_small_patch32"),
        (["--side-px", "1024", "--dtype", "int8"], "bfloat16"),
        (["--side-px", "1024", "--offload"], "--recompute too"),
        (["--side-px", "1024", "--recompute", "--offload", "--gpus", "2"], "one device"),
        (["--side-px", "1024", "--recompute", "--offload", "--device", "cpu"], "no card"),
    ],
)
def test_a_question_that_has_no_answer_is_one_line(words: list[str], said: str, capsys: Captured) -> None:
    assert main(["plan", *words]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert said in error


def test_no_tensor_is_made_for_a_plan(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("a plan makes no model")

    monkeypatch.setattr(LongViT, "__init__", refuse)
    assert plan(PlanSettings(32768, gpus=8)).patches == 1 << 20
    with pytest.raises(InputError):
        PlanSettings(31)
    assert longvit.InputError is InputError
