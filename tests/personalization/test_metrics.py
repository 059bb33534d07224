import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from sklearn import metrics as sk

from personalization.evaluation import changes, joined
from personalization.metrics import METRICS, calibration_error, entropy_bits, mae, metrics_of, rmse


@settings(max_examples=60, deadline=None)
@given(st.integers(2, 7), st.integers(1, 60), st.integers(0, 10**6))
def test_metrics_equal_scikit_learn(k, n, seed):
    rng = np.random.default_rng(seed)
    scores = rng.normal(size=(n, k)) * 2
    log_probs = scores - np.log(np.exp(scores).sum(axis=1, keepdims=True))
    gold, predicted = rng.integers(0, k, n), log_probs.argmax(axis=1)
    one_hot, ours = np.eye(k)[gold], {name: m.measure(log_probs, predicted, gold) for name, m in METRICS.items()}
    assert ours["accuracy"] == pytest.approx(sk.accuracy_score(gold, predicted))
    assert ours["macro_f1"] == pytest.approx(
        sk.f1_score(gold, predicted, labels=range(k), average="macro", zero_division=0)
    )
    assert ours["nll"] == pytest.approx(sk.log_loss(gold, np.exp(log_probs), labels=range(k)))
    assert ours["brier"] == pytest.approx(((np.exp(log_probs) - one_hot) ** 2).sum(axis=1).mean())
    recalls = sk.recall_score(gold, predicted, labels=np.unique(gold), average=None, zero_division=0)
    assert ours["balanced_accuracy"] == pytest.approx(recalls.mean())


def test_check_values_of_entropy_and_top1_share():
    predicted = np.repeat([0, 1, 2], [16, 3, 1])
    log_probs = np.log(np.full((20, 3), 1 / 3))
    assert METRICS["entropy"].measure(log_probs, predicted, predicted) == pytest.approx(0.884, abs=5e-4)
    assert METRICS["top1_share"].measure(log_probs, predicted, predicted) == 0.80


def test_calibration_error_is_unbiased_where_calibration_is_perfect():
    rng = np.random.default_rng(0)
    errors = []
    for _ in range(200):
        confidence = rng.uniform(0.4, 0.95, 300)
        gold = (rng.random(300) > confidence).astype(np.int64)
        log_probs = np.log(np.stack([confidence, 1 - confidence], axis=1))
        errors.append(calibration_error(log_probs, np.zeros(300, dtype=np.int64), gold))
    assert abs(np.mean(errors)) < 0.002


@settings(max_examples=50, deadline=None)
@given(hnp.arrays(np.int64, st.integers(1, 8), elements=st.integers(0, 50)).filter(lambda c: c.sum() > 0))
def test_entropy_is_between_zero_and_log2_k(counts):
    assert 0 <= entropy_bits(counts) <= np.log2(len(counts)) + 1e-9


def test_errors_of_scores_are_those_of_scikit_learn():
    rng = np.random.default_rng(0)
    log_probs = rng.normal(size=(200, 5))
    predicted, gold = log_probs.argmax(axis=1), rng.integers(0, 5, 200)
    assert mae(log_probs, predicted, gold) == pytest.approx(sk.mean_absolute_error(gold, predicted))
    assert rmse(log_probs, predicted, gold) == pytest.approx(sk.root_mean_squared_error(gold, predicted))


@pytest.mark.parametrize(
    ("labels", "ordered"),
    [
        (("1", "2", "3", "4", "5"), True),
        (("0", "1", "2"), True),
        (("1", "3", "5"), False),
        (("5", "4", "3"), False),
        (("[1]", "[2]"), False),
        (("drama", "comedy"), False),
    ],
)
def test_only_numbers_in_a_row_have_errors(labels, ordered):
    assert ("mae" in metrics_of(labels)) == ordered


def test_what_changed_is_told_in_shares_whatever_the_number_of_questions(evaluations):
    """A bound on them means the same on tune, select and confirm."""
    once, twice = (changes(*(joined([each] * times) for each in evaluations)) for times in (1, 2))
    assert twice == pytest.approx(once)
    baseline, candidate = evaluations
    assert once["helped"] == pytest.approx((candidate.correct & ~baseline.correct).sum() / len(baseline.gold))
    assert once["accuracy_gain"] == pytest.approx(once["helped"] - once["hurt"])
