"""`benchmarks/` on the path, as for a script that is started there."""

from __future__ import annotations

import pytest
from tests.conftest import ROOT


@pytest.fixture(autouse=True)
def benchmarks_on_the_path(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
