from dataclasses import replace

from personalization.data.known import known_items
from personalization.data.records import Dataset
from personalization.methods.history.past import PAST, one_each, past_of
from tests.personalization.stages.chains import growing
from tests.tiny import short_world


def alone(dataset, row):
    return Dataset(dataset.task, dataset.labels, (dataset.questions[row],))


def test_the_past_of_a_question_depends_on_it_alone():
    dataset = growing(3, 4, 3)
    together = past_of(dataset)
    for row in range(len(dataset)):
        own = [
            q
            for q, owner in zip(together.items.questions, together.owners, strict=True)
            if owner == together.places[row]
        ]
        one = past_of(alone(dataset, row)).items.questions
        assert [(q.text, q.history, q.gold, q.date) for q in own] == [(q.text, q.history, q.gold, q.date) for q in one]


def test_an_item_knows_those_before_it_and_never_its_own_label():
    dataset = short_world(1, 2, 1)
    past = past_of(dataset)
    question = dataset.questions[0]
    history = known_items(dataset.task, question)
    own = [q for q, owner in zip(past.items.questions, past.owners, strict=True) if owner == past.places[0]]
    assert [q.gold for q in own] == [item.label for item in history]
    for place, item in enumerate(own):
        assert item.history == history[:place]
        assert dataset.task.item(item.text).strip() == history[place].text.strip()


def test_unlabelled_items_are_not_asked_and_the_latest_are():
    dataset = short_world(1, 1, 1, items=6)
    question = dataset.questions[0]
    items = (*question.history[:5], replace(question.history[5], label=None))
    many = replace(
        question, history=tuple(replace(item, id=f"{i}", text=f"{item.text} {i}") for i, item in enumerate(items * 5))
    )
    past = past_of(Dataset(dataset.task, dataset.labels, (many,)))
    assert len(past.items) == PAST
    assert all(q.gold is not None for q in past.items.questions)
    assert past.items.questions[-1].id.endswith("/28")


def test_equal_pasts_are_asked_once():
    dataset = short_world(1, 3, 1)
    twice = Dataset(dataset.task, dataset.labels, dataset.questions * 2)
    assert len(past_of(twice).items) == len(past_of(dataset).items)
    assert past_of(twice).places.tolist() == [0, 1, 2, 0, 1, 2]


def test_what_is_learned_from_holds_no_item_that_a_question_asks_about():
    dataset = short_world(1, 2, 2)
    first, second = dataset.questions[:2]
    asked = replace(first.history[0], text=dataset.task.item(second.text))
    told = Dataset(dataset.task, dataset.labels, (replace(first, history=(asked, *first.history)), second))
    (one,) = one_each(told).questions
    assert asked.text not in {item.text for item in one.history}
    assert len(one_each(dataset)) == 2
