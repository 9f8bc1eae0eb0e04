"""The Jinja template writes the text that `conversation.prompt` writes."""

import functools

import pytest

from sgqlm import config
from sgqlm.convert import chat_template, probe
from sgqlm.text import conversation
from tests import tiny_model

sandbox = pytest.importorskip("jinja2.sandbox", reason="transformers renders with jinja2")
QUOTES = 'Say "no", don\'t {{ ask }} {% raw %} \\n é 🙂\nagain'


@functools.cache
def template(text):
    environment = sandbox.ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True)
    return environment.from_string(chat_template.build(text))


def refuse(message):
    raise ValueError(message)


def render(text, messages, **values):
    return template(text).render(
        messages=messages, add_generation_prompt=True, raise_exception=refuse, **values
    )


@pytest.mark.parametrize(
    "text",
    [
        config.TextConfig(template="vicuna_v1"),
        config.TextConfig(template="vicuna_v1", system=""),
        config.TextConfig(template="v1_sq"),
        config.TextConfig(template="v1_sq", system=QUOTES),
        config.TextConfig(template="v1_sq", vusr_marker="token"),
        config.TextConfig(template="plain"),
    ],
    ids=lambda text: f"{text.template}-{text.system and 'own'}-{text.vusr_marker}",
)
def test_every_probe_reads_the_same(text):
    tokenizer = tiny_model.words().with_token("[vusr]")
    found = probe.probes_for(text)
    assert len(found) == {"vicuna_v1": 200, "v1_sq": 220, "plain": 150}[text.template]
    for item in found:
        wanted = conversation.prompt(
            probe.our_turns(item),
            text.template,
            tokenizer=tokenizer,
            has_image=item.has_image,
            vusr_turns=item.vusr_turns,
            open_role=item.open_role,
            system=text.system,
            vusr_marker=text.vusr_marker,
        ).text
        assert render(text, probe.messages(item), open_role=item.open_role) == wanted


def test_content_may_be_a_text_and_a_system_message_replaces_the_system_text():
    text = config.TextConfig(template="vicuna_v1")
    messages = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Where <image>is it? "},
        {"role": "assistant", "content": [{"type": "text", "text": "Here."}]},
        {"role": "user", "content": "And now?"},
    ]
    wanted = "Be brief. USER: <image>\nWhere is it? ASSISTANT: Here.</s>USER: And now? ASSISTANT:"
    assert render(text, messages) == wanted


def test_an_answer_in_front_is_left_out_where_ours_leaves_it_out():
    messages = [{"role": "assistant", "content": "Hi."}, {"role": "user", "content": "Who?"}]
    text = config.TextConfig(template="vicuna_v1", system="")
    assert render(text, messages) == "USER: Who? ASSISTANT:"
    text = config.TextConfig(template="v1_sq", system="")
    assert render(text, messages) == "ASSISTANT: Hi.</s>USER: Who? ASSISTANT:"


def test_unknown_roles_are_refused():
    messages = [{"role": "tool", "content": "1"}]
    with pytest.raises(ValueError, match=r"roles are system, user, assistant$"):
        render(config.TextConfig(template="vicuna_v1"), messages)
    with pytest.raises(ValueError, match=r"vuser$"):
        render(config.TextConfig(template="v1_sq"), messages)
    asked = [{"role": "vuser", "content": "What?"}]
    with pytest.raises(ValueError, match="roles are"):
        render(config.TextConfig(template="vicuna_v1"), asked)
