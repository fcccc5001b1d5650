"""The encoder as a CUDA graph: when it records and replays, and that its results are those of the model."""

from __future__ import annotations

import gc
import logging
import threading
import weakref

import numpy as np
import pytest
import torch
from torch import Tensor

from longvit import interpret
from longvit.model import cuda_graph
from longvit.model.longvit import LongViT, LongViTConfig

CONFIG = LongViTConfig(embed_dim=32, depth=2, num_heads=4, ffn_dim=48, num_classes=3, grid_patches=4)


def image(side_px: int = 96) -> np.ndarray:
    return np.random.default_rng(side_px).integers(0, 256, (side_px, side_px, 3), dtype=np.uint8)


def embedded(model: LongViT, side_px: int = 96, batch: int = 1) -> Tensor:
    images = torch.from_numpy(image(side_px)).permute(2, 0, 1).expand(batch, -1, -1, -1)
    return model.patch_embed(images).detach()


@pytest.fixture
def model() -> LongViT:
    return LongViT(CONFIG).eval()


class Recordings:
    """Replaces `Recorded` on a CPU: calls the function again."""

    def __init__(self) -> None:
        self.made: list[tuple[int, ...]] = []
        self.replays = 0
        self.failing: RuntimeError | None = None

    def __call__(self, step, x: Tensor):
        self.made.append(tuple(x.shape))
        if self.failing:
            raise self.failing
        config = CONFIG
        twin = LongViT(config).eval()
        twin.load_state_dict(step.__self__.state_dict())  # no reference to the model, as a graph has none

        def replay(x: Tensor) -> Tensor:
            self.replays += 1
            return twin.encode(x)

        return replay


@pytest.fixture
def recordings(monkeypatch) -> Recordings:
    """Recordings as on a card."""
    recordings = Recordings()
    monkeypatch.setattr(cuda_graph, "Recorded", recordings)
    against_device = cuda_graph._against_device
    monkeypatch.setattr(cuda_graph, "_against_device", lambda device: against_device(torch.device("cuda")))
    return recordings


def test_embed_and_predict_replay_and_give_the_bits_of_the_model(model, recordings, monkeypatch) -> None:
    pixels = image()
    results = {}
    for choice in ("0", "auto", "1"):
        monkeypatch.setenv("LONGVIT_GRAPHS", choice)
        results[choice] = model.embed(pixels), interpret.tokens_of(model, pixels)[0]
        if choice == "0":
            assert not recordings.made
    assert recordings.made == [(1, 9, 32)]
    assert recordings.replays == 4
    for embedding, tokens in results.values():
        np.testing.assert_array_equal(embedding, results["0"][0])
        assert torch.equal(tokens, results["0"][1])


