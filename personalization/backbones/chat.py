"""A chat model is asked as it was made to be asked: by its own template, and for a reply that ends its turn.

The template is rendered with the user's message and the header of a reply. What ends a reply is what the template puts
behind one, up to its first special token. Where a template has a switch for thinking it is off; a thought that a header
opens is closed, so that the reply stands where the model would give it.
"""

from __future__ import annotations

from functools import cached_property
from typing import TYPE_CHECKING

from jinja2 import TemplateError

from personalization.errors import DataError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

DATE = "26 Jul 2024"
"""The day that a template which asks is told, so that a prompt is the same tomorrow; Llama 3's own default."""
OPENS, CLOSES = "<think>", "</think>"
_REPLY = "reply 7d1f"


class Chat:
    """The chat template of one tokenizer; DataError where it has none."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        if tokenizer.chat_template is None:
            raise DataError("the model's tokenizer has no chat template; set chat: false")
        self.tokenizer = tokenizer

    def conversation(self, system: str | None, user: str) -> str:
        """What stands in front of a reply. DataError where the template refuses it, e.g. a system message."""
        said = self._rendered(system, user)
        if said.rfind(OPENS) > said.rfind(CLOSES):
            said = f"{said.rstrip()}\n\n{CLOSES}\n\n"
        return said

    @cached_property
    def end_of_turn(self) -> str:
        """What ends a reply."""
        behind = self._rendered(None, "user", reply=_REPLY).rpartition(_REPLY)[2]
        special = [token for token in self.tokenizer.all_special_tokens if token and token in behind]
        if special:
            first = min(special, key=lambda token: (behind.index(token), -len(token)))
            return behind[: behind.index(first) + len(first)]
        added = sorted(self.tokenizer.get_added_vocab(), key=lambda token: (-len(token), token))
        found = next((token for token in added if behind.strip().startswith(token)), None) or self.tokenizer.eos_token
        if found is None:
            raise DataError("nothing ends a reply: the chat template puts no special token behind one; set chat: false")
        return str(found)

    def _rendered(self, system: str | None, user: str, reply: str | None = None) -> str:
        messages = [] if system is None else [{"role": "system", "content": system}]
        messages.append({"role": "user", "content": user})
        if reply is not None:
            messages.append({"role": "assistant", "content": reply})
        try:
            return str(
                self.tokenizer.apply_chat_template(
                    messages,
                    tokenize=False,
                    add_generation_prompt=reply is None,
                    enable_thinking=False,
                    date_string=DATE,
                )
            )
        except TemplateError as error:
            way_out = "set chat: false" if system is None else "leave chat.system out of the task"
            raise DataError(f"the model's chat template refuses the conversation ({error}); {way_out}") from None
