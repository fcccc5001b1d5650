"""What every system of the catalogue keeps to, whatever its paper."""

from __future__ import annotations

import re
from dataclasses import fields, replace

import pytest
import torch
import yaml
from tests.baselines.made import OUTPUTS, SMALL, WIDTH, bag, system
from tests.conftest import ROOT
from torch.nn import functional

from longvit.baselines.bag import Bag, Prediction
from longvit.baselines.catalogue import SYSTEMS
from longvit.baselines.system import create_system, system_class
from longvit.comparison.system_spec import OF_PIXELS
from longvit.errors import InputError

ALL = sorted(SYSTEMS)
WITH_TILES = [name for name in ALL if name != "snn"]
WITHOUT_ATTENTION = {"mean_pooling", "deep_sets", "snn", "longnet"}
IN_ORDER = {"transmil", "longnet"}  # the order of the tiles is part of the input
FUSED = [name for name in WITH_TILES if name != "mcat"]


def close(a: Prediction, b: Prediction, atol: float) -> None:
    assert (a.logits - b.logits).abs().max() <= atol
    assert (a.attention is None) == (b.attention is None)
    if a.attention is not None and b.attention is not None:
        assert (a.attention - b.attention).abs().max() <= atol


def test_no_system_is_left_out_of_these_tests() -> None:
    assert sorted(SMALL) == ALL


def test_the_table_in_the_docs_is_that_of_the_code() -> None:
    page = (ROOT / "docs" / "compare-systems.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| `(\w+)` \|.*\| (yes|no) \|(.*)\|$", page, re.MULTILINE)
    assert [name for name, _, _ in rows] == list(SYSTEMS)
    assert {name for name, scores, _ in rows if scores == "no"} == WITHOUT_ATTENTION
    for name, _, settings in rows:
        standing = system_class(name).Settings()
        for setting, value in re.findall(r"`(\w+)=([\w.-]+)`", settings):
            if value != "FILE":
                assert getattr(standing, setting) == yaml.safe_load(value), (name, setting)
            else:
                assert hasattr(standing, setting), (name, setting)


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("tiles", [1, 2, 23])
def test_logits_and_attention_of_bags_down_to_one_tile(name: str, tiles: int) -> None:
    found = system(name)(bag(name, tiles))
    assert found.logits.shape == (OUTPUTS,)
    assert found.logits.isfinite().all()
    assert (found.attention is None) == (name in WITHOUT_ATTENTION)
    if found.attention is not None:
        assert found.attention.shape == (tiles,)
        assert (found.attention >= 0).all()
        assert abs(found.attention.sum() - 1) < 1e-12
        assert not found.attention.requires_grad


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize(("dtype", "atol"), [(torch.float64, 1e-12), (torch.float32, 1e-6)])
def test_bags_of_different_size_together_give_what_each_gives_alone(name: str, dtype: torch.dtype, atol: float) -> None:
    made = system(name).to(dtype)
    if dtype == torch.float32:  # logits of size 1, as float32's 1e-6 is relative
        with torch.no_grad():
            for p in made.parameters():
                p.mul_(0.3)
    bags = [bag(name, n, seed=n, dtype=dtype) for n in (7, 1, 30, 2, 300, 16)]
    for alone, together in zip([made(b) for b in bags], made.batch(bags), strict=True):
        close(alone, together, atol)


