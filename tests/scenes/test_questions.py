import collections
import re

import numpy as np
import pytest

from sgqlm import errors
from sgqlm.scenes import grammar, questions, world

NUM, FIT = 1500, 1000


@pytest.fixture(scope="module")
def scenes(many):
    return many[0]


@pytest.fixture(scope="module")
def asked(many):
    return many[1]


def prior_accuracy(asked, argument):
    """Accuracy per family of the most frequent answer, fitted on some scenes, tried on others."""
    table = collections.defaultdict(collections.Counter)
    for question in (q for scene in asked[:FIT] for q in scene):
        table[question.family, argument(question)][question.answer] += 1
    right = collections.defaultdict(list)
    for question in (q for scene in asked[FIT:] for q in scene):
        answers = table[question.family, argument(question)].most_common(1)
        right[question.family].append(bool(answers) and answers[0][0] == question.answer)
    return {family: np.mean(hits) for family, hits in right.items()}


def attribute_only(question):
    return question.argument if question.family in ("attribute", "one_hop") else ""


def test_answers_follow_from_text_and_scene_alone(scenes, asked):
    for scene, batch in zip(scenes[:80], asked[:80], strict=True):
        for q in batch:
            assert grammar.answer(q.text, scene) == q.answer, q
            assert questions.is_well_formed(q.text, scene)
            parsed = questions.parse(q.text)
            assert (parsed.family, parsed.argument) == (q.family, q.argument)
            assert all(0 <= k < len(scene.objects) for k in q.grounding)
            if q.family in ("attribute", "one_hop"):
                assert getattr(scene.objects[q.grounding[-1]], q.argument) == q.answer


def test_families_come_in_the_planned_numbers(asked):
    count = collections.Counter(q.family for batch in asked for q in batch)
    assert set(count) == set(grammar.TESTED)
    assert count["attribute"] >= 2.9 * NUM
    assert count["one_hop"] >= 1.9 * NUM
    assert count["exist"] >= 0.98 * NUM
    assert count["left_right"] >= 0.98 * NUM
    assert count["count"] >= 0.3 * NUM
    for batch in asked:
        assert len({q.text for q in batch}) == len(batch)
    kinds = collections.Counter(q.argument for b in asked for q in b if q.family == "attribute")
    shares = [kinds[k] / count["attribute"] for k in ("colour", "shape", "size", "texture")]
    assert np.allclose(shares, (0.4, 0.4, 0.1, 0.1), atol=0.03)


@pytest.mark.parametrize("argument", [attribute_only, lambda q: q.argument])
def test_the_answer_prior_is_near_chance(asked, argument):
    accuracy = prior_accuracy(asked, argument)
    assert accuracy["attribute"] <= 0.21  # .4/8 + .4/12 + .1/3 + .1/2 = .167
    assert accuracy["one_hop"] <= 0.15  # (1/8 + 1/12) / 2 = .104
    assert accuracy["exist"] <= 0.58
    assert accuracy["left_right"] <= 0.57
    assert accuracy["count"] <= 0.36


def test_words_of_the_question_do_not_betray_the_answer(asked):
    """A prior over (family, any one word of the question) stays near chance as well."""
    table = collections.defaultdict(collections.Counter)
    for q in (q for batch in asked[:FIT] for q in batch):
        for word in re.findall("[a-z]+", q.text):
            table[q.family, attribute_only(q), word][q.answer] += 1
    right = collections.defaultdict(list)
    for q in (q for batch in asked[FIT:] for q in batch):
        votes = collections.Counter()
        for word in re.findall("[a-z]+", q.text):
            row = table[q.family, attribute_only(q), word]
            for answer, number in row.items():
                votes[answer] += number / row.total()
        right[q.family].append(bool(votes) and votes.most_common(1)[0][0] == q.answer)
    accuracy = {family: np.mean(hits) for family, hits in right.items()}
    assert accuracy["attribute"] <= 0.25
    assert accuracy["one_hop"] <= 0.2
    assert accuracy["exist"] <= 0.6
    assert accuracy["left_right"] <= 0.58


def test_one_hop_needs_the_relation(scenes, asked):
    """Guessing a value of the scene, the nearest object or any partner falls well short."""
    guesses = collections.defaultdict(list)
    for scene, batch in zip(scenes, asked, strict=True):
        for q in (q for q in batch if q.family == "one_hop"):
            named = q.grounding[0]
            values = {k: getattr(o, q.argument) for k, o in enumerate(scene.objects) if k != named}
            assert len(set(values.values())) >= 4
            common = collections.Counter(values.values()).most_common(1)[0][0]
            guesses["common"].append(common == q.answer)
            place = {k: np.array([o.x, o.y]) for k, o in enumerate(scene.objects)}
            nearest = min(values, key=lambda k: np.hypot(*(place[k] - place[named])))
            guesses["nearest"].append(values[nearest] == q.answer)
            ends = [(r.subject, r.object) for r in scene.relations]
            partners = [a + b - named for a, b in ends if named in (a, b)]
            guesses["partner"].append(np.mean([values[k] == q.answer for k in partners]))
    assert np.mean(guesses["common"]) <= 0.36
    assert np.mean(guesses["nearest"]) <= 0.36
    assert np.mean(guesses["partner"]) <= 0.65


