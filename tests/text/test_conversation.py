import numpy as np
import pytest

from sgqlm import errors, types
from sgqlm.text import conversation, official, rules, templates
from tests.text import helpers

NAMES = {"v1": "vicuna_v1", "llava_v1": "vicuna_v1"}
# Fixture conversations whose official labels are wrong or all ignored, and the rule that says so.
REFUSED = {
    ("img_starts_with_gpt", "v1_sq"): "human first",
    ("text_starts_with_gpt", "v1_sq"): "human first",
    ("img_question_contains_vuser_and_eos", None): "no control token",
    ("img_empty_human", None): "no empty text",
    ("empty_answer", None): "no empty text",
    ("question_ends_with_typeb_quote", None): "no role marker",
}


def _turns(record):
    found = []
    for item in record["conversation"]:
        text, times = item.get("repeat") or (item["value"], 1)
        found.append(helpers.turn(item["from"], text * times))
    return found


def _drawn(record, turns):
    if record["sq_r"] is None or not record["has_image"]:
        return []
    draws = iter(record["draws"])
    human = [index for index, turn in enumerate(turns) if index and turn["from"] == "human"]
    return [index for index in human if next(draws) < record["sq_r"]]


def _sq_cases():
    for record in helpers.read("sq_llava/conversations.json")["records"]:
        turns = _turns(record)
        keywords = {
            "template": record["template"],
            "tokenizer": helpers.llama(record["tokenizer_legacy"]),
            "has_image": record["has_image"],
            "vusr_turns": _drawn(record, turns),
            "max_length": 2048,
        }
        yield record["name"], turns, keywords, record["input_ids"], record["labels"]


def _llava_cases():
    for record in helpers.read("llava/preprocess.json"):
        keywords = {
            "template": NAMES.get(record["version"], record["version"]),
            "tokenizer": helpers.llama(record["tokenizer_legacy"], "4.37"),
            "has_image": record["has_image"],
            "max_length": record["model_max_length"],
        }
        expected = record["expected"]
        turns = record["conversations"]
        yield record["name"], turns, keywords, expected["input_ids"], expected["labels"]


def _plain_cases():
    for record in helpers.read("sq_llava/plain_pretrain.json"):
        keywords = {"template": "plain", "tokenizer": helpers.llama()}
        yield "plain", record["conversation"], keywords, record["input_ids"], record["labels"]


def _cases():
    cases = [*_sq_cases(), *_llava_cases(), *_plain_cases()]
    assert len(cases) == 100 + 25 + 3
    return cases


def test_official_equals_every_case_of_the_official_programs():
    for name, turns, keywords, ids, labels in _cases():
        found = conversation.encode(turns, **keywords, compat="official")
        assert (name, found.input_ids, found.labels) == (name, ids, labels)
        trained = [kind != types.NOT_TRAINED for kind in found.kinds]
        assert trained == [label != types.IGNORE for label in labels]


def test_strict_equals_the_cases_with_right_labels_and_refuses_the_others():
    refused = 0
    for name, turns, keywords, ids, labels in _cases():
        rule = REFUSED.get((name, None), REFUSED.get((name, keywords["template"])))
        if name == "img_two_images" and keywords["vusr_turns"]:
            rule = "an image would stand inside the trained question"
        if rule:
            refused += 1
            with pytest.raises(errors.SgqlmError, match=rule) as caught:
                conversation.encode(turns, **keywords)
            assert caught.value.code == errors.DATA
            continue
        found = conversation.encode(turns, **keywords)
        assert (name, found.input_ids, found.labels) == (name, ids, labels)
    assert refused == 2 * (3 + 3 + 4 + 4 + 2) + 2 + 2


