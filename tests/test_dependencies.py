"""No release with a known fault that a file can reach is allowed or installed; a silent database is no clean one."""

from __future__ import annotations

import importlib.util
import sys
from types import ModuleType

import pytest
from packaging.requirements import Requirement

from tests.conftest import ROOT


@pytest.fixture(scope="module")
def audit() -> ModuleType:
    spec = importlib.util.spec_from_file_location("audit", ROOT / ".ci" / "audit.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["audit"] = module  # dataclasses look it up
    spec.loader.exec_module(module)
    return module


def test_pyproject_allows_no_release_with_a_known_fault(audit: ModuleType) -> None:
    assert audit.too_low(audit.declared(ROOT / "pyproject.toml")) == []


def test_no_release_with_a_known_fault_is_installed(audit: ModuleType) -> None:
    assert audit.too_old(audit.installed_packages(), audit.FIXED) == []
    assert audit.too_old(audit.libraries_inside(), audit.INSIDE_WHEELS) == []


def test_a_release_with_a_known_fault_is_named(audit: ModuleType) -> None:
    (line,) = audit.too_low([Requirement("openslide-bin>=4.0.0.6")])
    assert "CVE-2026-48977" in line
    assert audit.too_low([Requirement("openslide-bin")])
    (line,) = audit.too_old({"torch": "2.9.1+cpu", "pillow": "12.3.0"}, audit.FIXED)
    assert "torch 2.9.1+cpu" in line


def test_a_database_that_gives_no_answer_is_not_taken_for_a_clean_one(audit: ModuleType) -> None:
    silent = {"dependencies": [{"name": "pillow", "skip_reason": "not found"}, {"name": "torch", "skip_reason": "no"}]}
    for report in (silent, {"dependencies": []}, None):
        assert audit.verdict(report, "x")[0] == audit.NOT_ASKED
    clean = {"name": "pillow", "version": "12.3.0", "vulns": []}
    assert audit.verdict({"dependencies": [clean]}, "x")[0] == audit.CLEAN
    fault = {"name": "h5py", "version": "3.1", "vulns": [{"id": "CVE-1", "fix_versions": ["3.2"]}]}
    code, lines = audit.verdict({"dependencies": [clean, fault]}, "x")
    assert code == audit.FAULT
    assert "CVE-1" in lines[0]
