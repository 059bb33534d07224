"""The command line as a user meets it: real processes' exit codes and one-line errors."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import optuna
import pytest
import sqlalchemy
import yaml

from studies import runner
from tests.studies.verdict.test_deployments import put


@pytest.fixture
def chamtune(monkeypatch, command, tmp_path):
    """`command` in a folder of its own."""
    monkeypatch.chdir(tmp_path)
    return command


@pytest.fixture
def fresh_spec(tmp_path, spec_of):
    """A function that writes a spec, whose model each home scores anew."""

    def write(**changes):
        path = tmp_path / "spec.yaml"
        path.write_text(yaml.safe_dump(spec_of(**changes).model_dump(mode="json")))
        return path

    return write


@pytest.fixture
def spec_file(fresh_spec, kept_scores):
    return fresh_spec


KEYS = {"study", "trials", "complete", "failed", "feasible", "baseline", "best", "elapsed_s"}


def test_run_prints_one_json_object_last(chamtune, spec_file):
    code, out, err = chamtune("run", spec_file(trials=3), "--json", "--home", "h")
    answer = json.loads(out.splitlines()[-1])
    assert set(answer) >= KEYS
    assert {"accuracy", "entropy", "top1_share", "nll"} <= set(answer["baseline"])
    assert (answer["trials"], code) == (3, 0 if answer["best"] else 1)
    assert "baseline" in err


def test_the_log_says_how_the_model_is_scored(chamtune, fresh_spec, no_results, tmp_path):
    err = chamtune("run", fresh_spec(trials=1), "-v", "--home", "h")[2]
    assert "packed rows for llama" in err
    written = (tmp_path / "h" / "logs" / "chamtune.log").read_text()
    assert "INFO personalization.scoring.routes: packed rows for llama" in written
    chamtune("promote", "nothing", "--home", "elsewhere")
    assert not (tmp_path / "elsewhere").exists()


def test_optuna_does_not_talk_between_our_lines_and_may_talk_afterwards(chamtune, spec_file, no_results, caplog):
    before = optuna.logging.get_verbosity()
    for arguments in (("run", spec_file(trials=1, constraints={})), ("compare", "small")):
        chamtune(*arguments, "--home", "h")
    assert not [record for record in caplog.records if record.name.startswith("optuna")]
    assert optuna.logging.get_verbosity() == before


def test_seed_makes_a_study_of_its_own(chamtune, spec_file, no_results):
    path = spec_file(trials=1)
    chamtune("run", path, "--home", "h")
    chamtune("run", path, "--home", "h", "--seed", 7)
    chamtune("run", path, "--home", "h", "--trials", 2, "--name", "other")
    _, out, _ = chamtune("studies", "--home", "h", "--json")
    rows = {row["study"]: row["trials"] for row in json.loads(out.splitlines()[-1])}
    assert rows == {"small": 1, "small-seed7": 1, "other": 2}


def test_show_and_summary(chamtune, spec_file):
    chamtune("run", spec_file(trials=2, constraints={}), "--home", "h")
    code, out, err = chamtune("show", "small", "--home", "h", "--json")
    assert code == 0
    assert json.loads(out.splitlines()[-1])["best"][0]["metrics"]["accuracy"] >= 0
    code, out, err = chamtune("summary", "h/results/small/best", "--json")
    assert json.loads(out.splitlines()[-1])["source"] == "summary.csv"
    assert "from summary.csv" in err


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["run", "demoo"], 64, "did you mean 'demo'"),
        (["run"], 64, "Missing argument"),
        (["frobnicate"], 64, "No such command"),
        (["show", "x", "--home", "nothing"], 64, "no studies in nothing"),
        (["summary", "nothing"], 65, "none of summary.csv"),
        (["data", "check", "nothing"], 65, "no such file or folder"),
        (["data", "export", "dem", "x"], 64, "there are demo and demo-null"),
        (["data", "export", "demo", "x", "--users", "0"], 64, "'--users'"),
        (["predict", "--config", "no.yaml", "--questions", "q", "--out", "o"], 65, "no.yaml: No such file"),
        (["predict", "--config", "no.yaml", "--questions", "q", "--out", "q"], 64, "q, which is read"),
        (["predict", "--config", "c", "--questions", "a_questions.json", "--out", "a_outputs.json"], 64, "is read"),
        (["predict", "--config", "no.yaml", "--questions", "q", "--out", "/"], 64, "--out / is a folder"),
        (["replay", "log", "--config", "no.yaml", "--out", "log/questions-000001.jsonl"], 64, "log, which is read"),
        (["replay", "log", "--config", "no.yaml", "--out", "/dev/null/x"], 74, "/dev/null: Not a directory"),
        (["monitor", "log", "--trials", "5"], 64, "--trials is of --retune"),
        (["monitor", "log", "--storage", "sqlite:///x.db"], 64, "--storage is of --rollback"),
        (["monitor", "log", "--retune", "--tracking", "off"], 64, "--tracking is of --rollback"),
        (["compare", "a", "b", "a"], 64, "study a is named twice"),
        (["studies", "--storage", "sqlite:////nowhere/x.db"], 64, "there is no storage sqlite:////nowhere/x.db"),
        (["rollback", "no.yaml"], 65, "no.yaml: No such file"),
    ],
)
def test_mistakes_are_one_line_and_an_exit_code(chamtune, arguments, code, said):
    found, out, err = chamtune(*arguments)
    assert found == code
    assert said in out + err
    assert "Traceback" not in out + err
    assert len((out + err).strip().splitlines()) == 1


@pytest.mark.parametrize("place", [0, 1, 2])
def test_debug_shows_the_traceback_wherever_it_stands(chamtune, place):
    arguments = ["run", "demoo"]
    _, _, err = chamtune(*arguments[:place], "--debug", *arguments[place:])
    assert "Traceback" in err


@pytest.mark.parametrize("arguments", [["schema"], ["studies", "--storage", "sqlite:///x.db"], ["show", "-h"]])
def test_an_output_that_nobody_reads_to_its_end_ends_the_command(tmp_path, arguments):
    optuna.create_study(storage=f"sqlite:///{tmp_path / 'x.db'}", study_name="s")
    read, write = os.pipe()
    os.close(read)
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parent.parent)}
    command = [sys.executable, "-m", "cli", *arguments]
    done = subprocess.run(command, stdout=write, stderr=subprocess.PIPE, cwd=tmp_path, env=environment)
    os.close(write)
    assert (done.returncode, done.stderr) == (141, b"")


def test_a_run_says_that_its_time_is_over(chamtune, spec_file, no_results):
    _, out, _ = chamtune("run", spec_file(trials=500, timeout_s=0.01, constraints={}), "--home", "h")
    assert "timeout_s: 0.01 s are over, with" in out
    assert "of 500 trials; the same command goes on from here" in out


def test_help_version_and_completion(chamtune):
    for arguments in (["-h"], [], ["data"], ["run", "-h"]):
        code, out, _ = chamtune(*arguments)
        assert (code, "Usage" in out) == (0, True)
    assert chamtune("--version")[1].startswith("chamtune 0.")
    assert "--install-completion" in chamtune("-h")[1]


def test_answers_go_to_standard_output_and_progress_to_standard_error(
    chamtune, spec_file, no_results, monkeypatch, tmp_path
):
    monkeypatch.setenv("CHAMTUNE_HOME", str(tmp_path / "elsewhere"))
    _, out, err = chamtune("run", spec_file(trials=2))
    assert "study small: 2 trials" in out
    assert err.count("trials 2/2") == 1
    assert "confirm questions of 12 users" in err
    assert (tmp_path / "elsewhere" / "studies.db").exists()
    for command in (["studies"], ["show", "small"]):
        _, out, err = chamtune(*command)
        assert "small" in out
        assert err == ""
        _, out, err = chamtune(*command, "--json")
        assert len(out.splitlines()) == 1
        assert "small" in err
    code, out, err = chamtune("run", spec_file(trials=3), "--quiet")
    assert (code in (0, 1), out, "trials" in err) == (True, "", False)


def test_a_rollback_answers_on_standard_output_and_remarks_on_standard_error(chamtune, tmp_path):
    for beta in (1, 2):
        put(tmp_path / "h", tmp_path / "d", beta)
    code, out, err = chamtune("rollback", "d", "--home", "h")
    assert (code, out) == (0, "d: generation 3, with the content of generation 1\n")
    assert err.startswith("MLflow's champion is not moved: ")
    assert err.count("\n") == 1
    code, out, err = chamtune("rollback", "d", "--to", 2, "--home", "h", "--json")
    assert (code, json.loads(out)) == (0, {"generation": 4, "restored_from": 2})
    assert "MLflow's champion is not moved: " in err
    assert "d: generation 4, with the content of generation 2" in err


def test_data_is_never_taken_for_markup(chamtune, spec_file, no_results, monkeypatch):
    def fails(*_, **__):
        raise ValueError("closing tag [/INST] and [unk]")

    monkeypatch.setattr("objectives.classification.Classification.facts", fails)
    chamtune("run", spec_file(trials=1), "--home", "h")
    code, out, _ = chamtune("show", "small", "--home", "h")
    assert (code, "closing tag [/INST] and [unk]" in out) == (0, True)


@pytest.mark.parametrize(
    ("error", "code", "said"),
    [
        (TypeError("no params\nat all"), 70, "error: TypeError: no params; this should not happen"),
        (optuna.exceptions.StorageInternalError("commit"), 69, "error: the storage failed: commit"),
        (sqlalchemy.exc.OperationalError("SELECT 1", {}, Exception("gone")), 69, "error: the storage failed: gone"),
        (OSError(28, "No space left on device"), 74, "No space left on device"),
    ],
)
def test_what_nobody_foresaw_is_one_line_and_a_code_of_its_own(chamtune, spec_file, monkeypatch, error, code, said):
    def fails(*_):
        raise error

    monkeypatch.setattr(runner, "run_study", fails)
    path = spec_file()
    found, _, err = chamtune("run", path, "--home", "h")
    assert (found, "Traceback" in err) == (code, False)
    assert said in err
    assert len(err.strip().splitlines()) == 1
    found, _, err = chamtune("run", path, "--home", "h", "--debug")
    assert (found, "Traceback" in err) == (code, True)


def test_a_run_that_a_signal_stopped_exits_with_128_and_its_number(chamtune, spec_file, monkeypatch):
    monkeypatch.setattr(runner.Loop, "run", lambda _: os.kill(os.getpid(), signal.SIGTERM))
    code, out, _ = chamtune("run", spec_file(), "--home", "h", "--json")
    assert (code, json.loads(out.splitlines()[-1])["stopped_by"]) == (128 + signal.SIGTERM, signal.SIGTERM)


def test_data_export_check_and_schema(chamtune):
    assert chamtune("data", "export", "demo", "d", "--users", 30)[0] == 0
    code, out, _ = chamtune("data", "check", "d", "--json")
    report = json.loads(out.splitlines()[-1])
    assert (code, report["usable"], report["questions"], report["users"]) == (0, True, 150, 30)
    assert sum(report["gold_shares"].values()) == pytest.approx(1)
    assert report["baselines"]["most frequent label of the history"] > report["baselines"]["most frequent label"]
    assert json.loads(chamtune("schema")[1])["title"] == "StudySpec"


def test_a_spec_is_checked_with_its_own_shares(chamtune, fresh_spec):
    code, out, _ = chamtune("data", "check", fresh_spec(), "--json")
    report = json.loads(out.splitlines()[-1])
    assert (code, report["users"], report["confirm_users"]) == (0, 40, 12)


def test_unusable_data_lists_every_defect(chamtune, tmp_path):
    (tmp_path / "x_questions.json").write_text(json.dumps([{"id": "1"}, {"id": "1", "input": "", "profile": []}]))
    code, out, _ = chamtune("data", "check", "x_questions.json")
    assert code == 65
    assert out.count("unusable") == 2


def test_promote_refuses_with_three_and_writes_nothing(chamtune, spec_file, no_results, tmp_path):
    chamtune("run", spec_file(constraints={"entropy": ">= 99"}, trials=1), "--home", "h")
    code, out, err = chamtune("promote", "small", "--home", "h", "--json")
    assert code == 3
    assert json.loads(out.splitlines()[-1])["promoted"] is False
    assert "no feasible trial" in err
    assert not (tmp_path / "deploy.yaml").exists()


def test_data_from_the_command_line_takes_the_place_of_the_specs(chamtune, spec_file, no_results, small_data):
    code, _, _ = chamtune("run", spec_file(trials=1, constraints={}), "--data", small_data, "--home", "h", "--json")
    assert code == 0
    code, _, err = chamtune("run", "news", "--home", "h")
    assert code == 64
    assert "give one of path (on the command line: --data PATH), table and files" in err


@pytest.mark.slow
def test_compare_prints_a_table_and_writes_a_figure(chamtune, spec_file):
    for name in ("one", "two"):
        chamtune("run", spec_file(trials=2, constraints={}), "--home", "h", "--name", name)
    code, out, err = chamtune("compare", "one", "two", "--home", "h", "--json", "--out", "c.png")
    result = json.loads(out.splitlines()[-1])
    assert (code, [row["study"] for row in result["rows"]]) == (0, ["one", "two"])
    assert "two: accuracy +0.000" in err
    assert err.endswith("figure: c.png\n")
    assert Path("c.png").read_bytes().startswith(b"\x89PNG")
    code, _, err = chamtune("compare", "one", "three", "--home", "h")
    assert (code, "no study 'three'" in err) == (64, True)


def test_compare_writes_over_nothing_that_it_reads(chamtune, spec_file, no_results, small_data):
    chamtune("run", spec_file(trials=1, constraints={}, data={"path": str(small_data)}), "--home", "h")
    for out in (Path("h") / "studies.db", next(small_data.glob("*_questions.json"))):
        code, _, err = chamtune("compare", "small", "--home", "h", "--out", out)
        assert (code, "which is read" in err, err.count("\n")) == (64, True, 1)


def test_a_fatal_row_is_no_lack_of_answers_and_a_note_is_said_once(chamtune, tmp_path):
    rows = [f"u{place % 9},text {place},{'ab'[place % 2]},2020" for place in range(72)]
    head = "user,text,label,time"
    for name, changed in (("note", "u0,text,a,no date"), ("fatal", "u0,,a,2020")):
        (tmp_path / f"{name}.csv").write_text("\n".join([head, *rows, changed]) + "\n")
        assert chamtune("init", f"{name}.csv")[0] == 0
    code, out, err = chamtune("data", "check", "note.yaml")
    assert (code, err, out.count("dates cannot be read")) == (0, "", 1)
    code, out, err = chamtune("data", "check", "fatal.yaml")
    assert (code, err, out.count("unusable")) == (65, "", 1)
    assert "no gold answers" not in out