def test_prompts_equal_the_official_programs():
    for record in helpers.read("sq_llava/prompts.json"):
        *past, (role, _) = record["messages"]
        turns = [helpers.turn("gpt" if who == "ASSISTANT" else "human", text) for who, text in past]
        found = conversation.prompt(
            turns,
            NAMES.get(record["conv_mode"], record["conv_mode"]),
            tokenizer=helpers.llama(record["tokenizer_legacy"]),
            has_image="<image>" in record["prompt"],
            open_role=role.lower(),
        )
        assert (found.text, found.input_ids) == (record["prompt"], record["input_ids"])
        assert set(found.labels) == {types.IGNORE}
    for record in helpers.read("llava/llava_prompts.json")["templates"]:
        system = record["prompt"].split(" USER:")[0] if record["mode"] == "llava_v1" else None
        found = conversation.prompt(
            helpers.chat(*(text for _, text in record["turns"] if text is not None)),
            NAMES.get(record["mode"], record["mode"]),
            tokenizer=helpers.llama(rule="4.37"),
            system=system,
        )
        expected = (record["prompt"], record["tokenizer_image_token"])
        assert (found.text, found.input_ids) == expected


@pytest.mark.parametrize("make", [helpers.trained, helpers.llama])
def test_strict_is_official_or_refuses_on_random_conversations(make):
    tokenizer, rng, refused = make(), np.random.default_rng(0), 0
    for _ in range(400):
        turns = helpers.random_chat(rng)
        later = [i for i in range(2, len(turns), 2) if rng.random() < 0.5]
        vusr = [i for i in later if turns[i]["value"].strip()]
        keywords = {"template": "v1_sq", "tokenizer": tokenizer, "vusr_turns": vusr}
        try:
            strict = conversation.encode(turns, **keywords)
        except errors.SgqlmError:
            refused += 1
            continue
        official_one = conversation.encode(turns, **keywords, compat="official")
        assert strict.input_ids == official_one.input_ids
        assert strict.labels == official_one.labels, turns
    assert 40 < refused < 250


@pytest.mark.parametrize("first", [True, False])
@pytest.mark.parametrize("marker", ["role", "token"])
def test_labels_cover_answers_and_asked_questions_and_nothing_else(first, marker):
    turns = helpers.chat("<image>\nwhat is it?", "a ring.", "is it blue?", "yes", "how many?", "12")
    tokenizer = helpers.trained().with_token("[vusr]")
    found = conversation.encode(
        turns,
        "v1_sq",
        tokenizer=tokenizer,
        vusr_turns=(0, 4) if first else (2,),
        vusr_marker=marker,
    )
    trained = [part for part in conversation.segments(found, tokenizer) if part[1]]
    question, answer = types.QUESTION, types.ANSWER
    if first:
        assert trained == [
            (" what is it?</s>", question),
            (" a ring.</s>", answer),
            (" yes</s>", answer),
            (" how many?</s>", question),
            (" 12</s>", answer),
        ]
    else:
        assert trained == [
            (" a ring.</s>", answer),
            (" is it blue?</s>", question),
            (" yes</s>", answer),
            (" 12</s>", answer),
        ]
    assert found.text.count("[vusr]:" if marker == "token" else "VUSER:") == 2 - (not first)
    for token, label, kind in zip(found.input_ids, found.labels, found.kinds, strict=True):
        assert label == (token if kind else types.IGNORE)


