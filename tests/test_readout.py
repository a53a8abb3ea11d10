"""Linear readouts: whitening against NumPy, discriminant analysis against scikit-learn."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from torch.nn.functional import normalize

from bgl.metrics import retrieval_metrics
from bgl.readout import LinearReadout, choose_readout, fit_readout


def classes(num_classes: int, size: int, channels: int, seed: int = 0):
    """Class means apart in every direction, samples spread mostly along the first ones."""
    generator = torch.Generator().manual_seed(seed)
    means = torch.randn(num_classes, channels, generator=generator, dtype=torch.float64)
    noise = torch.randn(num_classes * size, channels, generator=generator, dtype=torch.float64)
    y = torch.arange(num_classes).repeat_interleave(size)
    return means[y] + noise * torch.linspace(6, 0.3, channels, dtype=torch.float64), y


def cosines(x):
    return normalize(x) @ normalize(x).t()


@pytest.mark.parametrize("shrinkage", [1e-4, 0.3, 10.0])
def test_total_is_the_mahalanobis_cosine(shrinkage):
    x, _ = classes(7, 5, 6)
    z = x.numpy() - x.numpy().mean(0)
    sigma = z.T @ z / len(z)
    s = sigma + shrinkage * np.trace(sigma) / 6 * np.eye(6)
    product = z @ np.linalg.solve(s, z.T)
    norm = np.sqrt(np.diag(product))
    expected = product / norm[:, None] / norm
    found = cosines(fit_readout(x, shrinkage=shrinkage)(x))
    np.testing.assert_allclose(found.numpy(), expected, atol=1e-12)


def test_within_whitens_what_is_left_of_a_class():
    x, y = classes(9, 40, 5)
    z = fit_readout(x, y, covariance="within", shrinkage=1e-9)(x)
    rest = torch.cat([z[y == c] - z[y == c].mean(0) for c in range(9)])
    torch.testing.assert_close(
        rest.t() @ rest / len(rest), torch.eye(5).double(), atol=1e-6, rtol=0
    )


@pytest.mark.parametrize("dim", [1, 2, 3])
def test_fewer_dimensions_of_within_are_those_of_discriminant_analysis(dim):
    x, y = classes(8, 30, 6)
    readout = fit_readout(x, y, covariance="within", shrinkage=1e-9, dim=dim)
    reference = LinearDiscriminantAnalysis(solver="eigen").fit(x.numpy(), y.numpy())
    ours = torch.linalg.qr(readout.weight.t())[0]
    theirs = torch.linalg.qr(torch.from_numpy(reference.scalings_[:, :dim]))[0]
    overlap = torch.linalg.svdvals(ours.t() @ theirs)  # cosines between the two subspaces
    torch.testing.assert_close(overlap, torch.ones(dim).double(), atol=1e-6, rtol=0)


@pytest.mark.parametrize("dim", [1, 3])
def test_fewer_dimensions_of_total_are_the_principal_ones(dim):
    x, _ = classes(7, 9, 6)
    readout = fit_readout(x, dim=dim)
    axes = torch.linalg.svd(x - x.mean(0), full_matrices=False).Vh[:dim]
    torch.testing.assert_close(
        torch.linalg.svdvals(torch.linalg.qr(readout.weight.t())[0].t() @ axes.t()),
        torch.ones(dim).double(),
    )


def test_all_dimensions_only_rotate():
    x, y = classes(6, 8, 5)
    readout = fit_readout(x, y, covariance="within", shrinkage=0.3)
    rest = torch.cat([x[y == c] - x[y == c].mean(0) for c in range(6)])
    sigma = rest.t() @ rest / len(rest)
    s = sigma + 0.3 * sigma.trace() / 5 * torch.eye(5).double()
    weight = readout.weight
    torch.testing.assert_close(weight.t() @ weight, torch.linalg.inv(s))
    torch.testing.assert_close(readout(x), (x - x.mean(0)) @ weight.t())


def test_a_class_keeps_its_neighbours_where_noise_hid_them():
    x, y = classes(12, 10, 8)
    plain = retrieval_metrics(x, y)["map@r"]
    assert retrieval_metrics(fit_readout(x)(x), y)["map@r"] > plain
    assert retrieval_metrics(fit_readout(x, y, covariance="within")(x), y)["map@r"] > plain


@pytest.mark.parametrize("covariance", ["total", "within"])
def test_nothing_depends_on_order_labels_or_other_images(covariance):
    x, y = classes(6, 6, 5)
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(1))
    one = fit_readout(x, y, covariance=covariance)
    other = fit_readout(x[order], 100 - y[order], covariance=covariance)
    torch.testing.assert_close(cosines(one(x)), cosines(other(x)))
    torch.testing.assert_close(one(x[:1]), one(x)[:1])


@pytest.mark.parametrize("covariance", ["total", "within"])
def test_sums_over_blocks_of_rows_are_those_over_all(covariance, monkeypatch):
    x, y = classes(10, 20, 4)
    expected = fit_readout(x, y, covariance=covariance)
    monkeypatch.setattr("bgl.readout._ROWS", 7)
    found = fit_readout(x, y, covariance=covariance)
    torch.testing.assert_close(found.weight, expected.weight)
    torch.testing.assert_close(found.mean, expected.mean)


def test_labels_choose_the_covariance_and_signs_are_fixed():
    x, y = classes(6, 6, 5)
    assert torch.equal(fit_readout(x, y).weight, fit_readout(x, y, covariance="within").weight)
    assert torch.equal(fit_readout(x).weight, fit_readout(x, y, covariance="total").weight)
    weight = fit_readout(x, y, dim=3).weight
    assert (weight.gather(1, weight.abs().argmax(1, keepdim=True)) > 0).all()


def test_more_channels_than_samples():
    x, y = classes(4, 3, 40)
    z = fit_readout(x.float(), y, covariance="within")(x.float())
    assert z.dtype == torch.float32
    assert z.isfinite().all()


def test_half_precision_is_mapped_in_float32():
    x, _ = classes(5, 5, 4)
    readout = fit_readout(x.half())
    assert readout.weight.dtype == torch.float32
    assert readout(x.half()).dtype == torch.float32


def test_the_best_on_validation_is_chosen():
    x, y = classes(12, 10, 8)
    val_x, val_y = classes(12, 10, 8, seed=1)
    choice = choose_readout(x, y, val_x, val_y)
    assert choice.scores[0]["map@r"] == retrieval_metrics(val_x, val_y)["map@r"]
    best = max(score["map@r"] for score in choice.scores)
    assert choice.readout is not None
    assert retrieval_metrics(choice.readout(val_x), val_y)["map@r"] == best
    for score in choice.scores[1:]:
        options = {name: score[name] for name in ("covariance", "shrinkage")}
        alone = retrieval_metrics(fit_readout(x, y, **options)(val_x), val_y)
        assert (score["recall@1"], score["map@r"]) == (alone["recall@1"], alone["map@r"])


def test_map_at_r_decides(monkeypatch):
    x, y = classes(5, 5, 4)
    figures = [{"recall@1": r, "map@r": m} for r, m in ((0.9, 0.1), (0.2, 0.3), (0.4, 0.2))]
    remaining = iter(figures)
    monkeypatch.setattr("bgl.readout.retrieval_metrics", lambda *_, **__: next(remaining))
    choice = choose_readout(x, y, x, y, shrinkages=(0.3,))
    assert choice.readout is not None
    assert torch.equal(choice.readout.weight, fit_readout(x, shrinkage=0.3).weight)


def test_plain_embeddings_win_where_whitening_hurts():
    generator = torch.Generator().manual_seed(0)
    y = torch.arange(80) // 4
    signal = torch.randn(20, 2, generator=generator)[y] * 10
    x = torch.cat([signal, torch.randn(80, 30, generator=generator)], dim=1)
    choice = choose_readout(x, y, x, y, covariances=("none", "total"), shrinkages=(0.01,))
    assert choice.readout is None


def test_state_dict_round_trip():
    x, _ = classes(5, 5, 4)
    readout = fit_readout(x)
    other = LinearReadout(torch.zeros(4).double(), torch.zeros(4, 4).double())
    other.load_state_dict(readout.state_dict())
    torch.testing.assert_close(other(x), readout(x))


X, Y = torch.randn(6, 3), torch.arange(6) // 2


@pytest.mark.parametrize(
    ("call", "named"),
    [
        (lambda: fit_readout(torch.zeros(3)), "`x`"),
        (lambda: fit_readout(X[:1]), "`x`"),
        (lambda: fit_readout(torch.full((3, 2), torch.nan)), "`x`"),
        (lambda: fit_readout(torch.ones(4, 2)), "`x` to vary"),
        (lambda: fit_readout(X, covariance="both"), "`covariance`"),
        (lambda: fit_readout(X, shrinkage=0.0), "`shrinkage`"),
        (lambda: fit_readout(X, dim=4), "`dim`"),
        (lambda: fit_readout(X, covariance="within"), "`y`"),
        (lambda: fit_readout(X, torch.arange(6), covariance="within"), "`y`"),
        (lambda: fit_readout(X, Y[:5], covariance="within"), "`y`"),
        (lambda: fit_readout(X[Y], Y, covariance="within", shrinkage=1), "`x` to vary within"),
        (lambda: LinearReadout(torch.zeros(2), torch.zeros(2, 3)), "`mean`"),
        (lambda: fit_readout(X)(torch.zeros(2, 4)), "`x`"),
    ],
)
def test_wrong_input_is_named(call, named):
    with pytest.raises(ValueError, match=named):
        call()
