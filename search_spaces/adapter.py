"""Space of the adapter: LoRA or a prefix, for whom, where in the model, and how it is trained."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from search_spaces.conditions import Read, above_one, nonzero
from search_spaces.parameters import choice, declared, real, whole


@dataclass(frozen=True, slots=True)
class Params:
    """Adapters, `blend` their weight beside the model itself; the rest is `methods.adapters.user_adapters.Plan`."""

    adapter: str = choice("none", ["none", "lora", "prefix"])
    blend: float = real(0.0, (0.0, 1.0))
    level: str = choice("unified", ["unified", "cluster", "user"])
    groups: int = whole(4, (2, 8))
    cluster_by: str = choice("words", ["words", "labels", "embedding"])
    rank: int = choice(4, [2, 4, 8, 16])
    alpha: float = choice(2.0, [0.5, 1.0, 2.0, 4.0])
    targets: str = choice("all", ["attention", "mlp", "all"])
    start: float = real(0.5, (0.0, 0.95))
    prefix_tokens: int = whole(8, (1, 20))
    word_dropout: float = real(0.0, (0.0, 0.3))
    history_dropout: float = real(0.0, (0.0, 0.5))
    history_swap: float = real(0.0, (0.0, 0.5))
    history_order: float = real(0.0, (0.0, 1.0))
    paraphrase: float = real(0.0, (0.0, 1.0), on_request=True)
    epochs: int = whole(4, (1, 8))
    lr: float = real(2e-3, (1e-4, 2e-2), log=True)
    lr_ratio: float = real(1.0, (1.0, 16.0), log=True)
    schedule: str = choice("cosine", ["cosine", "plateau"])
    accumulate: int = choice(1, [1, 2, 4])
    weight_decay: float = real(0.01, (1e-4, 1.0), log=True)
    dropout: float = real(0.0, (0.0, 0.3))
    clip: float = real(1.0, (0.1, 10.0), log=True)
    patience: int = whole(3, (1, 8))
    warm_up: float = real(0.1, (0.0, 0.3))
    label: float = real(1.0, (0.1, 1.0))
    token: float = real(0.0, (0.0, 1.0))
    margin: float = real(0.0, (0.0, 1.0))
    match: float = real(0.0, (0.0, 1.0))
    diversity: float = real(0.0, (0.0, 1.0))
    anchor: float = real(0.0, (0.0, 1.0))


BASELINE = Params()
SPACE, ON_REQUEST = declared(Params), declared(Params, on_request=True)
"""The model writes as many texts as there are items; only where a spec says so."""
OF_ITEMS = ("history_dropout", "history_swap", "history_order")
ONLY = dict.fromkeys((*OF_ITEMS, "prefix_tokens", "adapter=prefix", "token", "paraphrase"), "causal")
MOST = dict.fromkeys(("blend", "start", "word_dropout", *OF_ITEMS, "paraphrase", "dropout", "warm_up"), 1.0)
ON = {"adapter": ("lora", "prefix")}
READ: Read = {
    **{name: [ON] for name in SPACE if name != "adapter"},
    "groups": [{**ON, "level": ("cluster",)}],
    "cluster_by": [{**ON, "level": ("cluster",)}],
    "prefix_tokens": [{"adapter": ("prefix",)}],
    "dropout": [{"adapter": ("lora",)}],
    **{name: [{**ON, "epochs": above_one}] for name in ("word_dropout", "paraphrase")},
    **{name: [{**ON, "epochs": above_one, "prompt.k": nonzero}] for name in OF_ITEMS},
    "anchor": [{"adapter": ("prefix",)}, {"adapter": ("lora",), "level": ("cluster", "user")}],
}


def canonical(values: Mapping[str, object]) -> dict[str, object]:
    """Without weight there is no adapter."""
    return {**values, "adapter": "none"} if values["blend"] == 0 else dict(values)


def complexity(params: Params) -> float:
    """LoRA is two, a prefix three; of groups it is one more, of users two."""
    size = {"none": 0, "lora": 2, "prefix": 3}[params.adapter]
    return size + {"unified": 0, "cluster": 1, "user": 2}[params.level] + (0 < params.blend < 1)
