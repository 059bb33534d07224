"""Any Hugging Face causal language model as a scorer of exact continuation strings."""

from __future__ import annotations

import inspect
import logging
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils import logging as transformers_logging

from personalization.backbones.location import locate_model
from personalization.errors import DataError, UnavailableError
from personalization.scoring.packed import Progress, build_tree, score_all, score_packed, score_rows

log = logging.getLogger(__name__)

TOKEN_BUDGET = {"cpu": 4096, "cuda": 65536}
"""Padded tokens in one batch, by device type."""


class CausalBackbone:
    """A causal language model with its tokenizer. It knows text and tokens, and no user.

    `truncated` counts the prompts that were cut at their beginning to fit the context.
    """

    def __init__(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, chat: bool = False) -> None:
        if chat and tokenizer.chat_template is None:
            raise DataError("the model's tokenizer has no chat template; set chat: false")
        self.model = model.eval()
        self.tokenizer = tokenizer
        self.chat = chat
        self.truncated = 0
        self.token_budget = TOKEN_BUDGET.get(model.device.type, TOKEN_BUDGET["cpu"])

    @property
    def context(self) -> int | None:
        """The longest row that the model can take, in tokens."""
        config = self.model.config.get_text_config()
        return getattr(config, "max_position_embeddings", None) or getattr(config, "n_positions", None)

    def label_logprobs(
        self, prompts: Sequence[str], continuations: Sequence[str], progress: Progress | None = None
    ) -> NDArray[np.float32]:
        """Natural-log probability of each exact continuation string after each prompt, float32 [n, K].

        The caller gives leading space and terminator. Raises DataError where a tokenizer merges the end of a prompt
        with the beginning of a continuation, so that the continuation alone has no tokens of its own.
        """
        groups: dict[tuple[tuple[int, ...], ...], tuple[list[int], list[list[int]]]] = {}
        for row, (prompt, candidates) in enumerate(self._encode(prompts, continuations)):
            rows, encoded = groups.setdefault(candidates, ([], []))
            rows.append(row)
            encoded.append(self._fit(prompt, max(map(len, candidates))))
        out = np.empty((len(prompts), len(continuations)), dtype=np.float32)
        before = 0
        for candidates, (rows, encoded) in groups.items():
            tree = build_tree(candidates)
            longest = max(map(len, encoded)) + int(tree.depths.max(initial=0))
            report = None if progress is None else _offset(progress, before, len(prompts))
            route = score_packed if self._takes_tree(longest) else score_rows
            out[rows] = score_all(self.model, encoded, tree, route, self.token_budget, report)
            before += len(rows)
        return out

    def _takes_tree(self, longest: int) -> bool:
        """Whether a tree mask over rows of this length is exact for this architecture."""
        config = self.model.config.get_text_config()
        kinds = set(getattr(config, "layer_types", None) or ["full_attention"])
        window = getattr(config, "sliding_window", None)
        slides = "sliding_attention" in kinds or (
            getattr(config, "layer_types", None) is None and getattr(config, "use_sliding_window", True)
        )
        reason = None
        if not kinds <= {"full_attention", "sliding_attention"}:
            reason = f"its layers are of kinds {', '.join(sorted(kinds))}"
        elif hasattr(config, "attention_layers"):
            reason = "some of its layers see a window of the row"
        elif config.model_type in ("bloom", "mpt") or getattr(config, "alibi", False):
            reason = "its positions are ALiBi biases"
        elif "position_ids" not in inspect.signature(self.model.forward).parameters:
            reason = "it takes no position_ids"
        elif slides and window is not None and longest > window:
            reason = f"its attention window of {window} is shorter than a row of {longest} tokens"
        if reason is not None:
            log.info("one row a candidate for %s: %s", config.model_type, reason)
        return reason is None

    def _encode(
        self, prompts: Sequence[str], continuations: Sequence[str]
    ) -> list[tuple[list[int], tuple[tuple[int, ...], ...]]]:
        """Tokens of each prompt and of each continuation behind it, from encoding both together."""
        if self.chat:
            prompts = [
                str(
                    self.tokenizer.apply_chat_template(
                        [{"role": "user", "content": prompt}], tokenize=False, add_generation_prompt=True
                    )
                )
                for prompt in prompts
            ]
        alone = self._tokens(prompts)
        joint = self._tokens([prompt + continuation for prompt in prompts for continuation in continuations])
        encoded = []
        for i, head in enumerate(alone):
            tails = []
            for k, continuation in enumerate(continuations):
                whole = joint[i * len(continuations) + k]
                if whole[: len(head)] != head or len(whole) == len(head):
                    raise DataError(
                        f"the tokenizer merges the end of prompt {prompts[i][-20:]!r} with continuation "
                        f"{continuation!r}; end the prompt without a space and begin the continuation with one"
                    )
                tails.append(tuple(whole[len(head) :]))
            encoded.append((head or [self._start_token()], tuple(tails)))
        return encoded

    def _tokens(self, texts: Sequence[str]) -> list[list[int]]:
        """Token ids, with the special tokens that the tokenizer adds, but never a second BOS before one in the text."""
        bos = self.tokenizer.bos_token
        special = not (self.chat or (bos and texts[0].startswith(bos)))
        ids: Any = self.tokenizer(list(texts), add_special_tokens=special)["input_ids"]
        return list(ids)

    def _start_token(self) -> int:
        """What stands before a continuation without a prompt."""
        for token in (self.tokenizer.bos_token_id, self.tokenizer.eos_token_id):
            if token is not None:
                return int(token)
        raise DataError("an empty prompt cannot be scored: the tokenizer has neither a BOS nor an EOS token")

    def _fit(self, prompt: list[int], longest_candidate: int) -> list[int]:
        """Cut the beginning of a prompt, where the history stands, until the row fits; a leading BOS stays."""
        room = None if self.context is None else self.context - longest_candidate + 1
        if room is None or len(prompt) <= room:
            return prompt
        self.truncated += 1
        head = prompt[:1] if prompt[0] == self.tokenizer.bos_token_id else []
        return head + prompt[len(prompt) - room + len(head) :]


def _offset(progress: Progress, before: int, total: int) -> Callable[[int, int], None]:
    return lambda done, _: progress(before + done, total)


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
