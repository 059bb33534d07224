"""Space of the prompt: items of the history in front of the question; how an encoder is asked for a label."""

from __future__ import annotations

from dataclasses import dataclass

from search_spaces.conditions import Read, nonzero
from search_spaces.parameters import choice, declared, real, whole


@dataclass(frozen=True, slots=True)
class Params:
    """`k` items by `ranking`, in a `wording` of the task; of an encoder `template`, a text with {label} in it, and
    `scale`, by which it multiplies similarities."""

    template: str = choice(
        "{label}",
        ["{label}", "{label} news", "this text is about {label}", "category: {label}", "a text tagged {label}"],
    )
    scale: float = real(20.0, (5.0, 100.0), log=True)
    k: int = whole(0, (0, 16))
    ranking: str = choice("recency", ["similarity", "bm25", "mix", "recency"])
    mix: float = real(0.0, (0.0, 1.0), step=0.25)
    wording: str = choice("own", ["own"], on_request=True)


BASELINE = Params()
SPACE, ON_REQUEST = declared(Params), declared(Params, on_request=True)
ONLY = {"template": "encoder", "scale": "encoder", "k": "causal", "ranking": "causal", "mix": "causal"}
OPEN = {"template": r"[^{}]*\{label\}[^{}]*", "wording": r"\S.*"}
MOST = {"mix": 1.0}
READ: Read = {"ranking": [{"k": nonzero}], "mix": [{"k": nonzero, "ranking": ("mix",)}]}


def complexity(params: Params) -> float:
    """Items in the prompt, and how many."""
    return (params.k > 0) + (params.ranking == "mix") + 0.01 * params.k
