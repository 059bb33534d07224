"""A sentence encoder that finds similar items for a language model."""

import shutil

import numpy as np
import pytest
import yaml

from personalization.backbones.cached import CachedScorer
from personalization.deployment import CONFIG, Deployment, sharing, write_files
from personalization.errors import DataError, UsageError
from personalization.methods.history.ranking import Histories
from studies.study import find_study, open_study, stored_spec
from studies.verdict.promotion import _config

EXACT = {"prior_mode": "similar", "ranking": "similarity", "fit": "exact"}


@pytest.fixture
def models(tiny_model, tiny_encoder):
    return {"path": str(tiny_model), "retriever": str(tiny_encoder)}


@pytest.fixture
def deployed(models, spec_of, tmp_path):
    """(study, folder of a deployment of similar items by the retriever)."""
    opened, out = open_study(spec_of(model=models, constraints={}), tmp_path / "home"), tmp_path / "deploy"
    params = opened.rooms.BASELINE.changed(gamma=1.0, width=0.2, **EXACT)
    fitted = opened.objective.fitted(params)
    out.mkdir()
    config = {**_config(opened, {"trial": 0}, "best"), "generation": 1, **write_files(fitted, out)}
    (out / CONFIG).write_text(yaml.safe_dump(config))
    return opened, params, out


def test_items_are_as_similar_as_the_retriever_says(models, tiny_encoder, spec_of, tmp_path):
    opened = open_study(spec_of(model=models), tmp_path)
    found = Histories(opened.scorer, opened.splits.tune).similarity
    assert np.allclose(found, Histories(CachedScorer(str(tiny_encoder), None), opened.splits.tune).similarity)
    own = open_study(spec_of(name="own", model={"path": models["path"]}), tmp_path)
    assert not np.allclose(found, Histories(own.scorer, own.splits.tune).similarity)
    assert (opened.baseline.log_probs == own.baseline.log_probs).all()


def test_a_study_goes_on_with_its_retriever_alone(models, spec_of, tmp_path):
    first = open_study(spec_of(model=models), tmp_path)
    assert first.record["retriever"] == CachedScorer(models["retriever"], None).fingerprint
    assert stored_spec(find_study("small", tmp_path, None)).model.retriever == models["retriever"]
    moved = shutil.copytree(models["retriever"], tmp_path / "elsewhere")
    open_study(spec_of(model={**models, "retriever": str(moved)}), tmp_path)
    with pytest.raises(UsageError, match=r"retriever: \w{16}\.\.\. -> None"):
        open_study(spec_of(model={"path": models["path"]}), tmp_path)


def test_a_study_without_one_does_not_get_one_later(models, spec_of, tmp_path):
    open_study(spec_of(), tmp_path)
    with pytest.raises(UsageError, match=r"retriever: None -> \w{16}\.\.\."):
        open_study(spec_of(model=models), tmp_path)


@pytest.mark.parametrize("swapped", [("encoder", "encoder"), ("causal", "causal"), ("encoder", "causal")])
def test_a_retriever_is_an_encoder_for_a_causal_model(swapped, tiny_model, tiny_encoder, spec_of, tmp_path):
    kinds = {"causal": str(tiny_model), "encoder": str(tiny_encoder)}
    model, retriever = swapped
    with pytest.raises(UsageError, match=f"model.retriever: .* kind {retriever} and .* of kind {model}; a retriever"):
        open_study(spec_of(model={"path": kinds[model], "retriever": kinds[retriever]}), tmp_path)


def test_a_deployment_answers_with_its_retriever(deployed):
    opened, params, out = deployed
    confirm = opened.splits.confirm
    served, measured = Deployment.load(out), opened.objective.evaluate(params, "confirm")
    assert np.allclose(served.aligned(confirm), measured.log_probs, atol=1e-5)
    assert served.scorer.retriever.texts_asked
    assert sharing(Deployment.load(out), served).scorer is served.scorer


def test_a_deployment_refuses_another_retriever_and_says_how_to_name_its_place(deployed, models, tiny_model, tmp_path):
    _, _, out = deployed
    config, with_one = yaml.safe_load((out / CONFIG).read_text()), Deployment.load(out)
    config["model"]["retriever"]["path"] = models["path"]
    (out / CONFIG).write_text(yaml.safe_dump(config))
    with pytest.raises(DataError, match=r"retriever .* is not the one .* set model.retriever.path in deploy.yaml"):
        Deployment.load(out)
    config["model"]["retriever"]["path"] = str(tmp_path / "nowhere")
    (out / CONFIG).write_text(yaml.safe_dump(config))
    with pytest.raises(DataError, match=r"retriever: .*nowhere.* set model.retriever.path in deploy.yaml"):
        Deployment.load(out)
    config["model"]["retriever"]["path"] = str(shutil.copytree(models["retriever"], tmp_path / "moved"))
    (out / CONFIG).write_text(yaml.safe_dump(config))
    moved = Deployment.load(out)
    assert moved.scorer.retriever.kind == "encoder"
    assert sharing(moved, with_one).scorer is with_one.scorer


def test_a_retriever_is_loaded_when_a_text_is_embedded(models, spec_of, tmp_path):
    scorer = open_study(spec_of(model=models), tmp_path).scorer
    assert "backbone" not in vars(scorer.unstored().retriever)
    scorer.embeddings(["a dog"])
    assert scorer.unstored().retriever.backbone is scorer.retriever.backbone


def test_one_that_shares_no_retriever_shares_no_model(deployed):
    _, _, out = deployed
    with_one = Deployment.load(out)
    config = {**with_one.config, "model": {**with_one.config["model"], "retriever": None}}
    assert sharing(Deployment(config, with_one.fitted, with_one.tools), with_one) is None
