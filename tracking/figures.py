"""Figures of an evaluation and of a study, as PNG bytes."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from io import BytesIO
from itertools import combinations
from typing import Any

import numpy as np
from numpy.typing import NDArray

from personalization.evaluation import Evaluation

log = logging.getLogger(__name__)

NAMED_LABELS = 60
WITHOUT_NAMES = 10.0
"""Side in inches of a confusion matrix of more labels."""
BLUE, ORANGE, GREY = "#1f5a9e", "#d9731a", "#b0b0b0"


def _axes(width: float, height: float, columns: int = 1, rows: int = 1) -> Any:
    """The axes of a new figure, or with `columns` or `rows` several side by side; in inches.

    Matplotlib takes .9 s to load, which commands without a figure do not pay.
    """
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height)).subplots(rows, columns)


def _png(axes: Any) -> bytes:
    """The figure of some axes. Letters that matplotlib's own font lacks come from a font of this machine."""
    from matplotlib import font_manager, rcParams
    from matplotlib.text import Text

    texts, buffer = axes.figure.findobj(Text), BytesIO()
    own = font_manager.get_font(font_manager.findfont(font_manager.FontProperties()))
    letters = {letter for text in texts for letter in text.get_text() if letter.isprintable()}
    missing = "".join(sorted(letter for letter in letters if not own.get_char_index(ord(letter))))
    with warnings.catch_warnings():
        if missing:
            warnings.filterwarnings("ignore", "Glyph .* missing from font")  # `_family_with` says it once
        if missing and (family := _family_with(missing)) is not None:
            for text in texts:
                text.set_fontfamily([*rcParams["font.family"], family])
        axes.figure.savefig(buffer, format="png", dpi=110, bbox_inches="tight")
    return buffer.getvalue()


@cache
def _family_with(letters: str) -> str | None:
    """A font of this machine that has all these letters; None where there is none."""
    from matplotlib import font_manager

    for path in sorted(font_manager.findSystemFonts(), key=lambda path: ("regular" not in path.lower(), path)):
        try:
            font = font_manager.get_font(path)
        except (RuntimeError, OSError):  # no font that FreeType reads
            continue
        if all(font.get_char_index(ord(letter)) for letter in letters):
            font_manager.fontManager.addfont(path)
            return str(font.family_name)
    log.warning(
        "no font of this machine has %s; figures show boxes in their place. Install one that has them, for example "
        "Debian's fonts-noto-cjk",
        letters if len(letters) <= 20 else f"{letters[:20]}...",
    )
    return None


def confusion_matrix(evaluation: Evaluation) -> bytes:
    """Gold labels in rows, predictions in columns; rows are shares of the gold label, numbers are counts.

    Past `NAMED_LABELS` labels the figure keeps its size, and has neither names nor numbers.
    """
    k = len(evaluation.labels)
    counts = np.zeros((k, k), dtype=int)
    np.add.at(counts, (evaluation.gold, evaluation.predicted), 1)
    named = k <= NAMED_LABELS
    size = 2.5 + 0.42 * k if named else WITHOUT_NAMES
    axes = _axes(size, size)
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    if named:
        for row, column in zip(*np.nonzero(counts), strict=True):
            color = "white" if shares[row, column] > 0.5 else "black"
            axes.text(column, row, counts[row, column], ha="center", va="center", fontsize=7, color=color)
        axes.set_xticks(range(k), evaluation.labels, rotation=60, ha="right", fontsize=8)
        axes.set_yticks(range(k), evaluation.labels, fontsize=8)
    axes.set(
        xlabel="predicted",
        ylabel="gold",
        title=f"accuracy {evaluation.metrics['accuracy']:.3f}, n = {len(evaluation.gold)}",
    )
    return _png(axes)


def reliability_diagram(evaluation: Evaluation) -> bytes:
    """Accuracy against confidence of the top label in ten bins of equal mass."""
    confidence = np.exp(evaluation.log_probs.max(axis=1))
    order = np.argsort(confidence, kind="stable")
    bins = np.array_split(order, min(10, len(order)))
    axes = _axes(4.6, 4.4)
    axes.plot([0, 1], [0, 1], color=GREY, lw=1, label="perfect")
    x = [confidence[b].mean() for b in bins]
    y = [evaluation.correct[b].mean() for b in bins]
    spread = [2 * (m * (1 - m) / len(b)) ** 0.5 for m, b in zip(y, bins, strict=True)]
    axes.errorbar(x, y, yerr=spread, fmt="o-", color=BLUE, capsize=2, label="ten bins, 2 standard errors")
    error = evaluation.metrics["calibration_error"]
    axes.set(
        xlim=(0, 1), ylim=(0, 1), xlabel="confidence", ylabel="accuracy", title=f"debiased squared error {error:.4f}"
    )
    axes.legend(loc="upper left", fontsize=8)
    return _png(axes)