@pytest.mark.parametrize("task", questions.TASKS)
def test_conversations_have_llavas_form_and_the_grammars_words(scenes, task):
    words = set(grammar.words())
    for scene in scenes[:25]:
        turns = questions.conversation(scene, task, seed=3)
        assert turns == questions.conversation(scene, task, seed=3)
        assert [t["from"] for t in turns] == ["human", "gpt"] * (len(turns) // 2)
        text = " ".join(t["value"] for t in turns)
        assert text.count("<image>") == (task != "text")
        assert turns[0]["value"].startswith("<image>\n") == (task != "text")
        assert set(re.findall("[a-z]+", text.replace("<image>", ""))) <= words
        for turn in turns[::2]:
            question = turn["value"].removeprefix("<image>\n").split("\n")[-1]
            assert questions.is_well_formed(question, scene), question
        for human, reply in zip(turns[::2], turns[1::2], strict=True):
            truth = grammar.answer(human["value"].split("\n")[-1], scene)
            assert truth in (None, reply["value"])
    several = {questions.conversation(scenes[0], task, seed=s)[-1]["value"] for s in range(8)}
    assert task == "caption" or len(several) > 1


def test_an_unknown_task_is_refused(scenes):
    with pytest.raises(errors.SgqlmError, match="chatt"):
        questions.conversation(scenes[0], "chatt", seed=0)


def test_lengths_of_conversations(scenes):
    for seed, scene in enumerate(scenes[:25]):
        chat = questions.conversation(scene, "chat", seed=seed)
        assert 3 <= len(chat) // 2 <= 6
        text = questions.conversation(scene, "text", seed=seed)
        assert 6 <= len(text) // 2 <= 10
        lookup = questions.conversation(scene, "lookup", seed=seed)
        assert sum(len(t["value"].split()) for t in lookup[1::2]) >= 14


def facts_of(scene):
    return {grammar.fact(scene, r) for r in scene.relations}


def test_captions_and_facts_say_all_and_nothing_else(scenes):
    for scene in scenes[:25]:
        objects, *clauses = questions.caption(scene).removesuffix(".").split(". ")
        order = sorted(scene.objects, key=lambda o: o.x)
        assert objects.split(", ") == [" ".join(o.words) for o in order]
        assert set(clauses) == facts_of(scene)
        clauses = questions.conversation(scene, "facts", seed=0)[1]["value"].removesuffix(".")
        for clause in clauses.split(". "):
            if clause in facts_of(scene):
                continue
            phrase, rest = re.fullmatch("the (.*) is (.*)", clause).groups()
            said = set(phrase.split()) | set(rest.split())
            fitting = [o for o in scene.objects if said - {"thing"} == set(o.words)]
            assert len(fitting) == 1, clause


def test_descriptions_name_the_right_object(scenes):
    for scene in scenes[:25]:
        for turns in (questions.conversation(scene, "lookup", seed=s) for s in range(2)):
            for human, reply in zip(turns[::2], turns[1::2], strict=True):
                parsed = questions.parse(human["value"])
                (named,) = parsed.nouns[0].find(scene)
                if parsed.family == "describe_hop":
                    (named,) = grammar.partners(
                        scene, named, parsed.predicate, is_back=parsed.is_back
                    )
                    assert reply["value"].split() == list(scene.objects[named].words)
                else:
                    known = parsed.nouns[0].words
                    pairs = zip(scene.objects[named].words, known, strict=True)
                    left = [w for w, said in pairs if not said]
                    given = reply["value"].split()
                    assert sorted(given) == sorted(left)
                    shape = scene.objects[named].shape
                    assert given == (left if shape not in left else [shape, *left[:-1]])


def test_relation_instructions_are_true_and_balanced(scenes):
    replies = collections.Counter()
    kinds = collections.Counter()
    for scene in scenes[:80]:
        turns = questions.conversation(scene, "relations", seed=5)
        for human, reply in zip(turns[::2], turns[1::2], strict=True):
            parsed = questions.parse(human["value"])
            kinds[parsed.family] += 1
            ends = [noun.find(scene)[0] for noun in parsed.nouns]
            if parsed.family == "verify":
                holds = ends[1] in grammar.partners(scene, ends[0], parsed.predicate)
                assert reply["value"] == ("yes" if holds else "no")
                replies[reply["value"]] += 1
            elif parsed.family == "predicate":
                assert world.Relation(ends[0], reply["value"], ends[1]) in scene.relations
            elif parsed.family == "partner":
                (k,) = grammar.partners(scene, ends[0], parsed.predicate, is_back=parsed.is_back)
                item = scene.objects[k]
                assert reply["value"] == f"{item.colour} {item.shape}"
            else:
                assert set(reply["value"].removesuffix(".").split(". ")) == facts_of(scene)
    assert set(kinds) == {"verify", "predicate", "partner", "relations"}
    assert 0.35 <= replies["yes"] / replies.total() <= 0.65
