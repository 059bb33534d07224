from itertools import pairwise

import numpy as np
import pytest
import torch

from personalization.scoring.passes import TokenBudget, next_batch, score_all
from personalization.scoring.routes import Router
from personalization.scoring.rows import Row
from tests.tiny import make_model

CANDIDATES = [[1], [1, 2], [3, 4, 5], [9]]


def rate_of(budget: TokenBudget, rate, batches: int = 60) -> None:
    for _ in range(batches):
        budget.observe(budget.tokens, budget.tokens / rate(budget.tokens))


@pytest.mark.parametrize("best", [256, 1024, 4096])
def test_the_budget_finds_the_fastest_batch(best):
    budget = TokenBudget("cpu")
    rate_of(budget, lambda tokens: 1000 - 100 * abs(np.log2(tokens / best)))
    assert budget.settled
    assert budget.tokens == best


def test_the_budget_keeps_the_smaller_of_two_equals_and_stops_at_the_largest():
    flat, growing = TokenBudget("cpu"), TokenBudget("cpu")
    rate_of(flat, lambda tokens: 1000.0)
    rate_of(growing, lambda tokens: tokens)
    assert flat.tokens == 256
    assert growing.tokens == growing.largest == 8192


def test_one_slow_batch_does_not_settle_the_budget():
    budget = TokenBudget("cpu")
    seconds = iter([9.0, 1.0, 9.0, 1.0, 1.0, 1.0] + [1.0] * 50)
    while not budget.settled:
        budget.observe(budget.tokens, next(seconds))
    assert budget.tokens == 8192


def test_a_batch_that_is_half_empty_says_nothing():
    budget = TokenBudget("cpu")
    for _ in range(10):
        budget.observe(budget.tokens // 2 - 1, 1.0)
    assert budget.tokens == 256
    assert not budget.settled


def test_a_batch_holds_what_fits_and_at_least_one_row():
    rows = [Row((i,), 0, width) for i, width in enumerate([50, 50, 40, 40, 40, 10])]
    assert len(next_batch(rows, 0, 120, False)) == 2
    assert len(next_batch(rows, 2, 120, False)) == 3
    assert len(next_batch(rows, 0, 1, False)) == 1
    assert [row.width for row in next_batch(rows, 1, 500, True)] == [50]


def test_a_batch_ends_where_padding_would_cost_more_than_a_batch():
    def batches(*widths):
        rows, at, found = [Row((i,), 0, width) for i, width in enumerate(widths)], 0, []
        while at < len(rows):
            found.append([row.width for row in next_batch(rows, at, 512, False)])
            at += len(found[-1])
        return found

    assert batches(200, 100, 100, 100) == [[200], [100, 100, 100]]
    assert batches(100, 98, 96, 96, 94) == [[100, 98, 96, 96, 94]]
    assert batches(256, 255, 20, 20) == [[256, 255], [20, 20]]


class Recorder:
    """A route that counts its batches and may run out of memory."""

    same_width = False

    def __init__(self, route, largest=None):
        self.model, self.units, self.route, self.largest = route.model, route.units, route, largest
        self.sizes = []

    def score(self, rows):
        self.sizes.append(len(rows))
        if self.largest is not None and len(rows) > self.largest:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return self.route.score(rows)


@pytest.fixture
def route():
    random = np.random.default_rng(0)
    prompts = [random.integers(0, 400, size).astype(np.int32) for size in random.integers(5, 40, 24)]
    ((_, chosen),) = Router(make_model("llama")).routes(prompts, CANDIDATES)
    return chosen


def empty():
    return np.full((24, len(CANDIDATES)), np.nan, dtype=np.float32)


@pytest.mark.slow
def test_out_of_memory_halves_the_batch_and_goes_on(route):
    expected, known = empty(), empty()
    score_all(route, expected, TokenBudget())
    budget, limited = TokenBudget(), Recorder(route, largest=3)
    budget.halve(100_000)
    score_all(limited, known, budget)
    assert np.abs(known - expected).max() <= 1e-5
    fitted = next(place for place, size in enumerate(limited.sizes) if size <= 3)
    assert limited.sizes[0] > 12, "begins with what the budget allows"
    assert all(after <= before / 2 for before, after in pairwise(limited.sizes[: fitted + 1]))
    assert max(limited.sizes[fitted:]) <= 6


def test_out_of_memory_on_a_single_row_is_raised(route):
    budget = TokenBudget()
    with pytest.raises(torch.OutOfMemoryError):
        score_all(Recorder(route, largest=0), empty(), budget)


def test_other_errors_are_raised_at_once(route):
    class Broken(Recorder):
        def score(self, rows):
            self.sizes.append(len(rows))
            raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")

    broken = Broken(route)
    with pytest.raises(RuntimeError, match="shapes"):
        score_all(broken, empty(), TokenBudget())
    assert len(broken.sizes) == 1


def test_a_pass_killed_ten_times_computes_one_batch_twice_each_time(route):
    expected, known, saved = empty(), empty(), empty()
    score_all(route, expected, TokenBudget())
    computed = []

    class Killed(BaseException):
        pass

    def keep(rows, scores):
        computed.append(len(rows))
        if len(computed) % 2 == 0 and len(computed) <= 20:
            raise Killed  # after the work, before it is written down
        saved[rows] = scores

    for _ in range(10):
        known[:] = saved
        budget = TokenBudget()
        budget.halve(2)
        with pytest.raises(Killed):
            score_all(route, known, budget, keep)
    known[:] = saved
    budget = TokenBudget()
    budget.halve(2)
    score_all(route, known, budget, keep)
    assert np.abs(known - expected).max() <= 1e-5
    assert sum(computed) == 24 + 10


def test_progress_counts_what_an_earlier_pass_has_found(route):
    known, seen = empty(), []
    score_all(route, known, TokenBudget(), progress=lambda done, total: seen.append((done, total)))
    assert seen[-1] == (24, 24)
    known[4:] = np.nan
    seen.clear()
    score_all(route, known, TokenBudget(), progress=lambda done, total: seen.append((done, total)))
    assert seen[0][0] > 4
    assert seen[-1] == (24, 24)
