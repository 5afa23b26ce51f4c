"""How a crop study compares inputs, draws configurations and trains: against literal loops and scikit-learn."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from torch import nn

from dsengine.errors import RunError
from dsengine.evaluate.crops.compare import gains, wins
from dsengine.evaluate.crops.fit import Part, Recipe, class_weights, fit, predict

# Of 10 test rows, so that ties are common.
ACCURACIES = arrays(np.float64, st.tuples(st.integers(1, 4), st.integers(1, 6)), elements=st.integers(0, 10).map(lambda n: n / 10))
RECIPE = Recipe(epochs=12, patience=3, keep="best", batch_size=7, weight_decay=0.0, class_weight="none")


@given(ACCURACIES)
def test_win_matrix_is_its_definition_pair_by_pair(accuracy: np.ndarray) -> None:
    found = wins(accuracy)
    for i in range(len(accuracy)):
        for j in range(len(accuracy)):
            won = lost = ties = 0
            for a, b in zip(accuracy[i], accuracy[j]):
                won, lost, ties = won + (a > b), lost + (a < b), ties + (a == b)
            assert (found.won[i, j], found.won[j, i], found.ties[i, j]) == (won, lost, ties)
            if won + lost:
                assert found.share[i, j] == won / (won + lost)
            else:
                assert np.isnan(found.share[i, j])


@given(ACCURACIES)
def test_shares_of_a_pair_add_up_to_one_and_the_diagonal_is_undefined(accuracy: np.ndarray) -> None:
    share = wins(accuracy).share
    both = share + share.T
    assert np.isnan(np.diag(share)).all() and np.allclose(both[np.isfinite(both)], 1)


@given(ACCURACIES)
def test_gain_is_its_definition_and_undefined_over_zero(accuracy: np.ndarray) -> None:
    found = gains(accuracy, accuracy[0])
    for i in range(len(accuracy)):
        for k, reference in enumerate(accuracy[0]):
            if reference == 0:
                assert np.isnan(found[i, k])
            else:
                assert found[i, k] == pytest.approx((accuracy[i, k] - reference) / reference * 100, abs=1e-12)


def test_class_weights_are_scikit_learns_balanced_ones() -> None:
    from sklearn.utils.class_weight import compute_class_weight

    y = torch.tensor([0, 0, 0, 0, 2, 2, 3])
    expected = compute_class_weight("balanced", classes=np.array([0, 2, 3]), y=y.numpy())
    assert class_weights(y, 5).tolist() == pytest.approx([expected[0], 0, expected[1], expected[2], 0])


def problem(count: int = 60, seed: int = 0) -> Part:
    """Two classes told by the first channel of the mean."""
    generator = torch.Generator().manual_seed(seed)
    y = torch.randint(0, 2, (count,), generator=generator)
    return Part(torch.randn(count, 3, 2, generator=generator) + y[:, None, None] * torch.tensor([2.0, 0.0]), y)


class Plain(nn.Module):
    """Linear in the mean over dates."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(4)
        self.linear = nn.Linear(2, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.linear(x.mean(1))


def test_a_fit_equals_a_loop_written_out() -> None:
    train, val, network, ours = problem(), problem(20, 1), Plain(), Plain()
    fitted = fit(ours, train, val, RECIPE, lr=0.03, classes=2, seed=9, what="it")
    optimizer, shuffle = torch.optim.Adam(network.parameters(), lr=0.03), torch.Generator().manual_seed(9)
    losses = []
    for _ in range(12):
        order = torch.randperm(60, generator=shuffle).tolist()
        for lo in range(0, 60, 7):
            rows = order[lo:lo + 7]
            optimizer.zero_grad()
            F.cross_entropy(network(train.x[rows]), train.y[rows]).backward()
            optimizer.step()
        losses.append(F.cross_entropy(network(val.x), val.y).item())
        if losses[-1] == min(losses):
            best = {key: value.clone() for key, value in network.state_dict().items()}
        if len(losses) - losses.index(min(losses)) > 3:
            break
    assert [record["val_loss"] for record in fitted.history] == pytest.approx(losses, rel=1e-5)
    assert fitted.best_epoch == losses.index(min(losses)) + 1
    assert all(torch.allclose(value, best[key], atol=1e-6) for key, value in ours.state_dict().items())


def test_weights_of_the_classes_enter_the_loss_as_a_sum_over_rows() -> None:
    train, val, network = problem(), problem(20, 1), Plain()
    recipe = Recipe(epochs=1, patience=None, keep="last", batch_size=7, weight_decay=0.0, class_weight="inverse")
    weight = class_weights(train.y, 2)
    expected = sum(weight[y] * -network(x[None])[0].log_softmax(0)[y] for x, y in zip(*train)) / 60
    assert fit(network, train, val, recipe, lr=1e-9, classes=2, seed=0, what="it").history[0]["loss"] == pytest.approx(expected.item(), rel=1e-5)


def test_parity_trains_every_epoch_and_keeps_the_last_even_where_val_got_worse() -> None:
    train, val = problem(), problem(20, 1)._replace(y=1 - problem(20, 1).y)  # val contradicts train
    last = fit(Plain(), train, val, Recipe(epochs=8, patience=None, keep="last", batch_size=7, weight_decay=0.0, class_weight="none"), lr=0.1,
               classes=2, seed=0, what="it")
    best = fit(Plain(), train, val, RECIPE, lr=0.1, classes=2, seed=0, what="it")
    assert (last.best_epoch, len(last.history)) == (8, 8) and (best.best_epoch, len(best.history)) == (1, 4)
    for fitted, epoch in ((last, 8), (best, 1)):
        assert F.cross_entropy(fitted.network(val.x), val.y).item() == pytest.approx(fitted.history[epoch - 1]["val_loss"], rel=1e-6)
    assert last.history[-1]["val_loss"] > last.history[0]["val_loss"]


def test_the_same_seed_gives_the_same_weights_and_another_one_others() -> None:
    weights = [fit(Plain(), problem(), problem(20, 1), RECIPE, lr=0.03, classes=2, seed=seed, what="it").network.linear.weight for seed in (1, 1, 2)]
    assert torch.equal(weights[0], weights[1]) and not torch.equal(weights[0], weights[2])


def test_a_last_batch_of_one_row_is_no_trouble_for_batchnorm() -> None:
    network = nn.Sequential(nn.Flatten(), nn.BatchNorm1d(6), nn.Linear(6, 2))
    fitted = fit(network, problem(15), problem(5, 1), RECIPE, lr=0.01, classes=2, seed=0, what="it")
    assert predict(fitted.network, problem(5, 1).x).shape == (5,)


def test_a_loss_that_is_not_finite_names_the_fit() -> None:
    train = problem()
    with pytest.raises(RunError, match="bilstm 3: the loss is not finite in epoch 1"):
        fit(Plain(), train._replace(x=train.x * torch.inf), train, RECIPE, lr=0.01, classes=2, seed=0, what="bilstm 3")


class TestSearch:
    """Configurations."""

    optuna = pytest.importorskip("optuna", reason="the extra `evaluate` is not installed")
    SPACES = {"bilstm": {"hidden": {32, 64, 128, 256}, "layers": set(range(2, 7)), "dropout": (0, 0.6)},
              "inception": {"width": {128, 256, 512}, "layers": {2, 4, 6, 8}, "kernel": {40, 80, 120, 160}},
              "transformer": {"width": {32, 64, 128}, "layers": set(range(2, 7)), "heads": {2, 4, 8}, "dropout": (0, 0.6)}}

    @pytest.mark.parametrize("network", SPACES)
    def test_all_of_the_papers_space_and_nothing_else_is_drawn(self, network: str) -> None:
        from dsengine.evaluate.crops.search import configurations

        drawn = [c.to_json() for c in configurations(network, 200, seed=0)]
        for name, legal in self.SPACES[network].items():
            values = [c[name] for c in drawn]
            if isinstance(legal, set):
                assert set(values) == legal
            else:
                assert legal[0] <= min(values) < 0.03 and 0.57 < max(values) <= legal[1]
        assert set(drawn[0]) == {"network", "number", "lr", *self.SPACES[network]}

    def test_learning_rates_are_even_on_a_log_scale_and_with_parity_on_a_plain_one(self) -> None:
        from dsengine.evaluate.crops.search import configurations

        log, plain = (np.array([c.lr for c in configurations("bilstm", 300, seed=1, parity=parity)]) for parity in (False, True))
        # Kolmogorov's distance from the law that is meant stays below its 0.1 % point, 1.95 / sqrt(300), and is far from the other's.
        distance = lambda u: np.abs(np.sort(u) - (np.arange(300) + 0.5) / 300).max()  # noqa: E731
        assert distance(np.log(log / 1e-5) / np.log(100)) < 0.113 < distance((log - 1e-5) / (1e-3 - 1e-5))
        assert distance((plain - 1e-5) / (1e-3 - 1e-5)) < 0.113 < distance(np.log(plain / 1e-5) / np.log(100))

    def test_more_configurations_go_on_behind_fewer_and_seeds_and_networks_differ(self) -> None:
        from dsengine.evaluate.crops.search import configurations

        assert configurations("transformer", 10, seed=3)[:4] == configurations("transformer", 4, seed=3) != configurations("transformer", 4, seed=4)
        assert configurations("transformer", 1, seed=3)[0].lr != configurations("bilstm", 1, seed=3)[0].lr

    def test_shrinking_divides_widths_and_leaves_the_rest(self) -> None:
        from dsengine.evaluate.crops.search import configurations

        for network, width in (("bilstm", "hidden"), ("inception", "width"), ("transformer", "width")):
            for full, small in zip(configurations(network, 20, seed=0), configurations(network, 20, seed=0, shrink=4)):
                assert {**small.to_json(), width: 4 * small.to_json()[width]} == full.to_json()
