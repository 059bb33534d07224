"""Tasks as files: LaMP's as the benchmark words them, a user's own, and what cannot be asked."""

import re

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from personalization.data.prompts import mismatch
from personalization.data.records import HistoryItem
from personalization.errors import UsageError
from personalization.tasks import TASKS, listed_anywhere, load_task, of_form, task
from personalization.tasks.forms import REPLACED
from personalization.tasks.task import Task

CITED = (
    'For an author who has written the paper with the title "On "dogs" and trees", which reference is related? '
    'Just answer with [1] or [2] without explanation. [1]: "Cats" [2]: "Oaks, "tall" ones"'
)
INPUTS = {
    "LaMP_1": CITED,
    "LaMP_2": "Which tag does this movie relate to among the following tags? tags: [comedy, drama] description: A dog.",
    "LaMP_2N": "Which category does this article relate to? categories: [politics, sports] article: A vote.",
    "LaMP_3": "What is the score of the following review on a scale of 1 to 5? review: Works.",
}
ITEMS = [HistoryItem("0", "One", "drama", None, (("abstract", "First."),)), HistoryItem("1", "Two", "comedy")]
OFFICIAL = {
    "LaMP_1": CITED.replace("the title", 'the title, and "One", and "Two"', 1),
    "LaMP_2": 'the tag for the movie: "One" is "drama" , and the tag for the movie: "Two" is "comedy" . {}',
    "LaMP_2N": 'the category for the article: "One" is "drama" , and '
    'the category for the article: "Two" is "comedy" . {}',
    "LaMP_3": 'drama is the score for "One" , and comedy is the score for "Two" . {}',
}
"""What LaMP's create_prompt_generator gives for these items (github.com/LaMP-Benchmark/LaMP, prompts.py)."""


@pytest.mark.parametrize("name", TASKS)
def test_prompts_are_the_benchmarks_with_the_answers_cue(name):
    text = INPUTS[name]
    assert task(name).prompt_of(text, ITEMS) == OFFICIAL[name].replace("{}", text) + "\nanswer:"
    assert task(name).prompt_of(text) == f"{text}\nanswer:"
    assert task(name).chat_of(text, ITEMS) == (None, OFFICIAL[name].replace("{}", text))


@pytest.mark.parametrize("name", TASKS)
def test_an_input_tells_its_task_and_what_it_asks_about(name):
    text, own = INPUTS[name], task(name)
    assert of_form(text) is own
    assert own.about(text, own.item(text)) == text
    assert own.about(text, "something else").count("something else") == 1
    assert own.item(own.about(text, "something else")) == "something else"
    assert own.frame(text) == own.about(text, "")
    assert own.item("no form at all") == own.about("x", "no form at all") == "no form at all"


CITING = '", which reference '
PIECES = [
    *("tags: [", "categories: [", "]", "description:", "article:", "score", "review:", "\n", "x", '"', " "),
    *(' title "', CITING, '[1]: "', '" [2]: "'),
]


@given(st.lists(st.sampled_from(PIECES), max_size=30).map("".join))
def test_forms_match_what_they_matched_before(text):
    for before, now in REPLACED.items():
        old, new = re.fullmatch(before, text), re.fullmatch(now, text)
        assert (old is None) == (new is None)
        if old is not None and text.count(CITING) < 2:
            assert (old.groupdict(), old.span("text")) == (new.groupdict(), new.span("text"))


def test_a_deployment_with_a_form_of_before_has_that_of_now():
    assert {task(name).form for name in TASKS} == set(REPLACED.values())
    for before, now in REPLACED.items():
        assert load_task({**OWN, "form": before}) == load_task({**OWN, "form": now})


