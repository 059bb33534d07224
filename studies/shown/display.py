"""The answers of the commands as tables and lines on standard output."""

from __future__ import annotations

from typing import Any

from studies.results import StudyResult
from studies.shown.consoles import answers, empty_table, print_table
from studies.spec import StudySpec
from studies.verdict.prospects import roles_said
from tracking.parts import cost_said, gain_said, sentences
from tracking.report import Summary

SHOWN = ("accuracy", "macro_f1", "nll", "brier", "calibration_error", "entropy", "top1_share")
LONG = 60
"""Characters of a parameter that are shown at most."""


def print_line(text: str) -> None:
    """One line."""
    answers.print(text)


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.4f}"


def print_result(result: StudyResult, spec: StudySpec) -> None:
    """The table at the end of a run."""
    share = result.feasible / max(result.complete, 1)
    title = f"study {result.study}: {result.trials} trials, {share:.0%} of the complete ones feasible"
    best, which = result.best or result.closest, "best feasible" if result.best else "closest"
    table = empty_table(title, "metric", "baseline", which, "gold labels", left=("metric",))
    names = [*SHOWN, *(n for n in spec.optimize if n not in SHOWN)]
    for name in names:
        value = None if best is None else best["metrics"][name]
        table.add_row(name, _number(result.baseline.get(name)), _number(value), _number(result.gold.get(name)))
    print_table(table)
    for name, accuracy in result.references.items():
        answers.print(f"without the model, {name}: accuracy {_number(accuracy)}")
    _print_choices(result)
    if result.best is not None:
        answers.print(f"best trial {result.best['trial']}: {_params(result.best['changed'])}")
        for remark in result.best["remarks"]:
            answers.print(f"note: {remark}")
        answers.print(
            "These figures come from the tune users. `chamtune promote` tests them on users that no trial saw."
        )
        if result.detectable_difference is not None:
            answers.print(f"It detects a gain of {result.detectable_difference:.3f} with 80 % power (20 % changed).")
    elif result.closest is not None:
        broken = {k: round(v, 3) for k, v in result.closest["constraints"].items() if v > 0}
        answers.print(f"no feasible trial; closest: trial {result.closest['trial']}, over its bounds by {broken}")
        for remark in result.closest["remarks"]:
            answers.print(f"note: {remark}")
    _print_incidents(result, spec)


def _print_choices(result: StudyResult) -> None:
    """How much hangs on the sign of the user's taste and on the number of groups."""
    if result.taste:
        said = ", ".join(f"{value:.3f} {name}" for name, value in result.taste.items())
        answers.print(f"accuracy with the user's taste (gamma): {said}")
    if len(result.groups) > 1:
        answers.print("best by number of groups: " + ", ".join(f"{k}: {v:.4f}" for k, v in result.groups.items()))


def _print_incidents(result: StudyResult, spec: StudySpec) -> None:
    """What a user should know about how the run went."""
    if result.truncated_prompts:
        answers.print(
            f"{result.truncated_prompts} prompts lost the end of what they ask about, to fit the model; those "
            "of a causal model lost their history items first"
        )
    if result.lost:
        answers.print(f"{len(result.lost)} trials of a process that died were put back in the queue")
    if result.failed or result.pruned or result.duplicates:
        answers.print(
            f"{result.failed} failed, {result.pruned} pruned, {result.duplicates} repeated (not measured again)"
        )
    if result.stopped_by is not None:
        answers.print("stopped on request; the same command goes on from here")
    elif spec.timeout_s is not None and result.elapsed_s >= spec.timeout_s and result.trials < spec.trials:
        answers.print(
            f"timeout_s: {spec.timeout_s:g} s are over, with {result.trials} of {spec.trials} trials; the same command "
            "goes on from here"
        )
    if result.waiting:
        answers.print(
            f"{result.waiting} records wait for MLflow; the next run or `chamtune sync {result.study}` sends them"
        )


def _params(params: dict[str, Any]) -> str:
    """One line; of a long text the beginning."""
    shown = {name: f"{value:.3g}" if isinstance(value, float) else str(value) for name, value in params.items()}
    return ", ".join(f"{name} {text if len(text) <= LONG else text[:LONG] + '...'}" for name, text in shown.items())


def print_studies(rows: list[dict[str, Any]]) -> None:
    """One line a study."""
    if not rows:
        answers.print("no studies yet; start one with `chamtune run demo`")
        return
    names = ("study", "objective", "trials", "feasible", "failed", "running", "metric")
    table = empty_table(None, *names, "best feasible")
    for row in rows:
        table.add_row(*(str(row.get(name, "")) for name in names), _number(row.get("best")))
    print_table(table)


