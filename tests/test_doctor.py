"""The doctor: what is there and why, and a self-test that notices wrong numbers."""

from __future__ import annotations

import json
from importlib import metadata
from pathlib import Path

import numpy as np
import pytest
import torch

import longvit.attention
import longvit.device
from longvit import doctor
from longvit.cli import main
from longvit.model import fused_norms
from tests.oracles.dilated import dilated_attention as oracle


def verdicts(findings: tuple[doctor.Finding, ...]) -> dict[tuple[str, str], str]:
    return {(finding.section, finding.name): finding.verdict for finding in findings}


def test_all_is_well_here(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor"]) == 0
    text = capsys.readouterr().out
    for word in ("torch", "OpenSlide", "attention", "self-test", "all is well", "threads"):
        assert word in text


def test_json_is_json_and_says_why(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor", "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["ok"] is True
    found = {(f["section"], f["name"]): f["text"] for f in report["findings"]}
    assert "kernel" in found["attention", "cpu float32"] or "cuda" in str(found)
    assert "DICOM" in found["readers", "openslide"]


def test_fused_norms_and_graphs_are_named_with_the_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    def told() -> dict[str, tuple[str, str]]:
        return {f.name.split(",")[0]: (f.verdict, f.text) for f in doctor._guarded(doctor._kernels)}

    assert told()["CUDA graphs"] == ("ok", "no: the model is on cpu, graphs are for cuda")
    assert told()["fused norms"] == ("ok", "no: the kernels are for cards, the model is on cpu")
    monkeypatch.setenv("LONGVIT_GRAPHS", "0")
    assert told()["CUDA graphs"] == ("ok", "no: LONGVIT_GRAPHS=0")
    monkeypatch.setenv("LONGVIT_FUSED", "0")
    assert told()["fused norms"] == ("ok", "no: LONGVIT_FUSED=0")
    monkeypatch.delenv("LONGVIT_GRAPHS")
    monkeypatch.delenv("LONGVIT_FUSED")
    card = longvit.device.Device(torch.device("cuda"), "card", "")
    monkeypatch.setattr(longvit.device, "pick_device", lambda name: card)
    monkeypatch.setattr(fused_norms, "_cannot", lambda *_: None)
    assert told()["CUDA graphs"] == ("ok", "yes: in embed and predict, up to 65,536 patches are one launch")
    assert told()["fused norms"] == ("ok", "yes: one pass over memory instead of three to six")
    monkeypatch.setenv("LONGVIT_GRAPHS", "yes")
    assert [f.verdict for f in doctor._guarded(doctor._kernels)] == ["wrong"]


def test_wrong_numbers_of_the_model_are_noticed(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import longvit.model.feedforward as feedforward

    monkeypatch.setattr(feedforward.FeedForward, "forward", lambda self, x: x * 0.01)
    assert main(["doctor"]) == 1
    assert "1 thing is wrong" in capsys.readouterr().out


def test_wrong_numbers_of_the_attention_are_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    real = longvit.attention.dilated_attention

    def detached(*tensors: torch.Tensor, **settings: object) -> torch.Tensor:
        return real(*tensors, **{**settings, "gradient": "detached"})  # type: ignore[arg-type]

    monkeypatch.setattr(longvit.attention, "dilated_attention", detached)
    assert doctor.attention_test().verdict == "wrong"


def test_a_missing_package_is_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    version = metadata.version

    def without_h5py(name: str) -> str:
        if name == "h5py":
            raise metadata.PackageNotFoundError(name)
        return version(name)

    monkeypatch.setattr(metadata, "version", without_h5py)
    assert verdicts(doctor.examine())["versions", "h5py"] == "wrong"


def test_a_part_that_raises_is_a_finding_not_a_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    import longvit.slides.slide_info as describe

    def broken() -> None:
        raise ImportError("libopenslide.so.1: cannot open\nshared object file")

    monkeypatch.setattr(describe, "describe_readers", broken)
    findings = doctor.examine()
    (wrong,) = [finding for finding in findings if finding.verdict == "wrong"]
    assert wrong.section == "readers"
    assert "libopenslide.so.1: cannot open shared object file" in wrong.text


def test_the_definition_of_the_self_test_is_that_of_the_oracle() -> None:
    torch.manual_seed(0)
    q, k, v = torch.randn(3, 1, 53, 6, 5, dtype=torch.float64)
    segments, ratios = (7, 20, 53), (1, 3, 4)
    ours = doctor.attention_by_definition(q[0], k[0], v[0], segments, ratios)
    torch.testing.assert_close(ours, oracle(q, k, v, segments, ratios)[0], rtol=0, atol=1e-12)


def test_the_stored_embedding_is_that_of_float64() -> None:
    model = doctor.formula_model().double()
    image = torch.from_numpy(doctor.formula_image()).permute(2, 0, 1)[None]
    with torch.no_grad():
        exact = model.forward_head(model.forward_features(image), pre_logits=True)[0].numpy()
    np.testing.assert_allclose(exact[: len(doctor.GOLDEN_EMBEDDING)], doctor.GOLDEN_EMBEDDING, atol=1e-8)
    # a fraction of the tolerance, so that the doctor does not cry over another processor
    assert np.abs(doctor.formula_embedding() - exact).max() < doctor.GOLDEN_TOLERANCE / 20


def test_a_folder_that_is_not_writable_is_a_note(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor.os, "access", lambda *_: False)
    (disk,) = [finding for finding in doctor.examine(tmp_path) if finding.section == "disk"]
    assert disk.verdict == "note"
    assert "not writable" in disk.text