def test_no_text_of_a_client_takes_more_than_one_pass():
    """Of these texts a pass takes a moment, and a pass from each place longer than any test may."""
    for piece in ("tags: [", "categories: [] ", "score ", 'title "', CITING, '[1]: "', '" [2]: "'):
        many = piece * (500_000 // len(piece))
        for text in (many, f' title "a{CITING}[1]: "{many}x'):
            assert not any(task(name).has_form(text) for name in TASKS)
            listed_anywhere(text)


def test_citations_are_ranked_by_both_references_and_whole_papers():
    own = task("LaMP_1")
    assert own.item(CITED) == 'On "dogs" and trees'
    assert own.query_of(CITED) == 'Cats Oaks, "tall" ones'
    assert [own.document_of(item) for item in ITEMS] == ["One First.", "Two"]


@pytest.mark.parametrize("name", ["LaMP_2", "LaMP_2N", "LaMP_3"])
def test_a_bare_text_becomes_the_benchmarks_question_once(name):
    own = task(name).with_labels(("a", "b"))
    asked = own.question("A dog.")
    assert own.has_form(asked)
    assert own.item(asked) == "A dog."
    assert own.question(asked) == asked


def test_listed_labels_are_read_wherever_they_stand():
    found = listed_anywhere("Pick one. tags: ['a, b', c] and go")
    assert found == (task("LaMP_2"), ("['a", "b'", "c")) or found == (task("LaMP_2"), ("'a", "b'", "c"))
    assert listed_anywhere("Pick one. tags: ['a', 'b'] and go") == (task("LaMP_2"), ("a", "b"))
    assert listed_anywhere("no list") is None


OWN = {
    "name": "tickets",
    "labels": {"bill": "Rechnung", "tech": "Technik"},
    "prompt": "{{history}}Wohin? {{labels | join(' oder ')}}\n{{text}}\nAntwort:",
    "history": {"item": "{{text}} -> {{label}}", "join": "; ", "after": "\n"},
    "answer": {"lead": " ", "end": "."},
    "chat": {"system": "Sei kurz.", "user": "{{text}}", "reply": "{{label}}!"},
    "encoder": {"item": "Anfrage: {{text}}", "label": "Thema {{label}}"},
    "wordings": {"kurz": {"prompt": "{{text}}:", "history": {"join": " | "}}},
}


def test_a_users_own_task_in_his_own_language(tmp_path):
    path = tmp_path / "tickets.yaml"
    path.write_text(yaml.safe_dump(OWN, allow_unicode=True), encoding="utf-8")
    own = load_task(str(path))
    item = HistoryItem("0", "Betrag falsch", "bill")
    assert (
        own.prompt_of("Absturz", [item]) == "Betrag falsch -> Rechnung\nWohin? Rechnung oder Technik\nAbsturz\nAntwort:"
    )
    assert own.continuation("tech") == " Technik."
    assert own.chat_of("Absturz") == ("Sei kurz.", "Absturz")
    assert own.reply("tech") == "Technik!"
    assert (own.encoded("Absturz"), own.label_text("bill")) == ("Anfrage: Absturz", "Thema Rechnung")
    short = own.worded("kurz")
    assert short.prompt_of("Absturz", [item, item]) == "Absturz:"
    assert short.history.item == own.history.item
    assert mismatch(own, ("bill", "tech"), INPUTS["LaMP_2"]) is None
    assert load_task(own.model_dump(mode="json", exclude_defaults=True)) == own


def test_a_question_may_list_labels_that_only_the_data_have():
    asked = {"ask": "{{labels | join(', ')}}: {{text}}", "form": "(?P<labels>.+): (?P<text>.*)"}
    task = load_task({"name": "listing", **asked}).with_labels(("a", "b"))
    assert (task.item(task.question("x")), task.listed(task.question("x"))) == ("x", ("a", "b"))


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"promt": "x"}, "promt: Extra inputs are not permitted; allowed are name, official"),
        ({"prompt": "{{txt}}"}, "'txt' is undefined; it may name history, input, labels, text"),
        ({"prompt": "{{text"}, "unexpected end of template"),
        ({"prompt": "{{text.__class__.__mro__}}"}, "is unsafe|is undefined"),
        ({"labels": ["a"]}, "two labels or more"),
        ({"labels": {"a": "x", "b": "x"}}, "labels 'a' and 'b' are both spoken as 'x'"),
        ({"labels": {"a": " ", "b": "x"}}, "label 'a' is empty"),
        ({"form": "(?P<txt>.*)"}, "a form needs a group"),
        ({"form": "("}, "not a regular expression"),
        ({"ask": "Which? {{text}}"}, "ask needs a form that finds the text again; or write its words into prompt"),
        ({"ask": "Which? {{text}}", "form": "What. (?P<text>.*)"}, "ask needs a form that finds the text again"),
        ({"wordings": {"x": {"labels": ["a", "b"]}}}, "wording 'x' changes 'labels'"),
        ({"name": ""}, "name"),
    ],
)
def test_what_cannot_be_asked_is_one_line(tmp_path, changes, said):
    path = tmp_path / "mine.yaml"
    path.write_text(yaml.safe_dump({**OWN, **changes}))
    with pytest.raises(UsageError, match=said) as caught:
        load_task(str(path))
    assert str(caught.value).startswith(f"{path}: ")


@pytest.mark.parametrize(("text", "said"), [("- a", "a task is a mapping of keys"), ("a: [", "line 1: not YAML")])
def test_a_file_that_is_no_task_is_one_line(tmp_path, text, said):
    (tmp_path / "mine.yaml").write_text(text)
    with pytest.raises(UsageError, match=said):
        load_task(str(tmp_path / "mine.yaml"))


def test_an_unknown_task_names_the_known():
    with pytest.raises(UsageError, match="task 'LaMP_9' is not known; known are LaMP_1, LaMP_2"):
        load_task("LaMP_9")


def test_a_wording_that_is_not_there_is_named():
    with pytest.raises(ValueError, match="task tickets has no wording 'lang'; it has kurz"):
        Task.model_validate(OWN).worded("lang")