def print_study(description: dict[str, Any]) -> None:
    """One study."""
    spec = description["spec"]
    answers.print(
        f"study {description['study']}: {description['method']} with {spec['sampler']}, seed {spec['seed']}, "
        f"model {spec['model']['path']}, data {spec['data']['path'] or spec['data']['table'] or spec['data']['files']}"
    )
    answers.print(
        ", ".join(f"{description[k]} {k}" for k in ("trials", "complete", "feasible", "failed", "pruned", "running"))
    )
    names = [*spec["optimize"], *(n for n in ("accuracy", "nll", "entropy", "top1_share") if n not in spec["optimize"])]
    table = empty_table("best feasible trials (tune users)", "trial", *names, "params")
    for row in description["best"]:
        table.add_row(str(row["trial"]), *(_number(row["metrics"][n]) for n in names), _params(row["changed"]))
    print_table(table)
    for number, reason in description["failures"].items():
        answers.print(f"trial {number} failed: {reason}")


def print_auto(found: dict[str, Any]) -> None:
    """The arms of a race and its verdict."""
    title = f"{found['name']}: arms on tune and select users, on whom they were chosen"
    names = ("arm", "accuracy", "gain", "on select users", "trials", "time", "fate")
    rows = empty_table(title, *names, left=("arm", "fate"))
    for arm in found["arms"]:
        measured = arm["gain"] is not None
        select = f"{arm['select']['delta']:+.3f}, p {arm['select']['p_corrected']:.3f}" if arm["select"] else ""
        accuracy, gain = (f"{arm['accuracy']:.4f}", f"{arm['gain']:+.3f}") if measured else ("", "")
        fate = str(arm["fate"]).partition(":")[0]
        rows.add_row(arm["arm"], accuracy, gain, select, str(arm["trials"]), f"{arm['seconds']:.0f} s", fate)
    print_table(rows)
    for arm in found["arms"]:
        if ": " in str(arm["fate"]):
            answers.print(f"{arm['arm']} {arm['fate']}")
    answers.print(f"{'promoted' if found['promoted'] else 'refused'}: {found['reason']}")
    if (confirm := found["confirm"]) is not None:
        answers.print(_confirm_said(confirm))
        _print_parts(confirm)
    answers.print(f"page: {found['page']}" + (f"\ndeployment: {found['deploy']}" if found["deploy"] else ""))


def print_promotion(result: dict[str, Any]) -> None:
    """The verdict and its evidence."""
    verdict = "promoted" if result["promoted"] else "refused"
    note = " (looked at earlier; nothing was spent)" if result["recorded"] else ""
    answers.print(f"{verdict}{note}: {result['reason']}")
    if result["confirm"] is not None:
        _print_confirm(result["confirm"])
    if result["cold_start"] is not None:
        _print_cold_start(result["cold_start"])
    if result["deploy"]:
        answers.print(f"deployment: {result['deploy']}, generation {result['generation']}")


def _confirm_said(confirm: dict[str, Any]) -> str:
    return (
        f"confirm: {confirm['n']} questions of {confirm['users']} users, accuracy "
        f"{confirm['baseline_accuracy']:.3f} -> {confirm['accuracy']:.3f}, difference "
        f"{gain_said(confirm['delta_accuracy'], confirm['ci95'])}"
    )


def _print_confirm(confirm: dict[str, Any]) -> None:
    test = confirm["mcnemar"]
    answers.print(
        f"{_confirm_said(confirm)}, p = "
        f"{confirm['p_accuracy']:.4f} (sign flip by user); McNemar b {test['b']}, c {test['c']}, "
        f"exact {test['p_exact']:.4f}, mid-p {test['p_mid']:.4f}; helped {confirm['helped']}, "
        f"hurt {confirm['hurt']}; use {confirm['use']} of this set"
    )
    if confirm.get("refit"):
        answers.print("what was chosen learned anew from tune and select users together before it was tested")
    _print_parts(confirm)
    for name, test in confirm["tests"].items():
        if name != "accuracy":
            better = gain_said(test["delta"], test["interval"])
            answers.print(
                f"{name}: {test['before']:.3f} -> {test['after']:.3f}, better by {better}, p = {test['p_value']:.4f} "
                f"({test['test']})"
            )
    for name, beside in confirm["references"].items():
        test = beside["tests"]["accuracy"]
        answered, n = beside["answered"], beside["n"]
        some = "" if answered == n else f", for {answered} of {n}; else the prior"
        answers.print(
            f"against the {name} (no model{some}): {test['before']:.3f} -> {test['after']:.3f}, "
            f"difference {gain_said(test['delta'], test['interval'])}, p = {test['p_value']:.4f}"
        )
        if test["delta"] <= 0:
            answers.print(f"mind: without the model, {name} is no worse")
    for line in roles_said(confirm["chosen_by"], confirm["users"]):
        answers.print(f"mind: {line}")
    if confirm["detectable_difference"] is not None:
        answers.print(
            f"smallest difference that this set detects with 80 % power: {confirm['detectable_difference']:.3f}"
        )


