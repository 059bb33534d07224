"""A sentence encoder as a classifier: the label whose text is most like the question's.

    log p(y | x) = log softmax_y (SCALE * cos(E(x), E(label text)))

E is any sentence-transformers model (Reimers & Gurevych 2019, arXiv:1908.10084) with its own pooling. Another scale is
a temperature on this table, so nothing is embedded again for it. One pass over the distinct texts, longest first; a
text longer than the model's window loses its end.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers import PreTrainedModel

from personalization.backbones import SCALE
from personalization.backbones.loading import loading, refuse_own_code, refuse_unloaded
from personalization.backbones.location import adapter_base, locate_model, read_json, usable_device
from personalization.errors import DataError
from personalization.scoring.edits import Edit, Shelf
from personalization.scoring.fixed_texts import FixedTexts
from personalization.scoring.products import fast_products
from personalization.scoring.resume import decoder_layers
from personalization.scoring.store import Keep, Progress

BATCH = {"cpu": 32, "cuda": 512}
"""Texts in a batch, by device type."""
REMEMBERED = 4
"""Lists of texts whose embeddings stay in memory: the same questions are asked for several label texts."""


class EncoderBackbone:
    """A sentence encoder. It knows texts, and no user. `truncated` counts the prompts that lost their end.

    `lead`: what the model puts in front of every text, its default prompt.
    """

    def __init__(self, encoder: Any, blocks: str | None = None) -> None:
        self.encoder, self.blocks = encoder.eval(), blocks
        self.model = encoder.transformers_model
        self.truncated = 0
        self.smaller = 1
        self.lead = encoder.prompts.get(encoder.default_prompt_name, "") if encoder.default_prompt_name else ""
        self._seen: OrderedDict[tuple[str, ...], NDArray[np.float32]] = OrderedDict()

    @property
    def name(self) -> str:
        """The architecture."""
        return str(self.model.config.model_type)

    @property
    def width(self) -> int:
        """Length of a hidden state."""
        return int(self.model.config.hidden_size)

    @property
    def depth(self) -> int:
        """Number of layers."""
        return int(self.model.config.num_hidden_layers)

    @property
    def embedding_width(self) -> int:
        """Length of an embedding; a model's own modules may change it."""
        return int(self.encoder.get_embedding_dimension())

    @property
    def layers(self) -> torch.nn.ModuleList:
        """The blocks, in order."""
        return decoder_layers(self.model, self.blocks)

    def label_logprobs(
        self,
        prompts: Sequence[str],
        continuations: Sequence[str],
        progress: Progress | None = None,
        known: NDArray[np.float32] | None = None,  # noqa: ARG002
        keep: Keep | None = None,
    ) -> NDArray[np.float32]:
        """Log-probability of each label text for each prompt, float32 [n, K]; it sums to one over the labels."""
        if not prompts or not continuations:
            return np.empty((len(prompts), len(continuations)), dtype=np.float32)
        window = self.encoder.max_seq_length
        self.truncated += sum(length > window for length in self._lengths(prompts)) if window else 0
        cosines = self.embeddings(prompts, progress) @ self.embeddings(continuations).T
        scores = torch.from_numpy(SCALE * cosines).log_softmax(dim=1).numpy()
        if keep is not None:
            keep(np.arange(len(prompts)), scores)
        return scores

    def embeddings(self, texts: Sequence[str], progress: Progress | None = None) -> NDArray[np.float32]:
        """Embeddings of length one, float32 [n, d]; zero for a text without a token."""
        key = tuple(texts)
        if key not in self._seen:
            distinct = list(dict.fromkeys(texts))
            found = self._embed(distinct, progress)
            place = {text: row for row, text in enumerate(distinct)}
            self._seen[key] = found[[place[text] for text in texts]]
            if len(self._seen) > REMEMBERED:
                self._seen.popitem(last=False)
        self._seen.move_to_end(key)
        return self._seen[key]

    def fixed(
        self,
        prompts: Sequence[str],
        spoken: Sequence[str],
        edits: Sequence[Edit] = (),  # noqa: ARG002
        shelf: Shelf | None = None,
    ) -> FixedTexts:
        """Texts ready to be run under edits, again and again."""
        return FixedTexts(self, prompts, spoken, SCALE, shelf)

    def forget(self) -> None:
        """Drop the embeddings that are in memory."""
        self._seen.clear()

    def last_states(
        self,
        prompts: Sequence[str],
        layers: Sequence[int] | None = None,
        known: NDArray[np.float32] | None = None,
        progress: Progress | None = None,
        keep: Keep | None = None,
    ) -> NDArray[np.float32]:
        """The mean over each prompt's tokens of what leaves these layers (all), float32 [n, L, d]."""
        wanted = list(range(self.depth)) if layers is None else list(layers)
        out = np.empty((len(prompts), len(wanted), self.width), dtype=np.float32) if known is None else known
        for rows, features in self._batches(prompts, progress):
            mask = features["attention_mask"][..., None]
            inputs = {name: value for name, value in features.items() if name in ("input_ids", "attention_mask")}
            with torch.inference_mode(), fast_products(self.model.device.type):
                states = self.model(**inputs, output_hidden_states=True).hidden_states[1:]
                of = [(states[layer].float() * mask).sum(1) / mask.sum(1).clamp(min=1) for layer in wanted]
            out[rows] = torch.stack(of, 1).cpu().numpy()
            if keep is not None:
                keep(np.array(rows), out[rows])
        return out

    def _embed(self, texts: Sequence[str], progress: Progress | None) -> NDArray[np.float32]:
        out = np.empty((len(texts), self.embedding_width), dtype=np.float32)
        for rows, features in self._batches(texts, progress):
            if not features["input_ids"].shape[1]:
                out[rows] = 0
                continue
            with torch.inference_mode(), fast_products(self.model.device.type):
                embedded = self.encoder(features)["sentence_embedding"]
                out[rows] = torch.nn.functional.normalize(embedded.float(), dim=-1).cpu().numpy()
        if not np.isfinite(out).all():
            raise DataError(f"the {self.name} model gives an embedding that is not finite; try dtype float32")
        return out

    def _batches(self, texts: Sequence[str], progress: Progress | None) -> Iterator[tuple[list[int], dict[str, Any]]]:
        """(rows, features) of batches of texts of like length, the longest first."""
        order = sorted(range(len(texts)), key=lambda row: -len(texts[row]))
        size = BATCH.get(self.model.device.type, BATCH["cpu"])
        for start in range(0, len(order), size):
            rows = order[start : start + size]
            yield rows, self.features([texts[row] for row in rows])
            if progress is not None:
                progress(min(start + size, len(order)), len(order))

    def features(self, texts: Sequence[str]) -> dict[str, Any]:
        """What the encoder's modules take: token ids [B, T], cut to the window, and their mask."""
        features = self.encoder.preprocess([self.lead + text for text in texts])
        device = self.model.device
        return {name: value.to(device) if isinstance(value, Tensor) else value for name, value in features.items()}

    def _lengths(self, texts: Sequence[str]) -> list[int]:
        """Tokens of each text, special ones included."""
        ids = self.encoder.tokenizer([self.lead + text for text in texts], truncation=False, verbose=False)["input_ids"]
        return [len(text) for text in ids]


