"""The planted world and its models hold what the demo promises. The full figures: benchmarks/demo_world.py."""

import importlib.util
import json
from pathlib import Path

import numpy as np
import pytest
from scipy.stats import chisquare

from personalization.backbones.cached import CachedScorer
from personalization.backbones.location import EMBEDDED
from personalization.data.demo.train import draw_document
from personalization.data.demo.world import (
    AMBIGUOUS_CUES,
    CLEAR_CUES,
    GROUPS,
    INSIDER_CUES,
    READINGS,
    TAGS,
    TASTE,
    User,
    draw_movie,
    make_world,
)
from personalization.evaluation import gold_indices
from personalization.methods.taste.priors import history_counts

ROOT = Path(__file__).parents[3]


def benchmark():
    """The benchmark script as a module, so that test and benchmark measure with the same code."""
    spec = importlib.util.spec_from_file_location("demo_world", ROOT / "benchmarks" / "demo_world.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def world():
    return make_world(0)


@pytest.fixture(scope="module")
def figures(world, tmp_path_factory):
    """Everything that the benchmark measures."""
    return benchmark().measure(CachedScorer("demo", tmp_path_factory.mktemp("cache") / "scores"), world)


def test_readings_are_four_for_ambiguous_cues_and_one_for_clear_ones():
    for cue, tags in AMBIGUOUS_CUES.items():
        assert set(READINGS[cue]) == set(tags)
        assert len(set(READINGS[cue])) == GROUPS
    for tag, cues in CLEAR_CUES.items():
        assert all(READINGS[cue] == (tag,) * GROUPS for cue in (*cues, INSIDER_CUES[tag]))
    assert set(CLEAR_CUES) == set(INSIDER_CUES) == set(TAGS)


def test_labels_are_drawn_as_the_docstring_says():
    rng = np.random.default_rng(0)
    user = User("u", 2, rng.normal(0, TASTE, len(TAGS)))
    drawn: dict[str, list[str]] = {}
    for _ in range(4000):
        cue, _, tag = draw_movie(rng, user)
        drawn.setdefault(cue, []).append(tag)
    cue = max(drawn, key=lambda c: len(drawn[c]))
    logits = user.taste.copy()
    if READINGS[cue][2] is not None:
        logits[TAGS.index(READINGS[cue][2])] += 5.5
    expected = np.exp(logits) / np.exp(logits).sum() * len(drawn[cue])
    counts = np.array([drawn[cue].count(tag) for tag in TAGS], dtype=float)
    rare = expected < 5
    pooled = [np.append(v[~rare], v[rare].sum()) for v in (counts, expected)]
    assert chisquare(*pooled).pvalue > 1e-4


def test_seed_draws_users_and_questions():
    assert make_world(0, 5).dataset == make_world(0, 5).dataset
    assert make_world(0, 5).dataset != make_world(1, 5).dataset
    lengths = {len(q.history) for q in make_world(0, 300).dataset.questions}
    assert (min(lengths), max(lengths)) == (8, 40)


def test_null_world_has_no_users_that_differ():
    world = make_world(0, 300, null=True)
    dataset = world.dataset
    gold, counts = gold_indices(dataset), history_counts(dataset)
    own = counts[np.arange(len(gold)), gold] / counts.sum(axis=1)
    assert abs(own.mean() - 1 / len(TAGS)) < 0.01
    assert {user.group for user in world.users.values()} == {None}
    assert not set(world.cues.values()) & set(INSIDER_CUES.values())


def test_the_model_has_never_seen_an_insider_cue():
    rng = np.random.default_rng(0)
    text = "".join(segment for _ in range(300) for segment, _ in draw_document(rng, False).segments)
    assert any(cue in text for cue in AMBIGUOUS_CUES)
    assert not [cue for cue in INSIDER_CUES.values() if cue in text]


@pytest.mark.parametrize("name", EMBEDDED)
def test_embedded_models_are_small_safe_and_documented(name):
    folder = EMBEDDED[name]
    files = {path.name: path.stat().st_size for path in folder.iterdir()}
    assert {"model.safetensors", "config.json", "tokenizer.json", "README.md"} <= set(files)
    assert not [file for file in files if file.endswith((".bin", ".pt", ".pkl"))]
    assert sum(sum(p.stat().st_size for p in f.iterdir()) for f in EMBEDDED.values()) <= 8_000_000
    config = json.loads((folder / "config.json").read_text())
    assert config["model_type"] == "llama"
    assert "python -m personalization.data.demo.train" in (folder / "README.md").read_text()


@pytest.mark.slow
@pytest.mark.timeout(1500)
def test_the_untuned_model_is_biased(figures):
    untuned = figures["untuned"]
    assert figures["confirm_users"] >= 150
    assert figures["confirm_questions"] >= 5 * figures["confirm_users"]
    assert untuned["top1_share"] >= 0.60
    assert untuned["entropy"] <= figures["gold_entropy"] - 1
    assert untuned["accuracy"] <= 0.45


@pytest.mark.slow
def test_calibration_is_feasible_adds_taste_and_helps(figures):
    calibrated = figures["calibrated"]
    assert calibrated["entropy"] >= 0.6
    assert calibrated["top1_share"] <= 0.55
    assert calibrated["accuracy"] >= figures["untuned"]["accuracy"] + 0.10
    assert calibrated["gamma"] > 0
    assert figures["taste_subtracted"] <= calibrated["accuracy"] - 0.10


@pytest.mark.slow
def test_history_and_steering_know_what_a_prior_cannot(figures):
    untuned, calibrated = figures["untuned"]["accuracy"], figures["calibrated"]["accuracy"]
    assert figures["history_in_prompt"] >= untuned + 0.10
    assert figures["steered"]["accuracy"] >= untuned + 0.10
    assert figures["steered_and_calibrated"]["accuracy"] >= calibrated + 0.04
    assert figures["oracle"] >= calibrated + 0.10


@pytest.mark.slow
def test_steering_has_an_interior_best_strength_and_layer(figures):
    table = {}
    for name, accuracy in figures["steering_on_tune"].items():
        layer, _, strength = name.partition(" x")
        table[layer, float(strength)] = accuracy
    (layer, strength), best = max(table.items(), key=lambda item: item[1])
    strengths = sorted({s for _, s in table})
    assert strengths[0] < strength < strengths[-1]
    assert best > table[layer, strengths[-1]] + 0.02
    assert layer != "0"
    assert best > table["5", strength] + 0.02


@pytest.mark.slow
def test_one_adapter_a_group_can_beat_one_for_all_and_that_one_a_user(figures):
    regression = figures["regression_on_cues"]
    assert regression["by_group"] > regression["for_all"] + 0.10
    assert regression["for_all"] > regression["by_user"] + 0.02