@pytest.mark.parametrize("name", [n for n in WITH_TILES if n not in (*IN_ORDER, *OF_PIXELS)])
def test_order_of_the_tiles_does_not_matter(name: str) -> None:
    made, given = system(name), bag(name, 40)
    order = torch.randperm(40, generator=torch.Generator().manual_seed(1))
    assert given.coords is not None
    shuffled = replace(given, features=given.features[order], coords=given.coords[order])
    a, b = made(given), made(shuffled)
    if a.attention is not None:
        a = replace(a, attention=a.attention[order])
    close(a, b, 1e-11)


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("task", ["subtyping", "survival"])
def test_every_parameter_learns_from_bags_of_all_classes(name: str, task: str) -> None:
    made = system(name, task=task).train()
    for label in range(OUTPUTS):
        given = bag(name, 60, seed=label)
        found = made(given, label if task == "subtyping" else None)
        found.total(functional.cross_entropy(found.logits[None], torch.tensor([label]))).backward()
    silent = [n for n, p in made.named_parameters() if p.requires_grad and (p.grad is None or not p.grad.any())]
    # dead by design: keys' biases cancel in a softmax
    assert [n for n in silent if "in_proj_bias" not in n] == []


@pytest.mark.parametrize("name", FUSED)
@pytest.mark.parametrize("fusion", ["concat", "bilinear"])
def test_genes_join_every_system_of_tiles(name: str, fusion: str) -> None:
    made = system(name, omics=10, fusion=fusion)
    given, other = bag(name, 15, genes=10), bag(name, 15, seed=1, genes=10)
    assert (made(given).logits - made(replace(given, omics=other.omics)).logits).abs().max() > 1e-6
    assert (made(given).logits - made(replace(other, omics=given.omics)).logits).abs().max() > 1e-6
    bags = [given, other, bag(name, 4, genes=10)]
    for alone, together in zip([made(b) for b in bags], made.batch(bags), strict=True):
        close(alone, together, 1e-12)


@pytest.mark.parametrize("name", ALL)
def test_a_system_saved_and_loaded_is_the_same(name: str) -> None:
    made, other = system(name), system(name, seed=1)
    other.load_state_dict(made.state_dict())
    close(made(bag(name, 20)), other(bag(name, 20)), 0)


def linear(i: int, o: int) -> int:
    return i * o + o


def gate(width: int, inner: int) -> int:
    return 2 * linear(width, inner) + linear(inner, 1)


def transformer_layer(d: int, ffn: int) -> int:
    return linear(d, 3 * d) + linear(d, d) + linear(d, ffn) + linear(ffn, d) + 4 * d


def mcat_side() -> int:
    return 2 * transformer_layer(256, 512) + gate(256, 256) + linear(256, 256)


GENES = (94, 334, 521, 468, 1496, 479)
GIN = linear(384, 256) + linear(256, 256) + 4 * linear(256, 256)
SNN_BRANCH = linear(100, 256) + linear(256, 256)
DESCRIBED = [  # name, inputs, parameters as HIPT's, MCAT's and the other papers' descriptions have them
    ("mean_pooling", {}, linear(384, 2)),
    ("mil", {}, linear(384, 384) + linear(384, 2)),
    ("mil", {"outputs": 3}, linear(384, 384) + 3 * linear(384, 1)),
    ("clam_sb", {}, linear(384, 384) + gate(384, 256) + linear(384, 2) + 2 * linear(384, 2)),
    ("clam_sb", {"in_dim": 1024}, linear(1024, 512) + gate(512, 256) + linear(512, 2) + 2 * linear(512, 2)),
    ("ds_mil", {}, linear(384, 2) + linear(384, 128) + linear(384, 384) + 2 * 2 * 384 + 2),
    ("deep_attn_misl", {}, 21 * linear(384, 384) + gate(384, 256) + linear(384, 256) + linear(256, 2)),
    ("gcn_mil", {}, GIN + gate(256, 256) + linear(256, 256) + linear(256, 2)),
    ("feather", {"in_dim": 1024}, linear(1024, 512) + gate(512, 384) + linear(512, 2)),
    ("deep_sets", {"in_dim": 1024, "outputs": 4}, linear(1024, 512) + linear(512, 256) + linear(256, 4)),
    (
        "attention_mil",
        {"in_dim": 1024, "outputs": 4},
        linear(1024, 512) + gate(512, 256) + linear(512, 256) + linear(256, 4),
    ),
    (
        "attention_mil",
        {"in_dim": 1024, "outputs": 4, "omics": 100, "fusion": "concat"},
        linear(1024, 512) + gate(512, 256) + linear(512, 256)
        + SNN_BRANCH + linear(512, 256) + linear(256, 256) + linear(256, 4),
    ),
    (
        "attention_mil",
        {"in_dim": 1024, "outputs": 4, "omics": 100, "fusion": "bilinear"},
        linear(1024, 512) + gate(512, 256) + linear(512, 256)
        + SNN_BRANCH + 2 * (linear(256, 32) + linear(512, 32) + linear(32, 32))
        + linear(33 * 33, 256) + linear(256, 256) + linear(256, 4),
    ),
    (
        "hipt",
        {"in_dim": 192, "level": "region"},
        linear(192, 192) + 2 * transformer_layer(192, 192) + gate(192, 192) + linear(192, 192) + linear(192, 2),
    ),
    (
        "mcat",
        {"in_dim": 1024, "outputs": 4, "omics": GENES},
        linear(1024, 256) + sum(linear(g, 256) + linear(256, 256) for g in GENES)
        + linear(256, 3 * 256) + linear(256, 256) + 2 * mcat_side()
        + linear(512, 256) + linear(256, 256) + linear(256, 4),
    ),
    ("snn", {"outputs": 4, "omics": 100}, linear(100, 256) + 3 * linear(256, 256) + linear(256, 4)),
    ("transmil", {"in_dim": 1024}, 2_672_146),  # 2.67 M in the tables that later papers give
]  # fmt: skip