def load_encoder(
    path_or_hub_id: str, dtype: str = "float32", device: str = "auto", blocks: str | None = None
) -> EncoderBackbone:
    """Load a sentence-transformers model from a folder, the hub or a package: safetensors only, none of its code."""
    from sentence_transformers import SentenceTransformer

    folder, device = locate_model(path_or_hub_id), usable_device(device)
    weights = {"dtype": getattr(torch, dtype), "use_safetensors": True, "ignore_mismatched_sizes": True}
    refuse_own_code(folder)
    with loading(folder):
        encoder = SentenceTransformer(
            str(folder), device=device, trust_remote_code=False, local_files_only=True, model_kwargs=weights
        )
        model = getattr(encoder, "transformers_model", None)
        holders = [name for name, module in encoder.named_children() if getattr(module, "model", None) is model]
        if model is None or not holders:
            raise DataError(
                f"encoder folder {folder} holds no transformer of its own; give a sentence-transformers model that does"
            )
        paths = {entry["name"]: entry["path"] for entry in read_json(folder / "modules.json")}
        _refuse_unloaded_parts(folder / paths[holders[0]], model)
    return EncoderBackbone(encoder, blocks)


def _refuse_unloaded_parts(folder: Path, model: PreTrainedModel) -> None:
    """DataError naming weights that were not in the checkpoint, of the base and of the adapter on it, if there is one.

    sentence-transformers does not hand on what transformers says when it loads, so the checkpoint is loaded once more,
    onto the device "meta", which holds no numbers. A pooler may be missing: embeddings are of the tokens' states.
    """
    base = adapter_base(folder)
    if base is not None and read_json(folder / "adapter_config.json").get("revision"):
        raise DataError(f"{folder / 'adapter_config.json'} names a revision of its base; merge the adapter into it")
    for part in (folder,) if base is None else (base, folder):
        with loading(part):
            _, info = type(model).from_pretrained(
                part, config=model.config, device_map="meta", output_loading_info=True, ignore_mismatched_sizes=True
            )
        missing = {key for key in info["missing_keys"] if not key.startswith("pooler.")}
        refuse_unloaded(part, model, {**info, "missing_keys": missing}, unused=part is not (base or folder))
