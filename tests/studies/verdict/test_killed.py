"""A promotion that is killed at any of its writes: the same command ends it as if nothing had been."""

import os
import shutil
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from personalization.deployment import Deployment
from studies.study import open_study
from studies.verdict.deployments import generations
from studies.verdict.evidence import Evidence
from studies.verdict.promotion import promote
from tracking.spool import Spool

WRITES = ((Evidence, "_append"), (os, "replace"), (Path, "rename"), (Spool, "append"))
"""What puts a line, a file or a folder where it is looked for."""
ALL = 25
GATE = (1, 5, 22)
"""In the gate: after the look, in the report, and in the deployment."""

UNKEPT = 22
"""The config stands and is not kept yet: it is when it is replaced."""


class Killed(BaseException):
    pass


def killed_at(patch, number):
    """Let the write of this number, from 0, not be made; the list of those that were asked for."""
    asked = []

    def wrapped(name, real):
        def call(*given, **named):
            asked.append(name)
            if len(asked) == number + 1:
                raise Killed
            return real(*given, **named)

        return call

    for place, name in WRITES:
        patch.setattr(place, name, wrapped(name, getattr(place, name)))
    return asked


def left(opened, out, result):
    """What a promotion says and leaves, without times and places."""
    confirm = {key: value for key, value in result["confirm"].items() if key not in ("cost", "out")}
    folders = (opened.home / "results" / "planted" / "confirm", out, opened.home / "deployments")
    evidence, spool = Evidence(opened.storage), Spool(opened.home, "planted", opened.record["id"])
    return {
        **{key: value for key, value in result.items() if key not in ("confirm", "recorded", "deploy")},
        **confirm,
        "lines": [line["event"] for line in evidence.lines()],
        "files": [sorted(path.name for path in folder.rglob("*") if path.is_file()) for folder in folders],
        "generations": [row["generation"] for row in generations(opened.home, out)],
        "told": {(record["kind"], record["key"]) for record, _ in spool.records()},
    }


@pytest.fixture
def promoted(tmp_path, make_study, monkeypatch):
    """A function that promotes a copy of one study in a home by this name; what it says and leaves."""
    monkeypatch.setattr("studies.verdict.deployments.Sender", lambda *_: SimpleNamespace(finish=lambda _: 0))
    first = make_study()

    def promotes(name, number=ALL):
        home, out = tmp_path / name, tmp_path / f"deploy-{name}"
        shutil.copytree(first.home, home)
        opened = open_study(first.spec, home)
        opened = replace(opened, spec=opened.spec.model_copy(update={"tracking": "sqlite:///unused.db"}))
        with monkeypatch.context() as patch:
            asked = killed_at(patch, number)
            if number < ALL:
                with pytest.raises(Killed):
                    promote(opened, out)
            else:
                promote(opened, out)
                assert len(asked) == ALL, asked
        found = promote(opened, out)
        learned = opened.objective.refitting(found["confirm"]["refit"])
        answers = learned.evaluate(opened.rooms.of_flat(found["params"]), "confirm").log_probs
        assert np.abs(Deployment.load(out).aligned(opened.splits.confirm) - answers).max() <= 1e-5
        return left(opened, out, found)

    return promotes


@pytest.fixture(scope="module")
def undisturbed():
    """What a promotion says and leaves that nobody kills, once one has been made."""
    return {}


@pytest.mark.parametrize(
    "number", [number if number in GATE else pytest.param(number, marks=pytest.mark.slow) for number in range(ALL)]
)
def test_a_promotion_that_is_killed_is_ended_by_the_same_command(promoted, undisturbed, number):
    undisturbed.update(undisturbed or promoted("whole"))
    assert undisturbed["promoted"]
    late = ("files", "generations") if number == UNKEPT else ()
    found = promoted("killed", number)
    assert {key: found[key] for key in found if key not in late} == {
        key: undisturbed[key] for key in undisturbed if key not in late
    }