def test_slides_as_strips_replay_too(model, recordings) -> None:
    class Slide:
        def strips(self, side_px, fit, *, strip_px):
            class Strip:
                pixels = image(side_px)

            yield Strip

    side_px = CONFIG.image_px
    x = LongViT(CONFIG).eval()
    np.testing.assert_array_equal(x.embed(Slide()), x.embed(image(side_px)))
    assert recordings.made == [(1, (side_px // 32) ** 2, 32)]


def test_one_recording_per_shape_mode_and_place_of_the_weights(model, recordings, monkeypatch) -> None:
    small, large = embedded(model, 64), embedded(model, 96)

    def made_by(x: Tensor) -> int:
        before = len(recordings.made)
        cuda_graph.encode(model, x)
        return len(recordings.made) - before

    with torch.no_grad():
        for x in (small, large, small, large):
            assert torch.equal(cuda_graph.encode(model, x), model.encode(x))
        assert recordings.made == [(1, 4, 32), (1, 9, 32)]
        assert made_by(embedded(model, 64, batch=2))  # another batch size
        with torch.autocast("cpu", torch.bfloat16):
            assert made_by(small)
        with torch.inference_mode():
            assert made_by(small)
        monkeypatch.setenv("LONGVIT_ATTENTION", "plain")
        assert made_by(small)
        model.blocks[0].mlp.fc1.weight.mul_(0.5)  # in place: the graph reads the new values
        assert not made_by(small)
        model.blocks[0].mlp.fc1.weight.data = model.blocks[0].mlp.fc1.weight.data.clone()
        assert made_by(small)
        was = torch.get_float32_matmul_precision()
        torch.set_float32_matmul_precision("high")
        assert made_by(small)
        torch.set_float32_matmul_precision(was)
        model.config = LongViTConfig(**vars(CONFIG) | {"segment_lengths": (2, 4, 4, 4, 4)})  # other keys attended
        assert made_by(small)


def test_few_graphs_hold_memory_and_a_large_image_frees_it(model, recordings, monkeypatch) -> None:
    monkeypatch.setattr(cuda_graph, "GRAPHS", 2)
    monkeypatch.setattr(cuda_graph, "MOST_PATCHES", 16)
    with torch.no_grad():
        for side in (64, 96, 64, 128, 64, 96):
            cuda_graph.encode(model, embedded(model, side))
            assert cuda_graph.recorded(model) <= 2
        assert [n for _, n, _ in recordings.made] == [4, 9, 16, 9]
        x = embedded(model, 160)
        assert torch.equal(cuda_graph.encode(model, x), model.encode(x))
    assert len(recordings.made) == 4
    assert cuda_graph.recorded(model) == 0
    monkeypatch.setenv("LONGVIT_GRAPHS", "1")  # at any size
    with torch.no_grad():
        cuda_graph.encode(model, x)
        cuda_graph.encode(model, x)
    assert recordings.made[4:] == [(1, 25, 32)]


@pytest.mark.parametrize("error", [RuntimeError("not permitted when stream is capturing\nmore"), RuntimeError("")])
def test_a_failed_recording_is_one_line_and_the_model_runs_without(model, recordings, caplog, error) -> None:
    recordings.failing = error
    with torch.no_grad(), caplog.at_level(logging.WARNING):
        for side in (96, 96, 64):
            x = embedded(model, side)
            assert torch.equal(cuda_graph.encode(model, x), model.encode(x))
    assert len(recordings.made) == 1
    (line,) = [r.getMessage() for r in caplog.records]
    assert line.endswith("the model runs without: " + (str(error).split("\n")[0] or "RuntimeError"))


def test_a_failed_recording_that_was_requested_is_an_error(model, recordings, monkeypatch) -> None:
    monkeypatch.setenv("LONGVIT_GRAPHS", "1")
    recordings.failing = RuntimeError("out of memory")
    with pytest.raises(ValueError, match=r"^LONGVIT_GRAPHS=1, but it cannot be recorded: out of memory$"):
        model.embed(image())


def test_gradients_training_and_hooks_run_the_model_without_a_graph(model, recordings) -> None:
    seen = []
    x = embedded(model)
    cuda_graph.encode(model, x).sum().backward()
    assert model.blocks[0].mlp.fc1.weight.grad is not None
    with torch.no_grad():
        cuda_graph.encode(model.train(), x)
        hook = model.eval().blocks[1].mlp.register_forward_hook(lambda *args: seen.append(args))
        cuda_graph.encode(model, x)
        hook.remove()
        every = torch.nn.modules.module.register_module_forward_pre_hook(lambda *args: seen.append(args))
        cuda_graph.encode(model, x)
        every.remove()
        assert not recordings.made
        assert len(seen) > 2
        cuda_graph.encode(model, x)
    assert recordings.made


def test_ranks_and_other_devices_run_the_model_without_a_graph(monkeypatch, caplog) -> None:
    assert "on cpu" in cuda_graph.against(torch.device("cpu"))
    assert "on mps" in cuda_graph.against(torch.device("mps"))
    card = torch.device("cuda")
    assert cuda_graph.against(card, cuda_graph.MOST_PATCHES) == ""
    assert "65,537 patches" in cuda_graph.against(card, cuda_graph.MOST_PATCHES + 1)
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    assert "ranks" in cuda_graph.against(card)
    LongViT(CONFIG).embed(image())
    assert not caplog.records  # no warning


@pytest.mark.parametrize(
    ("value", "message"),
    [("yes", "^LONGVIT_GRAPHS must be 0, 1 or auto, got 'yes'$"), ("1", "^LONGVIT_GRAPHS=1, but the model is on cpu")],
)
def test_an_impossible_setting_is_one_line(model, monkeypatch, value, message) -> None:
    monkeypatch.setenv("LONGVIT_GRAPHS", value)
    with pytest.raises(ValueError, match=message):
        model.embed(image())


def test_the_graphs_are_freed_with_their_model(recordings) -> None:
    model = LongViT(CONFIG).eval()
    model.embed(image())
    (graphs,) = [weakref.ref(g) for m, g in cuda_graph._GRAPHS.items() if m is model]
    gone = weakref.ref(model)
    del model
    gc.collect()
    assert gone() is None
    assert graphs() is None


def test_one_thread_at_a_time_uses_the_one_input_of_a_graph(model, monkeypatch, recordings) -> None:
    free = []

    def record(step, x: Tensor):
        def replay(x: Tensor) -> Tensor:
            thread = threading.Thread(target=lambda: free.append(cuda_graph._LOCK.acquire(blocking=False)))
            thread.start()
            thread.join()
            return step(x)

        return replay

    monkeypatch.setattr(cuda_graph, "Recorded", record)
    model.embed(image())
    assert free == [False]
    assert cuda_graph._LOCK.acquire(blocking=False)  # and released afterwards
    cuda_graph._LOCK.release()


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [None, torch.bfloat16])
@pytest.mark.parametrize("side_px", [96, 1024])
def test_a_graph_gives_the_bits_of_the_model(side_px: int, dtype: torch.dtype | None) -> None:
    model = LongViT(CONFIG).eval().cuda()
    with torch.inference_mode(), torch.autocast("cuda", dtype, enabled=dtype is not None):
        for seed in range(3):
            x = torch.randn(1, (side_px // 32) ** 2, 32, generator=torch.Generator().manual_seed(seed)).cuda()
            assert torch.equal(cuda_graph.encode(model, x), model.encode(x))
    assert cuda_graph.recorded(model) == 1


@pytest.mark.gpu
def test_an_operation_that_cannot_be_recorded_leaves_the_card_usable(caplog) -> None:
    model = LongViT(CONFIG).eval().cuda()
    encode = model.encode

    def waits(x: Tensor) -> Tensor:
        x.sum().item()
        return encode(x)

    model.encode = waits  # type: ignore[method-assign]
    x = torch.randn(1, 9, 32).cuda()
    with torch.inference_mode():
        for _ in range(2):
            assert torch.equal(cuda_graph.encode(model, x), encode(x))
    assert len(caplog.records) == 1
