"""Any Hugging Face causal language model as a scorer of exact continuation strings."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from personalization.backbones.encoding import PairEncoder, Tails
from personalization.backbones.loading import loading, of_another_head, refuse_bare_encoder, refuse_unloaded
from personalization.backbones.location import adapter_base, locate_model, tokenizer_folder, usable_device
from personalization.errors import DataError, UnavailableError
from personalization.scoring.edits import Edit, Shelf, shared
from personalization.scoring.fixed import FixedRows
from personalization.scoring.last_states import LastStates
from personalization.scoring.packed import Packed
from personalization.scoring.passes import TokenBudget, score_all
from personalization.scoring.plain import Candidates
from personalization.scoring.products import fast_products
from personalization.scoring.resume import decoder_layers, site_of
from personalization.scoring.routes import Router
from personalization.scoring.rows import Tokens
from personalization.scoring.store import Keep, Progress

FRAME_TOKENS = 24
"""Tokens that the template around a history item may take."""
EMBEDDED_TOKENS = 4096
"""Tokens in a batch of texts to embed."""


class CausalBackbone:
    """A causal language model with its tokenizer. It knows text and tokens, and no user.

    `blocks`: path of the list of the model's blocks, where its length does not tell it; `chat`: prompts are whole
    conversations (see `backbones.chat`). `smaller`: by what fixed batches are divided, so as to fit. A prompt that is
    longer than the context is refused: who asks cuts it where it may be cut (`methods.history.asking`).
    """

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        chat: bool = False,
        blocks: str | None = None,
    ) -> None:
        self.model, self.blocks = model.eval(), blocks
        self.tokenizer = tokenizer
        self.encoder = PairEncoder(tokenizer, chat)
        self.router = Router(model)
        self.budget = TokenBudget(model.device.type)
        self.truncated = 0
        self.smaller = 1

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

    @property
    def layers(self) -> torch.nn.ModuleList:
        """The blocks, in order."""
        return decoder_layers(self.model, self.blocks)

    @property
    def embedding_width(self) -> int:
        """Length of an embedding."""
        return self.width

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

    def last_states(
        self,
        prompts: Sequence[str],
        layers: Sequence[int] | None = None,
        known: NDArray[np.float32] | None = None,
        progress: Progress | None = None,
        keep: Keep | None = None,
        site: str = "block",
    ) -> NDArray[np.float32]:
        """The state of each prompt's last token where it leaves these layers (all), or their MLPs, float32 [n, L, d].

        `known` and `keep` as for scores. Raises UnavailableError for a model that cannot take packed rows.
        """
        wanted = range(self.depth) if layers is None else layers
        shape = (len(prompts), len(wanted), self.width)
        out = np.full(shape, np.nan, dtype=np.float32) if known is None else known
        heads = [self.fit(head, 1) for head in self.encoder.heads(prompts)]
        route = self.packed(heads, [[0]])
        modules = [site_of(self.layers[layer], site) for layer in wanted]
        score_all(LastStates(route, modules), out.reshape(len(prompts), -1), self.budget, keep, progress)
        return out

    def fixed(
        self,
        prompts: Sequence[str],
        spoken: Sequence[str],
        edits: Sequence[Edit] = (),
        shelf: Shelf | None = None,
    ) -> FixedRows:
        """Prompts ready to be run under these edits, again and again."""
        longest = max((edit.prefix for edit in edits), default=0)
        return FixedRows(self, prompts, spoken, shared(edits, len(prompts)), shelf, longest)

    def forget(self) -> None:
        """Nothing is kept in memory between calls."""

    def embeddings(self, texts: Sequence[str], progress: Progress | None = None) -> NDArray[np.float32]:
        """The mean over each text's tokens of what leaves the last layer, at length one, float32 [n, d].

        The text alone is read, without the chat template, and a BOS before it is not counted.
        """
        heads = [self.fit(head, 1) for head in self.encoder.texts(texts)]
        out = np.empty((len(texts), self.width), dtype=np.float32)
        order = sorted(range(len(texts)), key=lambda row: -len(heads[row]))
        done = 0
        while done < len(order):
            rows = order[done : done + max(1, EMBEDDED_TOKENS // len(heads[order[done]]))]
            ids = torch.zeros(len(rows), len(heads[rows[0]]), dtype=torch.int64)
            mask = torch.zeros_like(ids)
            for at, row in enumerate(rows):
                ids[at, : len(heads[row])] = torch.from_numpy(heads[row].astype(np.int64))
                mask[at, : len(heads[row])] = 1
            counted = mask.clone()
            counted[:, 0] = (ids[:, 0] != self.tokenizer.bos_token_id) | (mask.sum(1) == 1)
            ids, mask, counted = (tensor.to(self.model.device) for tensor in (ids, mask, counted))
            with torch.inference_mode(), fast_products(self.model.device.type):
                states = self.model.base_model(input_ids=ids, attention_mask=mask, use_cache=False)[0].float()
                out[rows] = torch.nn.functional.normalize((states * counted[..., None]).sum(1), dim=-1).cpu().numpy()
            done += len(rows)
            if progress is not None:
                progress(done, len(order))
        return out

    def too_long(self, prompts: Sequence[str], continuations: Sequence[str]) -> list[int]:
        """Which prompts do not fit the context together with the longest continuation."""
        if self.context is None or not prompts:
            return []
        room = self.context + 1 - max(map(len, self.encoder.encode(prompts[:1], continuations)[1][0]), default=0)
        return [row for row, head in enumerate(self.encoder.heads(prompts)) if len(head) > room]

    def shortened(self, frame: str, texts: Sequence[str], continuations: Sequence[str]) -> list[str]:
        """Texts cut at their ends to equal shares of the room that the context has beside `frame`."""
        if self.context is None or not texts:
            return list(texts)
        longest = max(map(len, self.encoder.encode([frame], continuations)[1][0]))
        room = self.context + 1 - longest - len(self.encoder.heads([frame])[0])
        share = max(0, room // max(len(texts), 1) - FRAME_TOKENS)
        offsets = self.tokenizer(list(texts), add_special_tokens=False, return_offsets_mapping=True)["offset_mapping"]
        return [
            text[: at[share - 1][1] if share else 0] if len(at) > share else text
            for text, at in zip(texts, offsets, strict=True)
        ]

    def lengths(self, texts: Sequence[str]) -> list[int]:
        """Tokens of each text, a BOS in front of it counted."""
        return [len(tokens) for tokens in self.encoder.texts(texts)]

    def room(self, spoken: Sequence[str], prefix: int, most: int) -> int:
        """Tokens of text, at most so many, that the context has beside these labels, a prefix and a chat's frame."""
        if self.context is None:
            return most
        return min(
            most, self.context - prefix - max(self.lengths(spoken), default=0) - len(self.encoder.heads([""])[0])
        )

    def packed(self, heads: Sequence[Tokens], candidates: Candidates) -> Packed:
        """The route of packed rows; UnavailableError where the model cannot take all of these prompts in it."""
        (_, route), *others = self.router.routes(heads, candidates)
        if others or not isinstance(route, Packed):
            raise UnavailableError(
                f"hidden states are read from packed rows, which {self.name} models cannot take here"
            )
        return route

    def fit(self, prompt: Tokens, longest_candidate: int) -> Tokens:
        """The prompt; DataError where it does not fit the context together with a label of so many tokens."""
        room = None if self.context is None else self.context - longest_candidate + 1
        if room is None or len(prompt) <= room:
            return prompt
        raise DataError(
            f"a prompt of {len(prompt)} tokens and a label of {longest_candidate} do not fit a context of "
            f"{self.context}; shorten the prompt"
        )