def _print_parts(confirm: dict[str, Any]) -> None:
    """What of the gain is general and what personal, and the cost; looks of earlier versions lack both."""
    for line in sentences(confirm["parts"]) if "parts" in confirm else ():
        answers.print(line)
    if "cost" in confirm:
        answers.print(cost_said(confirm["cost"]))


def _print_cold_start(found: dict[str, Any]) -> None:
    said = ", ".join(f"{row['items']}: {row['accuracy']:.3f}" for row in found["rows"])
    alone = found["without_history"]
    more = f"; {alone['users']} users without any: {alone['accuracy']:.3f}" if alone else ""
    answers.print(f"accuracy by the newest history items given (no test): {said}{more}")


def print_comparison(result: dict[str, Any]) -> None:
    """One row a study, gains over the first."""
    title = f"{result['questions']} questions of {result['users']} select users; gains over {result['against']}"
    names = ["accuracy", "macro_f1", "nll", *(name for name in ("mae", "rmse") if name in result["rows"][0])]
    table = empty_table(title, "study", "trial", *names, "ms/question", "B/user", "training s", left=("study",))
    for row in result["rows"]:
        trained = "" if row["training_s"] is None else f"{row['training_s']:.1f}"
        costs = (f"{row['cost_ms']:.1f}", str(row["user_bytes"]), trained)
        table.add_row(row["study"], str(row["trial"]), *(f"{row[name]:.3f}" for name in names), *costs)
    print_table(table)
    for row in result["rows"][1:]:
        gain = row["gain"]
        answers.print(
            f"{row['study']}: accuracy {gain_said(gain['delta'], gain['ci95'])}, p = {gain['p_corrected']:.4f} "
            f"(Holm); users better {gain['users_better']}, worse {gain['users_worse']}, equal {gain['users_equal']}"
        )
        for line in sentences(gain["parts"]):
            answers.print(f"  {line}")


def print_summary(summary: Summary) -> None:
    """The rows of a result folder."""
    table = empty_table(f"from {summary.source}", "metric", "baseline", "candidate", "gold labels")
    for name, *values in summary.rows:
        table.add_row(name, *map(_number, values))
    print_table(table)


def print_beginning(found: dict[str, Any]) -> None:
    """What a table holds, what was written, and what to do next."""
    told = ", ".join(
        f"{key} {column[0] if key == 'text' else column}" for key, column in found["columns"].items() if column
    )
    answers.print(f"{found['rows']} rows of {found['users']} users; columns: {told}")
    answers.print("labels: " + ", ".join(f"{label} {count}" for label, count in found["labels"].items()))
    answers.print(f"written: {found['spec']} (the study) and {found['task']} (what is asked; change its words)")
    answers.print(f"next: chamtune data check {found['spec']}, then chamtune run {found['spec']}")


def print_data_check(report: dict[str, Any]) -> None:
    """What `chamtune data check` found."""
    for line in report["defects"]:
        answers.print(("unusable  " if line["fatal"] else "note      ") + line["text"], markup=False)
    if "questions" not in report:
        return
    lengths = report["history_lengths"]
    answers.print(
        f"{report['task']}: {report['questions']} questions of {report['users']} users, "
        f"{len(report['labels'])} labels, split: {report['split']}; "
        f"history items a question: min {lengths['min']}, median {lengths['median']:g}, max {lengths['max']}"
    )
    if "gold_shares" not in report:
        if report["usable"]:
            answers.print("no gold answers: the data can be predicted, not tuned on")
        return
    table = empty_table("gold labels", "label", "share", left=("label",))
    for label, share in sorted(report["gold_shares"].items(), key=lambda item: -item[1]):
        table.add_row(label, f"{share:.3f}")
    print_table(table)
    for name, value in report["baselines"].items():
        answers.print(f"{name}: accuracy {_number(value)}")
    if report["split"] == "time" and report["confirm_questions"]:
        answers.print(f"confirm users of whom no question tunes: {report['new_confirm_users']}")
    difference = report["detectable_difference"]
    found = "none" if difference is None else f"{difference:.3f}"
    answers.print(
        f"smallest difference in accuracy that the {report['confirm_questions']} confirm questions of "
        f"{report['confirm_users']} users can show at a first look (80 % power, 20 % of answers changed): {found}"
    )