def history(metric: str, values: Sequence[float], feasible: Sequence[bool], baseline: float, maximize: bool) -> bytes:
    """One metric over the trials, with the best feasible one so far."""
    axes = _axes(7, 4)
    numbers, points, ok = np.arange(len(values)), np.asarray(values), np.asarray(feasible, dtype=bool)
    axes.scatter(numbers[~ok], points[~ok], s=14, color=GREY, label="infeasible")
    axes.scatter(numbers[ok], points[ok], s=14, color=BLUE, label="feasible")
    if ok.any():
        kept = np.where(ok, points, -np.inf if maximize else np.inf)
        best = np.maximum.accumulate(kept) if maximize else np.minimum.accumulate(kept)
        shown = np.isfinite(best)
        axes.plot(numbers[shown], best[shown], color=ORANGE, label="best feasible so far")
    axes.axhline(baseline, color="black", lw=1, ls="--", label="baseline")
    axes.set(xlabel="trial", ylabel=f"{metric} (tune users)")
    axes.legend(fontsize=8)
    return _png(axes)


def pareto(names: Sequence[str], points: np.ndarray, feasible: Sequence[bool], front: Sequence[bool]) -> bytes:
    """Each two of the metrics against each other; points float [n, len(names)], front by all metrics together."""
    pairs = list(combinations(range(len(names)), 2))
    columns = min(len(pairs), 3)
    rows = -(-len(pairs) // columns)
    width, height = (5.5, 4.5) if len(pairs) == 1 else (4.4 * columns, 3.8 * rows)
    panels = np.ravel(_axes(width, height, columns, rows))
    ok, best = np.asarray(feasible, dtype=bool), np.asarray(front, dtype=bool)
    groups = ((~ok, GREY, "infeasible"), (ok & ~best, BLUE, "feasible"), (best, ORANGE, "Pareto front"))
    for axes, (x, y) in zip(panels, pairs, strict=False):
        for chosen, color, label in groups:
            axes.scatter(points[chosen, x], points[chosen, y], s=16, color=color, label=label)
        axes.set(xlabel=f"{names[x]} (tune users)", ylabel=f"{names[y]} (tune users)")
    for axes in panels[len(pairs) :]:
        axes.remove()
    panels[0].legend(fontsize=8)
    panels[0].figure.tight_layout()
    return _png(panels[0])


def taste(gammas: NDArray[np.float64], accuracies: NDArray[np.float64], chosen: float, prior: float) -> bytes:
    """Accuracy over the weight of the user's taste: below 0 it is subtracted, above 0 added."""
    axes = _axes(5.2, 3.6)
    axes.axvspan(gammas[0], 0, color=ORANGE, alpha=0.08, lw=0)
    axes.plot(gammas, accuracies, color=BLUE, lw=1.8, label="the best trial with another gamma")
    axes.axvline(chosen, color=BLUE, lw=0.8, ls=":", label=f"its own gamma, {chosen:.2f}")
    axes.axhline(prior, color=GREY, lw=1, ls="--", label=f"the users' priors alone, {prior:.3f}")
    axes.text(gammas[0], axes.get_ylim()[1], " subtracted", va="top", fontsize=8, color=ORANGE)
    axes.set(xlabel="gamma, weight of the user's taste", ylabel="accuracy on the tune users")
    axes.legend(fontsize=7, loc="lower right")
    return _png(axes)


def edits(
    separations: NDArray[np.floating],
    layers: Sequence[int],
    moved: NDArray[np.floating],
    helped: NDArray[np.bool_],
    hurt: NDArray[np.bool_],
) -> bytes:
    """Steering: AUC of the direction at each layer [L] with the edited ones; score changes of questions [n] in nats."""
    left, right = _axes(9.6, 3.6, columns=2)
    left.plot(range(len(separations)), separations, "o-", color=BLUE, ms=4, label="AUC of the direction")
    for layer in layers:
        left.axvspan(layer - 0.4, layer + 0.4, color=ORANGE, alpha=0.25, lw=0)
    left.axhline(0.5, color=GREY, lw=1, ls="--", label="chance")
    left.set(xlabel="layer (edited ones shaded)", ylabel="history told from no history", ylim=(0.4, 1.02))
    left.set_xticks(range(len(separations)))
    left.legend(fontsize=8, loc="lower right")
    parts = {"neither": moved[~helped & ~hurt], "helped": moved[helped], "hurt": moved[hurt]}
    labels = [f"{name}, {len(part)}" for name, part in parts.items()]
    right.hist(list(parts.values()), bins=25, stacked=True, color=(GREY, BLUE, ORANGE), label=labels)
    right.set(xlabel="largest change of a label's score before calibration, nats", ylabel="questions (tune users)")
    right.legend(fontsize=8)
    return _png(left)


def comparison(names: Sequence[str], accuracies: Sequence[float], intervals: Sequence[tuple[float, float]]) -> bytes:
    """Accuracy of several studies with its interval over users, the first on top."""
    axes = _axes(6.0, 1.0 + 0.42 * len(names))
    rows = np.arange(len(names))
    values = np.array(accuracies)
    axes.errorbar(values, rows, xerr=_bars(values, intervals), fmt="o", color=BLUE, capsize=3, ecolor=GREY)
    axes.set_yticks(rows, names, fontsize=8)
    axes.margins(y=0.3)
    axes.invert_yaxis()
    axes.set(xlabel="accuracy on the select users, 95 % interval over users")
    return _png(axes)


def _bars(values: NDArray[np.float64], intervals: Sequence[tuple[float, float]]) -> NDArray[np.float64]:
    """Distances of values [n] from the ends of their intervals, [2, n], as Matplotlib takes them; not below 0."""
    low, high = np.array(intervals).T
    return np.asarray(np.maximum([values - low, high - values], 0.0))


def cold_start(
    items: Sequence[str], accuracies: Sequence[float], intervals: Sequence[tuple[float, float]], baseline: float | None
) -> bytes:
    """Accuracy by how many of the newest history items are given, with its interval over users."""
    axes = _axes(5.6, 3.8)
    places, values = np.arange(len(items)), np.array(accuracies)
    if len(items):
        bars = _bars(values, intervals)
        axes.errorbar(places, values, yerr=bars, fmt="o-", color=BLUE, capsize=3, ecolor=GREY, label="promoted chain")
    if baseline is not None:
        axes.axhline(baseline, color="black", lw=1, ls="--", label=f"baseline, {baseline:.3f}")
    axes.set_xticks(places, items)
    axes.set(xlabel="newest history items given", ylabel="accuracy on the confirm users", ylim=(0, None))
    axes.set_title("descriptive; 95 % interval over users", fontsize=9)
    if len(items) or baseline is not None:
        axes.legend(fontsize=8, loc="lower right")
    return _png(axes)


def training(records: Sequence[Mapping[str, float]]) -> bytes:
    """A training: parts of the loss and the loss of held-out items; spread of the predictions on these."""
    left, right = _axes(9.6, 3.6, columns=2)
    epochs = [record["epoch"] for record in records]
    learned = [record.get("train_loss", record["loss"]) for record in records]
    left.plot(epochs, learned, "o-", ms=3, color=BLUE, lw=1.8, label="items learned from")
    parts = sorted(name for name in records[0] if name.startswith("loss_"))
    for name in parts if len(parts) > 1 else ():
        left.plot(epochs, [record[name] for record in records], ".:", lw=0.9, label=name.removeprefix("loss_"))
    if "held_out_loss" in records[0]:
        held_out = [record["held_out_loss"] for record in records]
        best = int(np.argmin(held_out))
        left.plot(epochs, held_out, "o-", ms=3, color=ORANGE, lw=1.8, label="held-out items")
        left.axvline(epochs[best], color=ORANGE, lw=0.8, ls="--", label=f"kept: epoch {epochs[best]:g}")
        for name, color in (("accuracy", BLUE), ("top1_share", ORANGE)):
            values = [record[f"held_out_{name}"] for record in records]
            right.plot(epochs, values, "o-", ms=3, color=color, label=name.replace("_", " "))
        bits = right.twinx()
        entropies = [record["held_out_entropy"] for record in records]
        bits.plot(epochs, entropies, "o-", ms=3, color=GREY)
        bits.set(ylabel="entropy of the predictions, bits (grey)", ylim=(0, 1.1 * max(entropies) + 0.1))
        right.legend(fontsize=8, loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=2, frameon=False)
    left.set(xlabel="epoch", ylabel="loss, nats")
    left.legend(fontsize=7)
    right.set(xlabel="epoch", ylabel="held-out items", ylim=(0, 1))
    left.figure.tight_layout()
    return _png(left)


def groups(places: NDArray[np.floating], groups: NDArray[np.int64], silhouette: float) -> bytes:
    """Users [U, 2] on the two axes along which their histories differ most, by group [U]."""
    axes = _axes(5.6, 4.6)
    for group in np.unique(groups):
        own = places[groups == group]
        axes.scatter(own[:, 0], own[:, 1], s=14, color=f"C{group % 10}", label=f"group {group}, {len(own)} users")
    axes.set(xlabel="first axis", ylabel="second axis", title=f"silhouette {silhouette:.3f}")
    axes.legend(fontsize=8)
    return _png(axes)


def numbers(name: str, values: Mapping[int, float], metric: str) -> bytes:
    """The best value of a metric among the trials with each value of a whole number."""
    axes = _axes(5.2, 3.4)
    axes.plot(list(values), list(values.values()), "o-", color=BLUE, label="best feasible trial")
    axes.set(xlabel=name, ylabel=f"{metric} (tune users)")
    axes.set_xticks(list(values))
    axes.legend(fontsize=8)
    return _png(axes)


PICTURES: dict[str, Callable[..., bytes]] = {"edits": edits, "training": training, "groups": groups}
"""What an objective may ask for: name -> figure of what the objective gives."""