def load_causal(
    path_or_hub_id: str,
    dtype: str = "float32",
    device: str = "auto",
    blocks: str | None = None,
    chat: bool = False,
) -> CausalBackbone:
    """Load a model from a folder, the hub or the package: safetensors only, no code from the model's repository.

    `dtype`: float32, bfloat16 or float16. `device`: "cpu", "cuda", "cuda:1", ..., or "auto".
    """
    folder, device = locate_model(path_or_hub_id), usable_device(device)
    base = adapter_base(folder)
    own = folder if base is None else base
    with loading(own):
        refuse_bare_encoder(own, AutoConfig.from_pretrained(own, trust_remote_code=False))
        model, info = AutoModelForCausalLM.from_pretrained(
            own,
            dtype=getattr(torch, dtype),
            use_safetensors=True,
            trust_remote_code=False,
            output_loading_info=True,
            ignore_mismatched_sizes=True,
        )
        refuse_unloaded(own, model, info, unused=of_another_head(model, info))
    with loading(folder):
        if base is not None:
            added = model.load_adapter(
                str(folder), dtype=model.dtype, use_safetensors=True, ignore_mismatched_sizes=True
            )
            refuse_unloaded(folder, model, added.to_dict(), unused=True)
        tokenizer = AutoTokenizer.from_pretrained(tokenizer_folder(folder), trust_remote_code=False)
    return CausalBackbone(model.to(device), tokenizer, chat, blocks)