@pytest.mark.parametrize("make", [helpers.trained, helpers.llama])
@pytest.mark.parametrize("past", [0, 2])
def test_generation_starts_from_the_prefix_that_training_saw(make, past):
    tokenizer = make()
    turns = helpers.chat("<image>\nwhat is it?", "a ring.", "is it blue?", "yes")
    found = conversation.encode(turns, "v1_sq", tokenizer=tokenizer, vusr_turns=(past,))
    keywords = {"template": "v1_sq", "tokenizer": tokenizer}
    asked = conversation.prompt(turns[:past], **keywords, open_role="vuser")
    start = found.kinds.index(types.QUESTION)
    assert asked.input_ids == found.input_ids[:start]
    assert asked.prompt_ids == found.prompt_ids
    assert asked.text.endswith("VUSER:")
    assert found.labels[start : found.kinds.index(types.ANSWER, start)].count(tokenizer.eos_id) == 1
    answer = conversation.prompt(turns[: past + 1], **keywords, vusr_turns=(past,))
    header = found.kinds.index(types.ANSWER, start)
    assert answer.input_ids == found.input_ids[:header]
    assert answer.asked == found.asked[: past // 2]


def test_the_image_stands_before_everything_trained_and_has_one_left_context():
    turns, tokenizer = helpers.chat("what?\n<image>", "a ring."), helpers.trained()
    keywords = {"template": "v1_sq", "tokenizer": tokenizer}
    user = conversation.encode(turns, **keywords)
    vuser = conversation.encode(turns, **keywords, vusr_turns=(0,))
    image = user.input_ids.index(types.IMAGE_TOKEN_ID)
    assert user.input_ids[: image + 1] == vuser.input_ids[: image + 1]
    assert max(vuser.kinds[: image + 1]) == types.NOT_TRAINED
    assert vuser.text.endswith("USER: <image>\nVUSER: what?</s> ASSISTANT: a ring.</s>")


@pytest.mark.parametrize("vusr", [(), (0,), (2,), (0, 2)])
@pytest.mark.parametrize("placement", ["after_image", "after_question"])
def test_no_target_reaches_a_graph_prompt(vusr, placement):
    tokenizer = helpers.trained()
    turns = helpers.chat("<image>\nwhat is it?", "a ring.", "is it blue?", "yes")
    changed = [
        helpers.turn(turn["from"], "<image>\nthe star" if index == 0 else "the star")
        if turn["from"] == "gpt" or index in vusr
        else turn
        for index, turn in enumerate(turns)
    ]

    def prompts(conversation_turns):
        found = conversation.encode(
            conversation_turns, "v1_sq", tokenizer=tokenizer, vusr_turns=vusr
        )
        return conversation.expand(found, 4, 2, placement=placement).prompts

    assert prompts(turns) == prompts(changed)
    words = [tokenizer.decode(ids) for ids in prompts(turns)]
    if placement == "after_image":
        assert words == ([""] if 0 in vusr else ["what is it?"])
    else:
        texts = {0: "what is it?", 2: "is it blue?"}
        assert words == ["", *(text for index, text in texts.items() if index not in vusr)]


def test_graph_prompt_is_what_is_asked():
    text = "<image>\nIs it red?\nAnswer the question using a single word or phrase.\n"
    assert templates.graph_prompt(text) == "Is it red?"
    assert templates.graph_prompt("<image>") == ""
    assert templates.graph_prompt("图中是什么？\nA. 猫\n请直接回答选项字母。") == (
        "图中是什么？\nA. 猫"
    )
    found = conversation.prompt(helpers.chat(text), tokenizer=helpers.trained())
    assert helpers.trained().decode(found.prompt_ids) == "Is it red?"
    plain = conversation.encode(helpers.chat(text, "a ring"), "plain", tokenizer=helpers.trained())
    assert plain.prompt_ids == []


def test_graph_runs_stand_right_after_the_question():
    turns = helpers.chat("<image>\nwhat?", "a ring.", "is it blue?", "yes")
    tokenizer = helpers.trained()
    found = conversation.encode(turns, tokenizer=tokenizer, system="")
    out = conversation.expand(found, 2, 1, placement="after_question")
    assert tokenizer.surface(out.tokens) == (
        "<s> USER: <image><image><graph> \nwhat?<graph> ASSISTANT: a ring.</s>"
        "USER: is it blue?<graph> ASSISTANT: yes</s>"
    )
    asked = conversation.prompt(turns[:3], tokenizer=tokenizer, system="")
    before = conversation.expand(asked, 2, 1, placement="after_question")
    assert out.tokens[: len(before.tokens)] == before.tokens
    assert before.prompts == out.prompts


@pytest.mark.parametrize("placement", ["after_image", "after_question"])
@pytest.mark.parametrize("num_graph", [0, 1, 3])
def test_expansion_keeps_labels_and_is_cut_consistently(placement, num_graph):
    turns = helpers.chat("<image>\nwhat?", "a ring.", "is it blue?", "yes")
    found = conversation.encode(turns, tokenizer=helpers.trained())
    whole = conversation.expand(found, 5, num_graph, placement=placement)
    assert whole.tokens.count(types.IMAGE_TOKEN_ID) == 5
    assert whole.tokens.count(types.GRAPH_TOKEN_ID) == num_graph * len(whole.prompts)
    assert [t for t in whole.labels if t >= 0] == [t for t in found.labels if t >= 0]
    for token, label, kind in zip(whole.tokens, whole.labels, whole.kinds, strict=True):
        assert label == (token if kind else types.IGNORE)
        assert label >= 0 or label == types.IGNORE
    for limit in (*range(1, len(whole.tokens) + 2), None):
        keywords = {"placement": placement, "max_length": limit}
        cut = conversation.expand(found, 5, num_graph, **keywords)
        assert (cut.tokens, cut.labels) == (whole.tokens[:limit], whole.labels[:limit])
        assert cut.kinds == whole.kinds[:limit]
        assert cut.prompts == whole.prompts[: len(cut.prompts)]
        runs = -(-cut.tokens.count(types.GRAPH_TOKEN_ID) // num_graph) if num_graph else 0
        assert len(cut.prompts) == runs
        length = conversation.expanded_length(found, 5, num_graph, **keywords)
        assert length == len(cut.tokens)


def test_an_image_inside_an_official_question_is_not_trained_after_expansion():
    turns = helpers.chat("<image>\nwhat?", "a ring.", "<image>\nis it blue?", "yes")
    found = conversation.encode(
        turns, "v1_sq", tokenizer=helpers.trained(), vusr_turns=(2,), compat="official"
    )
    assert types.IMAGE_TOKEN_ID in found.labels
    assert types.IMAGE_TOKEN_ID not in conversation.expand(found, 3, 1).labels


@pytest.mark.parametrize("template", ["vicuna_v1", "v1_sq"])
def test_system_text_can_be_replaced_or_left_out(template):
    tokenizer, turns = helpers.trained(), helpers.chat("<image>\nwhat?", "a ring.")
    none = conversation.encode(turns, template, tokenizer=tokenizer, system="")
    assert none.text == "USER: <image>\nwhat? ASSISTANT: a ring.</s>"
    other = conversation.encode(turns, template, tokenizer=tokenizer, system="Be brief.")
    assert other.text == "Be brief. " + none.text
    assert [t for t in other.labels if t >= 0] == [t for t in none.labels if t >= 0]


def test_a_prompt_takes_its_image_in_front_of_the_first_question():
    tokenizer = helpers.trained()
    typed = conversation.prompt(helpers.chat("what?"), tokenizer=tokenizer)
    tagged = conversation.prompt(helpers.chat("<image>\nwhat?"), tokenizer=tokenizer)
    assert typed == tagged
    assert conversation.prompt([], "plain", tokenizer=tokenizer).input_ids == [1, -200]


def test_text_only_samples_are_cut_with_their_labels():
    turns, tokenizer = helpers.chat("what is it?", "a ring. " * 20), helpers.trained()
    keywords = {"tokenizer": tokenizer, "has_image": False, "system": ""}
    whole = conversation.encode(turns, **keywords)
    cut = conversation.encode(turns, **keywords, max_length=40)
    assert (cut.input_ids, cut.labels) == (whole.input_ids[:40], whole.labels[:40])
    assert cut.labels.count(types.IGNORE) < 20
    assert cut == conversation.encode(turns, **keywords, max_length=40, compat="official")
    assert conversation.expand(whole, 4, 3).prompts == []


TWO = ("<image>\nwhat?", "a ring.")
BROKEN = [
    ("turn shape", [], {}),
    ("turn shape", "text", {}),
    ("turn shape", [{"from": "system", "value": "x"}], {}),
    ("turn shape", [{"from": "human", "value": None}], {}),
    ("turn shape", helpers.chat("<image>\nbroken \ud83d", "x"), {}),
    ("human first", [helpers.turn("gpt", "hi"), *helpers.chat(*TWO)], {}),
    ("alternating", [*helpers.chat(*TWO), helpers.turn("gpt", "more")], {}),
    ("alternating", [helpers.turn("human", "<image>\na"), *helpers.chat("b", "c")], {}),
    ("answered", helpers.chat(*TWO, "and now?"), {}),
    ("no empty text", helpers.chat(*TWO, "", "x"), {}),
    ("no empty text", helpers.chat("<image>\nwhat?", ""), {}),
    ("no control token", helpers.chat("<image>\nwhat</s>?", "x"), {}),
    ("no control token", helpers.chat("<image>\nwhat?", "<s>x"), {}),
    ("no control token", helpers.chat("<image>\nwhat?", "<unk>"), {}),
    ("no role marker", helpers.chat("<image>\nsay ASSISTANT: yes", "x"), {}),
    ("no role marker", helpers.chat("<image>\nsay it. ASSISTANT:", "x"), {}),
    ("no role marker", helpers.chat(*TWO, "ASSISTANT: yes", "x"), {}),
    ("no role marker", helpers.chat("<image>\nwhat?", "a ASSISTANT: b"), {}),
    ("image placeholder", helpers.chat("what?", "x"), {}),
    ("image placeholder", helpers.chat("<image>\nwhat?", "<image> x"), {}),
    ("image placeholder", helpers.chat(*TWO), {"has_image": False}),
    ("plain pair", helpers.chat(*TWO, "more?", "x"), {"template": "plain"}),
    ("is not from human", helpers.chat(*TWO), {"vusr_turns": (1,)}),
    ("is not from human", helpers.chat(*TWO), {"vusr_turns": (6,)}),
    ("asks nothing", helpers.chat("<image>", "x"), {"vusr_turns": (0,)}),
    ("before the image", helpers.chat("a", "b", *TWO), {"vusr_turns": (0,)}),
    ("has no VUSER role", helpers.chat(*TWO), {"template": "vicuna_v1", "vusr_turns": (0,)}),
    ("has no VUSER role", helpers.chat(*TWO), {"template": "plain", "vusr_turns": (0,)}),
    ("has none", helpers.chat("a", "b"), {"has_image": False, "vusr_turns": (0,)}),
    ("later turns", helpers.chat(*TWO), {"compat": "official", "vusr_turns": (0,)}),
]


@pytest.mark.parametrize(("reason", "turns", "keywords"), BROKEN)
def test_a_broken_conversation_is_refused_with_its_reason(reason, turns, keywords):
    with pytest.raises(errors.SgqlmError) as caught:
        conversation.encode(
            turns, **{"template": "v1_sq", "tokenizer": helpers.trained(), **keywords}
        )
    assert reason in str(caught.value)
    assert caught.value.code == errors.DATA


def test_all_faults_of_a_conversation_are_listed_with_their_turns():
    turns = helpers.chat("what?", "", "ASSISTANT: </s>", "a", "more?")
    found = rules.faults(turns, template="v1_sq")
    assert [(fault.rule, fault.turn) for fault in found] == [
        ("image placeholder", None),
        ("no empty text", 1),
        ("no control token", 2),
        ("no role marker", 2),
        ("answered", 4),
    ]
    opened = [helpers.turn("gpt", "hi"), *helpers.chat("<image>\nwhat?", "")]
    assert [fault.turn for fault in rules.faults(opened)] == [2]


@pytest.mark.parametrize(
    ("reason", "turns", "keywords"),
    [
        ("no question", [], {}),
        ("no question", helpers.chat(*TWO), {}),
        ("no answer yet", helpers.chat("<image>\nwhat?"), {"open_role": "vuser"}),
        ("there is none", [], {"open_role": "vuser", "has_image": False}),
        ("no VUSER role", [], {"open_role": "vuser", "template": "vicuna_v1"}),
        ("no control token", helpers.chat("end</s>it"), {}),
        ("image placeholder", helpers.chat("<image>\nwhat?"), {"has_image": False}),
        ("at most one turn", helpers.chat(*TWO, "x"), {"template": "plain"}),
        ("no token [vusr]", [], {"open_role": "vuser", "vusr_marker": "token"}),
        ("unknown template", helpers.chat("a"), {"template": "v2"}),
    ],
)
def test_a_prompt_that_cannot_be_continued_is_refused(reason, turns, keywords):
    with pytest.raises(errors.SgqlmError) as caught:
        conversation.prompt(
            turns, **{"template": "v1_sq", "tokenizer": helpers.trained(), **keywords}
        )
    assert reason in str(caught.value)


def test_texts_equal_the_released_templates():
    fixture = helpers.read("sq_llava/conversations.json")
    assert templates.get("vicuna_v1").system == fixture["system_v1"]
    assert templates.get("v1_sq").system == fixture["system_v1_sq"]
    assert official.MAX_LENGTH == 2048
