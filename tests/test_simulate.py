"""The simulation behind docs/scaling.md agrees with what is known in closed form, and with itself."""

import importlib.util
import math
import sys
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest


@pytest.fixture(scope="module")
def simulate(checkout: Path) -> ModuleType:
    """bench/simulate.py."""
    spec = importlib.util.spec_from_file_location("bench_simulate", checkout / "bench" / "simulate.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


def _ring_by_hand(num_bytes: int, ranks: int) -> int:
    """Bytes that one rank sends when chunks go round: ranks - 1 rounds of sums, ranks - 1 of results. Sums are checked too."""
    chunks = np.tile(np.arange(ranks, dtype=np.int64), (ranks, 1)) + 100 * np.arange(ranks)[:, None]
    wanted, sent = chunks.sum(0), 0
    for turn in range(2 * (ranks - 1)):
        moved = [(rank, (rank - turn) % ranks, chunks[rank, (rank - turn) % ranks]) for rank in range(ranks)]
        for rank, chunk, value in moved:
            to = (rank + 1) % ranks
            chunks[to, chunk] = chunks[to, chunk] + value if turn < ranks - 1 else value
        sent += num_bytes // ranks
    assert (chunks == wanted).all()
    return sent


@pytest.mark.parametrize("ranks", [2, 3, 8])
def test_a_ring_sends_what_a_ring_by_hand_sends(simulate: ModuleType, ranks: int) -> None:
    num_bytes = 2**10 * 3 * ranks
    assert simulate.ring_all_reduce(num_bytes, ranks, bandwidth=1.0) == _ring_by_hand(num_bytes, ranks)
    assert simulate.ring_all_reduce(0, ranks, bandwidth=1.0, hop=0.5) == ranks - 1


def test_one_rank_exchanges_nothing(simulate: ModuleType) -> None:
    machine = simulate.Machine()
    assert simulate.all_reduce(46e6, 1, machine) == 0 == simulate.gather(2e6, 1, machine)


def test_two_levels_are_one_ring_where_both_are_alike_but_for_latency(simulate: ModuleType) -> None:
    # Reduce-scatter inside, all-reduce of the shares outside, all-gather inside: the same bytes on each GPU as one ring of all.
    machine = simulate.Machine(inside=1e9, outside=1e9, hop_inside=0, hop_outside=0)
    assert simulate.all_reduce(46e6, 64, machine) == pytest.approx(simulate.ring_all_reduce(46e6, 64, bandwidth=1e9))
    assert simulate.gather(2e6, 64, machine) == pytest.approx(simulate.all_gather(2e6, 64, bandwidth=1e9))


def test_the_largest_of_two_normal_variables_is_known_exactly(simulate: ModuleType) -> None:
    assert simulate.largest_normal(1) == 0
    assert simulate.largest_normal(2) == pytest.approx(1 / math.sqrt(math.pi), abs=0.03)


@pytest.mark.parametrize("count", [8, 64, 1024])
def test_the_largest_of_n_normal_variables_is_that_of_a_draw(simulate: ModuleType, count: int) -> None:
    drawn = np.random.default_rng(0).standard_normal((4000, count)).max(1).mean()
    assert simulate.largest_normal(count) == pytest.approx(drawn, abs=0.03)


def test_simulated_steps_with_stragglers_take_what_the_closed_form_says(simulate: ModuleType) -> None:
    job, machine = simulate.Job(jitter=0.05), simulate.Machine()
    for ranks in (1, 8, 64):
        steps = simulate.simulate_steps(job, machine, ranks, steps=1500)
        assert steps.mean() == pytest.approx(simulate.step_seconds(job, machine, ranks), rel=0.004)


def test_a_slow_loader_sets_the_pace_and_a_fast_one_none(simulate: ModuleType) -> None:
    job, machine = simulate.Job(jitter=0.0, load=0.2, compute=0.1), simulate.Machine()
    assert simulate.simulate_steps(job, machine, 1, steps=100)[10:] == pytest.approx(0.2)
    hidden = simulate.simulate_steps(replace(job, load=0.09), machine, 1, steps=100)
    assert hidden[10:] == pytest.approx(0.1) and hidden[0] == pytest.approx(0.19)  # the first batch is waited for


def test_a_queue_hides_uneven_loading_and_a_short_one_hides_less(simulate: ModuleType) -> None:
    job, machine = simulate.Job(jitter=0.0, load=0.095, compute=0.1), simulate.Machine()
    means = [simulate.simulate_steps(replace(job, depth=depth), machine, 1, steps=3000, load_jitter=0.5).mean() for depth in (1, 2, 8, 64)]
    assert means == sorted(means, reverse=True)
    assert means[0] > 0.115 and means[-1] < 0.102


def test_the_wait_of_a_queue_is_that_of_requests_drawn_at_random(simulate: ModuleType) -> None:
    # M/D/1 by Lindley's recursion.
    for utilisation in (0.3, 0.7):
        gaps = np.random.default_rng(1).exponential(1 / utilisation, 200_000)
        wait, total = 0.0, 0.0
        for gap in gaps:
            wait = max(0.0, wait + 1.0 - gap)
            total += wait
        assert simulate.queue_wait(1.0, utilisation=utilisation) == pytest.approx(total / len(gaps), rel=0.03)


def test_youngs_interval_is_where_the_expected_time_is_least(simulate: ModuleType) -> None:
    settings = dict(cost=10.0, restart=100.0, mtbf=20_000.0)
    grid = np.linspace(100, 3000, 2901)
    times = [simulate.run_seconds(1e6, interval=x, **settings) for x in grid]
    assert grid[int(np.argmin(times))] == pytest.approx(simulate.best_interval(20_000.0, 10.0), rel=0.03)
    # First order: half an interval lost a failure, one checkpoint an interval, one restart a failure.
    young = simulate.best_interval(20_000.0, 10.0)
    assert min(times) / 1e6 - 1 == pytest.approx(10 / young + (young / 2 + 100) / 20_000, rel=0.05)


def test_simulated_runs_with_failures_take_dalys_time(simulate: ModuleType) -> None:
    step, every, cost, restart, mtbf = 1.0, 300, 5.0, 60.0, 3000.0
    runs = [simulate.simulate_run(30_000, step=step, every=every, cost=cost, restart=restart, mtbf=mtbf, seed=k) for k in range(120)]
    assert all(run.steps == 30_000 for run in runs)
    expected = simulate.run_seconds(30_000.0, interval=every * step, cost=cost, restart=restart, mtbf=mtbf)
    assert np.mean([run.seconds for run in runs]) == pytest.approx(expected, rel=0.01)
    assert np.mean([run.failures for run in runs]) == pytest.approx(expected / mtbf, rel=0.1)


def test_without_failures_a_run_is_its_steps_and_checkpoints(simulate: ModuleType) -> None:
    run = simulate.simulate_run(1000, step=0.5, every=300, cost=2.0, restart=60.0, mtbf=1e15)
    assert run == (1000 * 0.5 + 4 * 2.0, 1000, 0)
