"""What looks wrong in a training: collapse, falling quality, one loss above all others, items learned by heart."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise


def flags(records: Sequence[Mapping[str, float]]) -> list[str]:
    """What looks wrong in a training, each with its epoch and what usually helps."""
    said = []
    for record in records:
        if record.get("held_out_top1_share", 0.0) > 0.9:
            said.append(
                f"epoch {record['epoch']:g}: one label takes {record['held_out_top1_share']:.0%} of the predictions; "
                "raise diversity, or lower lr"
            )
            break
    held_out = [record["held_out_loss"] for record in records if "held_out_loss" in record]
    for at in range(1, len(held_out)):
        best, last = min(held_out[:at]), held_out[max(0, at - 3) : at + 1]
        if held_out[at] > best + 0.05 or (len(last) == 4 and all(a < b for a, b in pairwise(last))):
            said.append(
                f"epoch {records[at]['epoch']:g}: the held-out loss rises from {best:.3f} to {held_out[at]:.3f}; take "
                "fewer epochs, a smaller rank or lr, or more dropout"
            )
            break
    trained = [record["train_loss"] for record in records if "train_loss" in record]
    if len(trained) > 2 and min(trained[1:]) >= trained[0]:
        said.append(f"epoch {records[-1]['epoch']:g}: the training loss does not fall; raise lr or rank")
    for record in records:
        parts = {name.removeprefix("loss_"): value for name, value in record.items() if name.startswith("loss_")}
        main = parts.get("label", 0.0) + parts.get("token", 0.0)
        heavy = [name for name, value in parts.items() if name not in ("label", "token") and value > 2 * main > 0]
        if heavy:
            said.append(f"epoch {record['epoch']:g}: the loss is mostly {heavy[0]}; lower its weight")
            break
    for record in records[-1:]:
        if "train_loss" in record and record.get("held_out_loss", 0.0) > 1.5 * record["train_loss"] + 0.1:
            said.append(
                f"epoch {record['epoch']:g}: held-out loss {record['held_out_loss']:.3f} against "
                f"{record['train_loss']:.3f} in training; it learns its items by heart: smaller rank, more dropout"
            )
    return said
