"""Studies over adapters on a tiny model: the shared base stays what it was, and what a training gave is kept."""

import hashlib

import pytest
import torch
from optuna.trial import TrialState

from personalization.backbones import cached
from studies.runner import Watcher, run_study
from studies.study import find_study
from studies.trial import outcome_of

SPACE = {
    "adapter": "lora", "blend": 1.0, "fit": "searched", "prior_mode": "user", "k": 0, "start": [0.0, 0.5],
    "level": ["unified", "cluster", "user"], "groups": [2, 3], "cluster_by": "words", "rank": [2, 4, 8],
    "targets": ["attention", "mlp", "all"], "epochs": [1, 2], "anchor": 0.0, "word_dropout": 0.0,
}  # fmt: skip


@pytest.fixture
def models(monkeypatch):
    """Every model that is loaded."""
    found, load = [], cached.load_backbone

    def loaded(*given):
        found.append(load(*given))
        return found[-1]

    monkeypatch.setattr(cached, "load_backbone", loaded)
    return found


def state(model):
    digest = hashlib.sha256()
    for name, tensor in model.state_dict().items():
        digest.update(name.encode() + tensor.numpy().tobytes())
    with torch.inference_mode():
        return digest.hexdigest(), model(torch.arange(5, 25).view(2, 10), use_cache=False).logits.clone()


@pytest.mark.slow
@pytest.mark.timeout(1500)
def test_a_study_over_targets_and_ranks_leaves_the_model_as_it_was(tmp_path, spec_of, models):
    seen = []

    class Looking(Watcher):
        def trial(self, outcome, done, total):
            seen.append((outcome.params["targets"], outcome.params["rank"], *state(models[0].model)))

    spec = spec_of(objective="adapter", space=SPACE, sampler="random", trials=8, constraints={})
    result = run_study(spec, tmp_path, Looking())
    assert result.failed == 0
    assert len({(targets, rank) for targets, rank, *_ in seen}) > 4
    (model,) = models
    fresh = state(cached.load_backbone("causal", spec.model.path, "float32", "cpu", None, False).model)
    for *_, weights, logits in seen:
        assert weights == fresh[0]
        assert torch.equal(logits, fresh[1])
    assert not any(module._forward_hooks for module in model.model.modules())


@pytest.mark.slow
@pytest.mark.timeout(1500)
def test_what_a_training_gave_is_kept_step_by_step_also_of_pruned_trials(tmp_path, spec_of):
    space = {**SPACE, "epochs": 3, "lr": [1e-4, 2e-2], "level": "cluster", "rank": 4, "targets": "all", "start": 0.5}
    spec = spec_of(
        objective="adapter", space=space, sampler="random", trials=8, constraints={}, pruner="median",
        optimize={"nll": "minimize"},
    )  # fmt: skip
    result = run_study(spec, tmp_path)
    assert set(result.groups) <= {2, 3}
    outcomes = [outcome_of(trial) for trial in find_study("small", tmp_path, None).get_trials()]
    for outcome in outcomes:
        curves = outcome.curves
        assert curves["reported"]
        if outcome.duplicate_of is None:
            assert len(curves["training/held_out_loss"]) == len(curves["reported"])
            assert len(curves["training/train_loss"]) == len(curves["reported"])
        if outcome.state == "COMPLETE" and outcome.duplicate_of is None:
            assert curves["training/epoch"][-1] == outcome.metrics["epochs_run"]
    assert {outcome.state for outcome in outcomes} == {TrialState.COMPLETE.name, TrialState.PRUNED.name}
    best = tmp_path / "results" / "small" / "best"
    assert {"training.png", "groups.png"} <= {path.name for path in best.iterdir()}
