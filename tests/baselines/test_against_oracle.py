"""Every system against loops over the papers' equations in float64; what its paper promises."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from tests.baselines.made import OUTPUTS, SIGNATURES, arrays, bag, system
from tests.oracles import baselines as oracle

from longvit.baselines import gcn_mil
from longvit.baselines.bag import Bag, Prediction
from longvit.baselines.clam import ClamSB, smooth_top1_svm
from longvit.baselines.deepattnmisl import DeepAttnMisl
from longvit.baselines.gcn_mil import joined, nearest
from longvit.baselines.transmil import pseudo_inverse
from longvit.errors import InputError
from longvit.metrics.survival import c_index
from longvit.tasks.survival_loss import risk

ATOL = 1e-11


def agrees(found: Prediction, logits: np.ndarray, attention: np.ndarray | None) -> None:
    np.testing.assert_allclose(found.logits.detach().numpy(), logits, rtol=0, atol=ATOL)
    if attention is None:
        assert found.attention is None
    else:
        assert found.attention is not None
        np.testing.assert_allclose(found.attention.numpy(), attention, rtol=0, atol=ATOL)


def x_of(given: Bag) -> np.ndarray:
    return given.features.numpy()


@pytest.mark.parametrize("tiles", [1, 9])
@pytest.mark.parametrize("name", ["mean_pooling", "deep_sets", "attention_mil"])
def test_systems_that_see_each_tile_alone(name: str, tiles: int) -> None:
    made, given = system(name), bag(name, tiles)
    agrees(made(given), *getattr(oracle, name)(x_of(given), arrays(made)))


def test_deep_sets_with_the_mean() -> None:
    made, given = system("deep_sets", pooling="mean"), bag("deep_sets", 9)
    agrees(made(given), *oracle.deep_sets(x_of(given), arrays(made), pooling="mean"))


@pytest.mark.parametrize("fusion", ["concat", "bilinear"])
@pytest.mark.parametrize("name", ["mean_pooling", "deep_sets", "attention_mil"])
def test_late_fusion_with_genes(name: str, fusion: str) -> None:
    made, given = system(name, omics=10, fusion=fusion), bag(name, 9, genes=10)
    g = made.omics(given)[0].numpy()
    agrees(made(given), *getattr(oracle, name)(x_of(given), arrays(made), omics=g, fusion=fusion))


@pytest.mark.parametrize("outputs", [2, 3, 4])
@pytest.mark.parametrize("tiles", [1, 9])
def test_max_pooling_takes_the_logits_of_the_critical_tile(outputs: int, tiles: int) -> None:
    made, given = system("mil", outputs=outputs), bag("mil", tiles)
    logits, attention, critical = oracle.mil(x_of(given), arrays(made))
    found = made(given)
    agrees(found, logits, attention)
    assert found.attention is not None
    assert int(found.attention.argmax()) == critical
    alone = made(replace(given, features=given.features[critical : critical + 1], coords=None))
    assert torch.equal(alone.logits, found.logits) or (alone.logits - found.logits).abs().max() < 1e-14


@pytest.mark.parametrize("tiles", [1, 2, 5, 6, 17])
@pytest.mark.parametrize("other_classes", [False, True])
@pytest.mark.parametrize("label", range(OUTPUTS))
def test_clam_and_its_instance_loss(tiles: int, other_classes: bool, label: int) -> None:
    made, given = system("clam_sb", other_classes=other_classes), bag("clam_sb", tiles)
    logits, a, instances = oracle.clam(x_of(given), arrays(made), label, 3, other_classes)
    found = made(given, label)
    agrees(found, logits, a)
    assert found.loss is not None
    assert abs(found.loss.item() - 0.3 * instances) < ATOL
    assert abs(found.total(torch.tensor(2.0).double()).item() - (0.7 * 2 + 0.3 * instances)) < ATOL
    assert made(given).loss is None


def test_clam_has_no_instance_loss_where_outputs_are_bins_of_time() -> None:
    made = system("clam_sb", task="survival")
    assert isinstance(made, ClamSB)
    assert made(bag("clam_sb", 9), 1).loss is None
    assert not len(made.instances)


@pytest.mark.parametrize("classes", [2, 5])
@pytest.mark.parametrize(("margin", "temperature"), [(1.0, 1.0), (0.5, 0.1), (1.0, 3.0)])
def test_smooth_svm_is_the_formula_and_its_gradient_that_of_differences(classes, margin, temperature) -> None:
    scores = 3 * torch.randn(7, classes, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    target = torch.arange(7) % classes
    found = smooth_top1_svm(scores, target, margin=margin, temperature=temperature)
    expected = [oracle.svm(s, int(y), margin, temperature) for s, y in zip(scores.numpy(), target, strict=True)]
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-12)
    assert torch.autograd.gradcheck(
        lambda s: smooth_top1_svm(s, target, margin=margin, temperature=temperature), scores.requires_grad_()
    )


def test_smooth_svm_becomes_the_hinge() -> None:
    scores = torch.tensor([[2.0, 0.5], [0.0, 0.25], [1e4, -1e4]], dtype=torch.float64)
    found = smooth_top1_svm(scores, torch.tensor([0, 0, 1]), temperature=1e-3)
    assert (found - torch.tensor([0.0, 1.25, 20001.0])).abs().max() < 1e-3


@pytest.mark.parametrize("task", ["subtyping", "survival"])
@pytest.mark.parametrize("tiles", [1, 9])
def test_dsmil_compares_all_tiles_with_the_critical_one(task: str, tiles: int) -> None:
    made, given = system("ds_mil", task=task), bag("ds_mil", tiles)
    logits, a, critical = oracle.dsmil(x_of(given), arrays(made))
    agrees(made(given), logits, a[:, logits.argmax()] if task == "subtyping" else a.mean(1))
    assert len(critical) == OUTPUTS


@pytest.mark.parametrize("clusters", [[0, 1, 2, 3, 0, 1, 2, 3, 3], [2] * 9, [1, 0, 0, 3, 3, 3, 3, 3, 3]])
def test_deepattnmisl_with_empty_phenotypes(clusters: list[int]) -> None:
    made = system("deep_attn_misl")
    given = replace(bag("deep_attn_misl", 9), clusters=torch.tensor(clusters))
    logits, a = oracle.deepattnmisl(x_of(given), clusters, arrays(made), 4)
    share = np.array([a[c] / clusters.count(c) for c in clusters])
    agrees(made(given), logits, share / share.sum())


def test_phenotypes_come_from_the_training_bags_alone_and_are_the_nearest_centres() -> None:
    made, train = system("deep_attn_misl"), [bag("deep_attn_misl", n, seed=3) for n in (40, 50)]
    assert isinstance(made, DeepAttnMisl)
    made.fit(train)
    tiles, centers = np.concatenate([x_of(b) for b in train]), made.centers.numpy()
    nearest_of = np.array([np.argmin([((x - c) ** 2).sum() for c in centers]) for x in tiles])
    for k in range(4):  # where k-means has come to rest each centre is the mean of its tiles
        np.testing.assert_allclose(centers[k], tiles[nearest_of == k].mean(0), atol=1e-9)
    other = bag("deep_attn_misl", 12, seed=4)
    expected = [int(np.argmin([((x - c) ** 2).sum() for c in centers])) for x in x_of(other)]
    prepared = made.prepare(other)
    assert prepared.clusters is not None
    assert prepared.clusters.tolist() == expected
    assert made.prepare(prepared) is prepared
    again = system("deep_attn_misl", seed=5)
    again.fit(train)
    assert torch.equal(again.centers, made.centers), "the same bags, the same phenotypes"


def test_phenotypes_that_were_not_fitted_or_do_not_fit_are_named() -> None:
    from longvit.baselines.system import create_system

    made = create_system("deep_attn_misl", in_dim=12, outputs=2).double()
    with pytest.raises(InputError, match="bag of 5: no phenotypes yet; call fit"):
        made(bag("deep_attn_misl", 5))
    with pytest.raises(InputError, match="4 tiles in the training fold are too few for 10 phenotypes"):
        made.fit([bag("deep_attn_misl", 4)])
    with pytest.raises(InputError, match=r"bag of 5: clusters must be 5 numbers in 0 … 9, got 5 in 0 … 10"):
        made(replace(bag("deep_attn_misl", 5), clusters=torch.tensor([0, 1, 2, 3, 10])))


@pytest.mark.parametrize("graph", ["features", "coordinates"])
@pytest.mark.parametrize("tiles", [1, 3, 15])
def test_gcn_sums_a_tile_and_its_neighbours(graph: str, tiles: int) -> None:
    made, given = system("gcn_mil", graph=graph), bag("gcn_mil", tiles)
    if graph == "coordinates":  # no two distances alike
        given = replace(given, coords=torch.randint(0, 10**6, (tiles, 2), generator=torch.Generator().manual_seed(0)))
    points = given.features if graph == "features" else given.coords
    assert points is not None
    near = oracle.nearest(points.numpy(), 3)
    prepared = made.prepare(given)
    assert prepared.neighbours is not None
    assert [[j for j in row if j >= 0] for row in prepared.neighbours.tolist()] == near
    agrees(made(given), *oracle.gcn_mil(x_of(given), near, arrays(made), 3))


@pytest.mark.parametrize(("few_dims", "at_once"), [(True, 2**24), (False, 2**24), (False, 50)])
def test_neighbours_stay_within_a_slide(few_dims: bool, at_once: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gcn_mil, "_CHUNK_DISTANCES", at_once)
    points = 100 + torch.randn(30, 2, generator=torch.Generator().manual_seed(0))
    slides = (slice(0, 12), slice(12, 13), slice(13, 30))
    found = nearest(points, 4, slides, few_dims=few_dims)
    for s in slides:
        expected = [[s.start + j for j in row] for row in oracle.nearest(points[s].numpy(), 4)]
        assert [[j for j in row if j >= 0] for row in found[s].tolist()] == expected
    assert found[12].tolist() == [-1] * 4


def test_sum_over_neighbours_has_the_gradient_of_differences() -> None:
    graphs = [torch.tensor([[1, 2], [0, -1], [-1, -1]]), torch.tensor([[1], [0]])]
    graph = joined([Bag(torch.zeros(len(g), 1), neighbours=g) for g in graphs])
    x = torch.randn(5, 2, dtype=torch.float64, requires_grad=True)
    expected = torch.stack([x[0] + x[1] + x[2], x[1] + x[0], x[2], x[3] + x[4], x[4] + x[3]])
    assert (graph.sum(x) - expected).abs().max() < 1e-14
    assert torch.autograd.gradcheck(graph.sum, x)


@pytest.mark.parametrize("fusion", ["concat", "bilinear"])
@pytest.mark.parametrize("tiles", [1, 9])
def test_mcat_guides_attention_by_six_signatures(fusion: str, tiles: int) -> None:
    made, given = system("mcat", fusion=fusion), bag("mcat", tiles)
    genes = [v.numpy() for v in made.omics(given)]
    assert [len(g) for g in genes] == list(SIGNATURES)
    agrees(made(given), *oracle.mcat(x_of(given), genes, arrays(made), fusion))


def test_snn_and_its_l1_norm_which_the_published_loop_adds_undivided() -> None:
    made, given = system("snn", dropout=0.0), bag("snn", 0)
    w, g = arrays(made), made.omics(given)[0].numpy()
    agrees(made(given), oracle.linear(oracle.snn(g, oracle.sub(w, "blocks")), oracle.sub(w, "classifier")), None)
    assert made(given).loss is None
    loss = made.train()(given).loss
    assert loss is not None
    norm = sum(np.abs(p.detach().numpy()).sum() for p in made.parameters())
    published = sum(1e-4 * norm for _ in range(32))  # `loss / 32 + 1e-4 norm` of each patient, added up over a step
    assert abs(loss.item() - published) < ATOL
    once = system("snn", dropout=0.0, l1=1e-4).train()(given).loss
    assert abs(once.item() - 1e-4 * norm) < ATOL


def test_snn_starts_self_normalising_and_clam_with_xavier() -> None:
    from longvit.baselines.system import create_system

    torch.manual_seed(0)
    snn = create_system("snn", in_dim=0, outputs=4, omics=2000)
    assert abs(snn.state_dict()["blocks.0.0.weight"].std().item() * 2000**0.5 - 1) < 0.01
    assert not snn.state_dict()["blocks.0.0.bias"].any()
    for name in ("clam_sb", "mil"):
        started = create_system(name, in_dim=384, outputs=3).state_dict()
        assert abs(started["phi.0.weight"].std().item() - (2 / 768) ** 0.5) < 0.001
        assert not started["phi.0.bias"].any()
        other = create_system(name, in_dim=384, outputs=3, init="pytorch").state_dict()
        assert other["phi.0.weight"].abs().max() <= 384**-0.5
    assert abs(started["instances.weight"].std().item() - (2 / 385) ** 0.5) < 0.004  # three layers of one output


@pytest.mark.parametrize("tiles", [1, 2, 10])
def test_transmil_is_nystroms_attention_with_its_padding(tiles: int) -> None:
    made, given = system("transmil"), bag("transmil", tiles)
    agrees(made(given), *oracle.transmil(x_of(given), arrays(made), 2, 4, 6))
    assert made.train()(given).attention is None


def test_pseudo_inverse_of_a_kernel_is_reached() -> None:
    g = torch.Generator().manual_seed(0)
    m = (3 * torch.eye(8, dtype=torch.float64) + torch.randn(2, 8, 8, generator=g, dtype=torch.float64)).softmax(-1)
    np.testing.assert_allclose(pseudo_inverse(m, 20), torch.linalg.pinv(m), atol=1e-9)


def test_longnet_is_the_slide_encoder_and_a_linear_layer() -> None:
    made, given = system("longnet"), bag("longnet", 30)
    w = arrays(made)
    assert given.coords is not None
    z = made.encoder(given.features[None], given.coords[None])[0].detach().numpy()
    agrees(made(given), oracle.linear(z, oracle.sub(w, "head.classifier")), None)
    moved = made(replace(given, coords=given.coords.flip(0)))
    assert (moved.logits - made(given).logits).abs().max() > 1e-3, "where a tile lies is seen"


def test_deep_sets_sum_over_thousands_of_tiles_ties_all_risks() -> None:
    """Published: a c-index of 0.500 ± 0 in three of five cohorts. The mean does not have this."""
    from longvit.baselines.system import create_system

    torch.manual_seed(0)
    bags = [Bag(torch.rand(4000 + 50 * i, 64).mul_(1 + i / 40)) for i in range(20)]
    months, event = np.arange(20.0), np.ones(20)
    found = {}
    for pooling in ("sum", "mean"):
        made = create_system("deep_sets", in_dim=64, outputs=4, task="survival", pooling=pooling).eval()
        with torch.no_grad():
            made.head.classifier.weight.mul_(4)  # as far as a few epochs of training take them
            found[pooling] = risk(torch.stack([made(b).logits for b in bags])).numpy()
    assert len(set(found["sum"].tolist())) == 1
    assert c_index(months, event, found["sum"]) == 0.5
    assert len(set(found["mean"].tolist())) == 20