@pytest.mark.parametrize(("name", "inputs", "expected"), DESCRIBED)
def test_parameters_are_as_many_as_described(name: str, inputs: dict, expected: int) -> None:
    made = create_system(name, **{"in_dim": 384, "outputs": 2} | inputs)
    assert sum(p.numel() for p in made.parameters()) == expected


def test_every_setting_says_where_its_default_comes_from() -> None:
    import inspect

    for name in ALL:
        kind = system_class(name).Settings
        source = inspect.getsource(kind)
        assert source.count('"""') >= 2 * len(fields(kind)), name


# --- what a user can do wrong -----------------------------------------------------------------------------------------


def test_an_unknown_system_or_setting_names_the_nearest() -> None:
    with pytest.raises(InputError, match=r"system 'clam': choose .*clam_sb"):
        create_system("clam", in_dim=8, outputs=2)
    with pytest.raises(InputError, match="system clam_sb: unknown key 'droput'; did you mean 'dropout'"):
        create_system("clam_sb", in_dim=8, outputs=2, droput=0.5)


@pytest.mark.parametrize(
    ("name", "inputs", "message"),
    [
        ("clam_sb", {"k": 0}, "k 0: at least 1"),
        ("clam_sb", {"bag_weight": 1.5}, "bag_weight 1.5: at most 1"),
        ("mil", {"dropout": 1.0}, "dropout 1.0: at least 0 and below 1"),
        ("mil", {"omics": 5}, "omics 5, fusion None: give both"),
        ("mil", {"fusion": "concat"}, "omics None, fusion concat: give both"),
        ("mil", {"omics": (2, 3), "fusion": "concat"}, "2 omic vectors: only mcat"),
        ("snn", {}, "omics None, fusion None: snn needs one omic vector"),
        ("mcat", {"omics": 5}, "omics 5: mcat needs a vector per signature"),
        ("transmil", {"hidden": 30}, "hidden 30: a multiple of the 8 heads"),
        ("snn", {"omics": 5, "l1": "lots"}, "system snn: l1 'lots' is not a number"),
        ("mil", {"hidden": 2.5}, "system mil: hidden 2.5 is not a whole number"),
        ("hipt", {"level": "region"}, "in_dim 8: features of regions are 192 wide"),
    ],
)
def test_settings_that_cannot_be_are_refused_with_their_number(name: str, inputs: dict, message: str) -> None:
    with pytest.raises(InputError, match=message):
        create_system(name, in_dim=8, outputs=2, **inputs)


