"""Import of every module of the package on this system: `make imports`.

A module may lack a package of an extra that is not installed, and nothing else. Prints the numbers of modules and of
those without their package.
"""

from __future__ import annotations

import importlib
import pkgutil

import longvit

EXTRAS = frozenset({"anndata", "idc_index_data", "timm", "triton"})


def import_all() -> tuple[int, list[str]]:
    """Number of modules, and those whose extra is not installed."""
    names = [
        one.name for one in pkgutil.walk_packages(longvit.__path__, "longvit.") if not one.name.endswith("__main__")
    ]
    without = []
    for name in names:
        try:
            importlib.import_module(name)
        except ModuleNotFoundError as error:
            if (error.name or "").partition(".")[0] not in EXTRAS:
                raise
            without.append(name)
    return len(names), without


if __name__ == "__main__":
    n, without = import_all()
    print(f"{n} modules, {len(without)} without their extra: {', '.join(without) or 'none'}")
