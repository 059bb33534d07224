"""Any Hugging Face causal language model as a scorer of exact continuation strings."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils import logging as transformers_logging

from personalization.backbones.encoding import PairEncoder, Tails
from personalization.backbones.location import locate_model
from personalization.errors import DataError, UnavailableError
from personalization.scoring.last_states import LastStates
from personalization.scoring.packed import Packed
from personalization.scoring.passes import Progress, TokenBudget, score_all
from personalization.scoring.plain import Candidates
from personalization.scoring.resume import decoder_layers
from personalization.scoring.routes import Router
from personalization.scoring.rows import Tokens
from personalization.scoring.store import Keep


class CausalBackbone:
    """A causal language model with its tokenizer. It knows text and tokens, and no user.

    `truncated` counts the prompts that were cut at their beginning to fit the context.
    """

    def __init__(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, chat: bool = False) -> None:
        self.model = model.eval()
        self.tokenizer = tokenizer
        self.encoder = PairEncoder(tokenizer, chat)
        self.router = Router(model)
        self.budget = TokenBudget(model.device.type)
        self.truncated = 0

    @property
    def context(self) -> int | None:
        """The longest row that the model can take, in tokens."""
        config = self.model.config.get_text_config()
        return getattr(config, "max_position_embeddings", None) or getattr(config, "n_positions", None)

    @property
    def name(self) -> str:
        """The architecture."""
        return str(self.model.config.model_type)

    @property
    def width(self) -> int:
        """Length of a hidden state."""
        return int(self.model.config.get_text_config().hidden_size)

    @property
    def depth(self) -> int:
        """Number of layers."""
        return int(self.model.config.get_text_config().num_hidden_layers)

    def label_logprobs(
        self,
        prompts: Sequence[str],
        continuations: Sequence[str],
        progress: Progress | None = None,
        known: NDArray[np.float32] | None = None,
        keep: Keep | None = None,
    ) -> NDArray[np.float32]:
        """Natural-log probability of each exact continuation string after each prompt, float32 [n, K].

        The caller gives leading space and terminator. `known` [n, K] is what an earlier pass has found, NaN where it
        has not; `keep(rows, scores)` is called after each batch. Raises DataError where a tokenizer merges the end of a
        prompt with the beginning of a continuation, so that the continuation alone has no tokens of its own.
        """
        out = np.full((len(prompts), len(continuations)), np.nan, np.float32) if known is None else known.copy()
        if out.size == 0:
            return out
        heads, tails = self.encoder.encode(prompts, continuations)
        same: dict[Tails, list[int]] = {}
        for row, tail in enumerate(tails):
            same.setdefault(tail, []).append(row)
        for candidates, members in same.items():
            longest = max(map(len, candidates))
            fitted = [self.fit(heads[row], longest) for row in members]
            for some, route in self.router.routes(fitted, candidates):
                rows = np.array(members)[some]
                part = out[rows]
                before = int((~np.isnan(out).any(axis=1)).sum() - (~np.isnan(part).any(axis=1)).sum())
                score_all(
                    route,
                    part,
                    self.budget,
                    None if keep is None else lambda found, scores, rows=rows: keep(rows[found], scores),
                    None if progress is None else lambda done, _, before=before: progress(before + done, len(out)),
                )
                out[rows] = part
        return out

    def last_states(self, prompts: Sequence[str], progress: Progress | None = None) -> NDArray[np.float32]:
        """The state of each prompt's last token where it leaves each layer, float32 [n, L, d].

        Raises UnavailableError for a model that cannot take packed rows.
        """
        heads = [self.fit(head, 1) for head in self.encoder.heads(prompts)]
        route = self.packed(heads, [[0]])
        layers = decoder_layers(self.model)
        out = np.empty((len(prompts), len(layers), self.width), dtype=np.float32)
        scores = np.full((len(prompts), 1), np.nan, dtype=np.float32)
        score_all(LastStates(route, layers, out), scores, self.budget, None, progress)
        return out

    def packed(self, heads: Sequence[Tokens], candidates: Candidates) -> Packed:
        """The route of packed rows; UnavailableError where the model cannot take all of these prompts in it."""
        (_, route), *others = self.router.routes(heads, candidates)
        if others or not isinstance(route, Packed):
            raise UnavailableError(
                f"hidden states are read from packed rows, which {self.name} models cannot take here"
            )
        return route

    def fit(self, prompt: Tokens, longest_candidate: int) -> Tokens:
        """Cut the beginning of a prompt, where the history stands, until the row fits; a leading BOS stays."""
        room = None if self.context is None else self.context - longest_candidate + 1
        if room is None or len(prompt) <= room:
            return prompt
        if room < 1:
            raise DataError(f"a label of {longest_candidate} tokens leaves no room in a context of {self.context}")
        self.truncated += 1
        head = prompt[:1] if prompt[0] == self.tokenizer.bos_token_id else prompt[:0]
        return np.concatenate([head, prompt[len(prompt) - room + len(head) :]])


def load_backbone(
    path_or_hub_id: str, dtype: str = "float32", device: str = "auto", chat: bool = False
) -> CausalBackbone:
    """Load a model from a folder, the hub or the package: safetensors only, no code from the model's repository.

    `dtype`: float32, bfloat16 or float16. `device`: "cpu", "cuda", "cuda:1", ..., or "auto".
    """
    folder = locate_model(path_or_hub_id)
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    elif device.startswith("cuda") and not torch.cuda.is_available():
        raise UnavailableError(f"device {device!r} is not available here; use device: cpu or auto")
    transformers_logging.disable_progress_bar()
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
        model = AutoModelForCausalLM.from_pretrained(
            folder, dtype=getattr(torch, dtype), use_safetensors=True, trust_remote_code=False
        )
    except (OSError, ValueError) as error:
        raise DataError(f"model folder {folder} cannot be loaded: {str(error).splitlines()[0]}") from error
    return CausalBackbone(model.to(device), tokenizer, chat)
