"""Recipes, what runs leave in JSON, and tables, that mean harm or are damaged."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from tests.faults.hostile_cases import CANARY, CASES, Case, written


def _recipe(name: str, text: str | bytes, *, good: bool = False) -> None:
    CASES.append(Case("recipe", name, lambda folder: written(folder / "r.yaml", text), good))


_recipe("whole", "epochs: 3\nlr: 1.0e-4\nsplit: [0.5, 0.2, 0.3]\nbalanced: true\n", good=True)
_recipe("empty", "", good=True)
_recipe("null", "epochs: null\n", good=True)
_recipe("the largest seed", f"seed: {2**31 - 1}\n", good=True)
_recipe("a prime of slides", "batch_size: 2147483647\n", good=True)
for _name, _text in {
    "a list for a key": "? [a, b]\n: 1\n",
    "a map for a key": "? {a: 1}\n: 1\n",
    "a number for a key": "3: 4\n",
    "null for a key": "~: 4\n",
    "5,000 brackets": "epochs: " + "[" * 5000,
    "3,000 braces": "{" * 3000,
    "closed brackets": "epochs: " + "[" * 3000 + "]" * 3000,
    "5,000 dashes": "- " * 5000,
    "5,000 keys deep": "".join(" " * i + "a:\n" for i in range(3000)),
    "a list in itself": "epochs: &a [*a]\n",
    "a map in itself": "&a a: *a\n",
    "a billion laughs": "a: &a [x,x,x,x,x,x,x,x,x]\n"
    + "".join(f"{chr(98 + i)}: &{chr(98 + i)} [{','.join(['*' + chr(97 + i)] * 9)}]\n" for i in range(9)),
    "an alias": "epochs: &a 3\nlr: *a\n",
    "a merge": "x: &x {epochs: 3}\n<<: *x\n",
    "a merge of a number": "<<: 3\n",
    "bytes": "epochs: !!binary aGVsbG8=\n",
    "bytes for a fraction": "lr: !!binary aGVsbG8=\n",
    "a set": "epochs: !!set {a, b}\n",
    "pairs": "epochs: !!pairs [a: 1, a: 2]\n",
    "an ordered map": "epochs: !!omap [a: 1]\n",
    "python/object/apply": f"epochs: !!python/object/apply:os.system ['touch {CANARY}']\n",
    "python/object/new": f"epochs: !!python/object/new:os.system ['touch {CANARY}']\n",
    "python/name": "epochs: !!python/name:os.system\n",
    "python/module": "epochs: !!python/module:os\n",
    "python/tuple": "epochs: !!python/tuple [1, 2]\n",
    "an unknown tag": "epochs: !foo 3\n",
    "a whole number of nothing": "epochs: !!int ''\n",
    "a fraction of a word": "lr: !!float x\n",
    "a seed of 2^70": f"seed: {2**70}\n",
    "a seed of −1": "seed: -1\n",
    "a seed of 2^32": f"seed: {2**32}\n",
    "10^30 slides": "batch_size: 1" + "0" * 30 + "\n",
    "10^10 slides": "batch_size: 9999999967\n",
    "6,000 digits": "epochs: " + "9" * 6000 + "\n",
    "base 60": "epochs: " + "1:" * 60 + "1\n",
    "no batch": "batch_size: 0\n",
    "a fraction of epochs": "epochs: 3.5\n",
    "not UTF-8": b"epochs: 3 # \xff\n",
    "UTF-16": "epochs: 3\n".encode("utf-16"),
    "a NUL": "device: 'a\0b'\n",
    "an escaped NUL": 'device: "a\\0b"\n',
    "zeros": bytes(1000),
    "100 MB": b"# " + b"x" * (100 * 2**20),
    "100 MB of keys": b"a: 1\n" * (20 * 2**20),
    "NaN": "lr: .nan\n",
    "an infinity": "lr: .inf\n",
    "1e400": "lr: 1.0e+400\n",
    "a split of NaN": "split: [.nan, .nan, .nan]\n",
    "a list for a number": "epochs: [1, 2]\n",
    "a map for a number": "epochs: {a: 1}\n",
    "a date": "epochs: 2020-01-01\n",
    "no date": "epochs: 2020-13-45\n",
    "a word for a number": "epochs: many\n",
    "true for a number": "epochs: true\n",
    "two shares": "split: [0.5, 0.5]\n",
    "shares of words": "split: [a, b, c]\n",
    "one share": "split: 3\n",
    "a list for a text": "time_column: [a]\n",
    "a list for a path": "weights: [a]\n",
    "a map for a path": "weights: {a: b}\n",
    "a word for true": "balanced: maybe\n",
    "a choice that there is not": "fit: crop\n",
    "a task that there is not": "task: x\n",
    "a key that there is not": "epoch: 3\n",
    "a key twice": "epochs: 3\nepochs: 4\n",
    "a key twice within": "epochs: {b: 1, b: 2}\n",
    "a long key": "? " + "x" * 5000 + "\n: 1\n",
    "a key of an option": "--epochs: 3\n",
    "the recipe itself": "recipe: r.yaml\n",
    "a text": "hello\n",
    "a list": "- a\n- b\n",
    "two documents": "epochs: 3\n---\nepochs: 4\n",
    "a tab": "\tepochs: 3\n",
    "no end": "epochs: [3\n",
    "a quote": "epochs: '3\n",
    "10^7 threads": "threads: 10000000\n",
    "no threads": "threads: 0\n",
    "10^9 bins": "n_bins: 1000000000\n",
    "a side of 3 · 10^9": "side_px: 3200000000\n",
    "a side of 0": "side_px: 0\n",
    "a side of −32": "side_px: -32\n",
    "a long text": "device: " + "x" * 100_000 + "\n",
    "momentum NaN": "ema: .nan\n",
}.items():
    _recipe(_name, _text)


def _left_by_a_run(name: str, good: dict[str, Any], read: str) -> None:
    """A file of JSON that a run wrote: damaged in every way."""
    whole = json.dumps(good)
    texts: dict[str, str | bytes] = {
        "half": whole[: len(whole) // 2],
        "empty": "",
        "a list": "[]",
        "null": "null",
        "a number": "3",
        "nested": "[" * 100_000,
        "objects": '{"a":' * 100_000,
        "digits": '{"a": ' + "9" * 9999 + "}",
        "not UTF-8": b'{"\xff": 1}',
        "zeros": bytes(3000),
        "no keys": "{}",
        "nulls": json.dumps(dict.fromkeys(good)),
        "lists": json.dumps({key: [[]] for key in good}),
        "texts": json.dumps(dict.fromkeys(good, "x")),
        "a key twice": whole[:-1] + f', "{next(iter(good))}": 1}}',
    }
    for words, text in texts.items():
        CASES.append(
            Case(f"left by a run: {read}", f"{name}, {words}", lambda folder, t=text: written(folder / name, t), True)
        )


_FOLD_METRICS = {
    "task": "subtyping",
    "figure": "auc",
    "classes": ["a", "b"],
    "splits": {"test": {"auc": 0.5, "slides": 3}},
    "controls": {},
    "training": {"device": "cpu"},
    "leaks": {},
    "left_out": [],
    "notes": [],
    "best_val": None,
}
_CELL = {
    "system": "x",
    "evaluated": "test",
    "figure": "auc",
    "splits": {"test": {"auc": 0.5}},
    "decided_by": {},
    "best_val": None,
    "training": {"seconds": 1, "cpu_seconds": 1, "peak_memory_mib": 1, "parameters": 3},
}
_LOOKS = {"epochs": 1, "steps": 1, "regions": 1, "slides": 1, "figures": {}, "alarms": [], "finished": True}
_RUN = {"run": "r", "begun": 1.0, "retries": 2, "slides": [["a", "a.tif", None]]}
_left_by_a_run("metrics.json", _FOLD_METRICS, "a training")
_left_by_a_run("metrics.json", _CELL, "a cell")
_left_by_a_run("metrics.json", _LOOKS, "a pretraining")
_left_by_a_run("costs.json", {"seconds": 1, "cpu_seconds": 1, "peak_memory_mib": 1}, "costs")
_left_by_a_run("run.json", {"epochs": 1, "slides_per_forward": 1}, "a run folder")
_left_by_a_run(
    "step-00000001.json", {"sha256": "x", "format": 1, "step": 1, "tensor_file": {}, "state": {}}, "a checkpoint"
)
_left_by_a_run(
    "crossval.json",
    {"cell": "table1/brca/1024", "figure": "auc", "mean": 1, "sd": 0, "folds": [], "ddof": 1},
    "a cross-validation",
)
_left_by_a_run("run.json", _RUN, "a work list")
_left_by_a_run("a.json", {"digest": "x", "slide_id": "a"}, "a record")

COHORT = "slide_id,case_id,label\n" + "".join(f"s{i},p{i},{'ab'[i % 2]}\n" for i in range(12))


def _table(name: str, text: str | bytes, *, good: bool = False, suffix: str = ".csv") -> None:
    CASES.append(Case("table", name, lambda folder: written(folder / f"c{suffix}", text), good))


for _name, _text in {
    "empty": "",
    "a header alone": "slide_id,label\n",
    "no header": "a,b\nc,d\n",
    "zeros": bytes(2000),
    "not UTF-8": b"slide_id,label\n\xff\xfe,a\n",
    "half a quote": 'slide_id,label\n"a,b\n',
    "a cell of 200 kB": "slide_id,label\n" + "x" * 200_000 + ",a\n",
    "a NUL": "slide_id,label\na\0b,a\n",
    "a cell too many": "slide_id,label\na,b,c\n",
    "a cell too few": "slide_id,label\na\n",
    "a name twice": "slide_id,slide_id,label\na,b,c\n",
    "a slide twice": "slide_id,label\na,x\na,y\n",
    "an empty id": "slide_id,label\n,x\n",
    "one class": "slide_id,label\na,x\nb,x\n",
    "an id of a path": "slide_id,label\n../../etc/passwd,x\nb,y\n",
    "UTF-16": COHORT.encode("utf-16"),
    "JSON": "{}",
    "a page": "<html></html>",
    "10,000 columns": ",".join(f"c{i}" for i in range(10_000)) + "\n",
    "an mpp of a word": "slide_id,label,mpp\na,x,y\nb,y,1\n",
    "an mpp of 0": "slide_id,label,mpp\na,x,0\nb,y,1\n",
    "an mpp of 1e400": "slide_id,label,mpp\na,x,1e400\nb,y,1\n",
}.items():
    _table(_name, _text, good=True)
for _seed in range(30):

    def _mutated(folder: Path, seed: int = _seed) -> Path:
        rng = np.random.default_rng(seed)
        data = bytearray(COHORT.encode())
        for at in rng.integers(0, len(data), 1 + seed % 6):
            data[at] = int(rng.integers(256))
        return written(folder / "c.csv", bytes(data))

    CASES.append(Case("table", f"changed bytes {_seed}", _mutated, good=True))
