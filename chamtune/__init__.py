"""Find the best way to personalise an LLM classifier, prove it, and deploy it.

    import chamtune as ct

    study = ct.Study({"name": "mine", "data": {"path": "demo"}, "model": {"path": "demo"}, "trials": 50}).run()
    study.trials()                                 # a DataFrame, a row a trial
    study.promote("deploy")                        # tested on users that no trial saw
    ct.insights(study)["scores"]                   # what goes with good trials
    ct.load("deploy").predict(ct.Dataset.from_lamp("questions.json"))

    ct.Auto("tickets.csv", "minilm", minutes=10).run("deploy")    # races the ways to personalise, promotes the best

Everything else is one import away: `Model` scores labels, `Dataset` holds questions of users with their histories, and
`stage` puts a step of your own into the chain.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from chamtune.auto import Auto
    from chamtune.dataset import Dataset
    from chamtune.history import insights
    from chamtune.model import Model
    from chamtune.served import Served, load
    from chamtune.stages import stage
    from chamtune.study import Study
    from personalization.stages import Stage
    from personalization.stages.facts import Facts
    from personalization.stages.work import Tools, Work

__all__ = [
    "Auto",
    "Dataset",
    "Facts",
    "Model",
    "Served",
    "Stage",
    "Study",
    "Tools",
    "Work",
    "insights",
    "load",
    "stage",
]

_HOME = {
    "Auto": "chamtune.auto",
    "Dataset": "chamtune.dataset",
    "Model": "chamtune.model",
    "insights": "chamtune.history",
    "Served": "chamtune.served",
    "load": "chamtune.served",
    "stage": "chamtune.stages",
    "Study": "chamtune.study",
    "Stage": "personalization.stages",
    "Facts": "personalization.stages.facts",
    "Tools": "personalization.stages.work",
    "Work": "personalization.stages.work",
}


def __getattr__(name: str) -> Any:
    """Load what is asked for when it is asked for: importing chamtune is quick."""
    if name not in _HOME:
        raise AttributeError(f"module 'chamtune' has no attribute {name!r}; it has {', '.join(__all__)}")
    return getattr(import_module(_HOME[name]), name)


def __dir__() -> list[str]:
    return __all__
