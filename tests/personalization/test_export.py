"""What other tools read of a deployment gives the scores that we give: PEFT loads the LoRA, GGUF holds the vectors."""

import json
from contextlib import ExitStack

import numpy as np
import pytest
import torch
import yaml
from gguf import GGUFReader
from peft import PeftModel
from safetensors import safe_open

from chamtune.served import Served
from personalization.backbones.cached import CachedScorer
from personalization.backbones.causal import CausalBackbone, load_causal
from personalization.deployment import CONFIG, FORMAT, Deployment, write_files
from personalization.errors import UsageError
from personalization.stages import chain
from personalization.stages.work import Tools, begin, scores_of
from tests.personalization.stages.chains import TRAINED, fitted_on, growing, params_of

EDITED = {"steering.front": "answered", "steering.alpha_personal": 1.5, "steering.scope": "all"}


def deployed(model, folder, chained, settings):
    """A deployment of a chain that was fitted on a small world."""
    scorer, dataset = CachedScorer(str(model), None), growing(5, 8)
    fitted = fitted_on(dataset, params_of(chained, settings), Tools(scorer, folder=folder / "adapters"))
    told = {"path": str(model), "dtype": "float32", "device": "auto", "blocks": None, "chat": False}
    config = {
        "format": FORMAT,
        "generation": 1,
        "model": {**told, "fingerprint": scorer.fingerprint},
        "task": dataset.task.name,
        "labels": list(dataset.labels),
        **write_files(fitted, folder / "deploy"),
        "provenance": {},
    }
    (folder / "deploy" / CONFIG).write_text(yaml.safe_dump(config))
    return Deployment.load(folder / "deploy")


def edited_scores(deployment, dataset):
    """Scores [n, K] as the stages below the calibration leave them."""
    work = begin(dataset, deployment.tools)
    for name in deployment.fitted.chain[:-1]:
        work = chain.acted(deployment.fitted, name, work, deployment.tools)
    return work, scores_of(work, deployment.tools)


def test_peft_loads_an_exported_lora_and_scores_alike(tiny_model, tmp_path):
    lora = {"adapter.adapter": "lora", **TRAINED}
    deployment, dataset = deployed(tiny_model, tmp_path, ("adapter", "calibration"), lora), growing(6, 3)
    lines = deployment.export(dataset.questions, tmp_path / "out")
    assert "LoRA in PEFT's format" in lines[0]
    assigned = json.loads((tmp_path / "out/adapters/assigned.json").read_text())
    assert assigned == {q.user_id: 0 for q in dataset.questions}
    work, ours = edited_scores(deployment, dataset)
    plain = load_causal(str(tiny_model), device="cpu")
    wrapped = PeftModel.from_pretrained(plain.model, tmp_path / "out/adapters/group-0").merge_and_unload()
    theirs = CausalBackbone(wrapped, plain.tokenizer).label_logprobs(work.prompts, work.spoken)
    assert np.abs(ours - theirs).max() < 1e-4
    assert np.abs(ours - deployment.scorer.backbone.label_logprobs(work.prompts, work.spoken)).max() > 1e-3


def test_control_vectors_move_the_model_as_the_chain_does(tiny_model, tmp_path):
    deployment, dataset = deployed(tiny_model, tmp_path, ("steering", "calibration"), EDITED), growing(6, 3)
    Served(deployment).export(dataset.questions, tmp_path / "out")
    names = json.loads((tmp_path / "out/control-vectors/users.json").read_text())
    assert set(names) == {q.user_id for q in dataset.questions}
    with safe_open(tmp_path / "out/vectors.safetensors", framework="numpy") as file:
        assert file.metadata()["operation"].startswith("h + norm")
    work, ours = edited_scores(deployment, dataset)
    backbone = load_causal(str(tiny_model), device="cpu")
    last = {q.user_id: row for row, q in enumerate(dataset.questions)}
    for user, row in last.items():
        read = GGUFReader(tmp_path / "out/control-vectors" / names[user])
        assert read.fields["general.architecture"].contents() == "controlvector"
        added = {int(t.name.removeprefix("direction.")): torch.from_numpy(np.array(t.data)) for t in read.tensors}
        with ExitStack() as stack:
            for layer, vector in added.items():
                hook = backbone.layers[layer].register_forward_hook(lambda _m, _i, out, v=vector: out + v)
                stack.callback(hook.remove)
            theirs = backbone.label_logprobs([work.prompts[row]], work.spoken)
        assert np.abs(ours[row] - theirs[0]).max() < 1e-4


def test_a_projection_is_said_to_be_no_control_vector(tiny_model, tmp_path):
    settings = {**EDITED, "steering.edit": "projection"}
    deployment = deployed(tiny_model, tmp_path, ("steering", "calibration"), settings)
    lines = deployment.export(growing(6, 3).questions, tmp_path / "out")
    assert any("no GGUF: a projection" in line for line in lines)
    assert not (tmp_path / "out/control-vectors").exists()


def test_a_chain_without_weights_and_a_folder_that_is_there_are_refused(tiny_model, tmp_path):
    deployment = deployed(tiny_model, tmp_path, ("calibration",), {"calibration.beta": 0.5})
    with pytest.raises(UsageError, match="no stage of calibration has weights or vectors"):
        deployment.export(growing(6, 3).questions, tmp_path / "out")
    with pytest.raises(UsageError, match="is there already"):
        deployment.export(growing(6, 3).questions, tmp_path)
    assert not list(tmp_path.glob(".out*"))