@pytest.mark.parametrize("name", WITH_TILES)
def test_bags_that_do_not_fit_are_named_with_both_numbers(name: str) -> None:
    made, good = system(name), bag(name, 5)
    with pytest.raises(InputError, match="bag of 5: no tiles in it"):
        made(replace(good, features=good.features[:0]))
    with pytest.raises(InputError, match=f"bag of 5: features 7 wide; the system was made for {WIDTH}"):
        made(replace(good, features=good.features[:, :7]))
    with pytest.raises(InputError, match=r"bag of 5: 5 tiles, coordinates of shape \(4, 2\)"):
        made(replace(good, coords=good.coords[:4]))
    with pytest.raises(InputError, match="bag of 5: 5 tiles, 6 in its slides together"):
        made(replace(good, slide_tiles=(4, 2)))


@pytest.mark.parametrize("name", ["hipt", "longnet", "gcn_mil"])
def test_coordinates_that_a_system_needs_are_asked_for(name: str) -> None:
    made = system(name, **({"graph": "coordinates"} if name == "gcn_mil" else {}))
    with pytest.raises(InputError, match="bag of 5: no coordinates"):
        made(replace(bag(name, 5), coords=None))


@pytest.mark.parametrize("name", ["snn", "mcat"])
def test_omics_that_are_missing_or_of_another_size_are_named(name: str) -> None:
    made, good = system(name), bag(name, 5)
    with pytest.raises(InputError, match="bag of 5: no omics"):
        made(replace(good, omics=None))
    with pytest.raises(InputError, match="bag of 5: omics of shapes"):
        made(replace(good, omics=torch.zeros(3)))


def test_omics_alone_need_no_tiles() -> None:
    made = system("snn")
    assert made(Bag(torch.zeros(0, 0), omics=torch.randn(10).double())).logits.shape == (OUTPUTS,)


# --- what is fitted ---------------------------------------------------------------------------------------------------


def test_genes_are_standardised_by_the_training_fold_alone() -> None:
    made = system("snn")
    train = [Bag(torch.zeros(0, 0), omics=3 + 5 * torch.randn(10).double()) for _ in range(40)]
    x = torch.stack([b.omics for b in train if isinstance(b.omics, torch.Tensor)])
    x[:, 4] = 0.1  # does not vary
    x[3, 5] = torch.nan  # was not measured
    x[:, 6] = torch.nan
    made.fit([replace(b, omics=row) for b, row in zip(train, x, strict=True)])
    z = torch.stack([made.omics(Bag(torch.zeros(0, 0), omics=row))[0] for row in x])
    varies = [0, 1, 2, 3, 7, 8, 9]
    assert z[:, varies].mean(0).abs().max() < 1e-12
    assert (z[:, varies].std(0, correction=0) - 1).abs().max() < 1e-12
    assert not z[:, [4, 6]].any()
    assert z[3, 5] == 0
    measured = z[torch.arange(40) != 3, 5]
    assert abs(measured.mean()) < 1e-12
    assert abs(measured.std(correction=0) - 1) < 1e-12
    test = Bag(torch.zeros(0, 0), omics=torch.full((10,), 3.0).double())
    expected = (3 - x[:, 0].mean()) / x[:, 0].std(correction=0)
    assert abs(made.omics(test)[0][0] - expected) < 1e-12


def test_omics_that_are_standardised_already_stay_as_they_are() -> None:
    made = create_system("snn", in_dim=0, outputs=2, omics=4)
    x = torch.tensor([0.5, -1.0, 2.0, float("nan")])
    assert made.omics(Bag(torch.zeros(0, 0), omics=x))[0].tolist() == [0.5, -1.0, 2.0, 0.0]


def test_systems_are_named_as_the_published_rows() -> None:
    from longvit.finetuning import paper_tables

    assert set(paper_tables.SYSTEMS) <= set(SYSTEMS)
