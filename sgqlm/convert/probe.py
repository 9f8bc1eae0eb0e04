"""Does an exported folder give the token ids that its model was trained on? 200 probes say."""

import json
import os
import pathlib
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

from sgqlm import config as config_lib
from sgqlm import errors, types
from sgqlm.text import conversation, templates
from sgqlm.text import tokenizer as tokenizers

_SCRIPT = pathlib.Path(__file__).parent / "hf_code" / "probe_ids.py"
_TIMEOUT = 600  # seconds; loading transformers takes most of the usual ten
_MAX_EXAMPLES = 5


class Probe(NamedTuple):
    """A conversation to be continued.

    Attributes:
        turns: the LLaVA json list.
        has_image: whether there is an image; some turn then has `<image>`.
        vusr_turns: indices of human turns that the model asked itself.
        open_role: `assistant` to answer, `vuser` to ask.
    """

    turns: tuple[dict[str, str], ...]
    has_image: bool
    vusr_turns: tuple[int, ...] = ()
    open_role: Literal["assistant", "vuser"] = "assistant"


class ProbeReport(NamedTuple):
    """What a folder's own processor makes of the probes.

    Attributes:
        total: number of probes.
        different: probes with other ids than sgqlm's; None where nothing was checked.
        examples: the first differences, one line each.
        checked_with: library and version; `not checked: ...` with the reason otherwise.
    """

    total: int
    different: int | None
    examples: tuple[str, ...]
    checked_with: str


_QUESTIONS = (
    "What is in this picture?",
    "Is there a dog?\nAnswer the question using a single word or phrase.",
    "hello  world, two   spaces",
    "    four spaces in front",
    " one in front",
    "one behind ",
    "many behind      ",
    "\tA tab\tand\t\tmore",
    "\nA line break in front",
    "one behind\n",
    "Two\n\nparagraphs\n\n\nand three",
    "Windows\r\nlines\r\n",
    "A. red\nB. green\nC. blue\nAnswer with the option's letter from the given choices directly.",
    "这张照片里有什么？",
    "写真には何がありますか。日本語で答えてください。",
    "사진에 무엇이 있나요?",
    "請用繁體中文回答:圖中有幾隻貓?",
    "🙂",
    "How many 🐈‍⬛ and 🐕 are there? 👩‍👩‍👧‍👦 🇩🇪 👍🏽",
    "cafe\u0301 or café, n\u0303 or ñ, a\u0308\u0323",
    "ما الذي يظهر في الصورة؟",
    "מה יש בתמונה?",
    "تصویر \u200fRTL\u200e and LTR mixed 12",
    "चित्र में क्या है?",
    "ภาพนี้คืออะไร",
    "Что на картинке? Ответь кратко.",
    "Τι υπάρχει στην εικόνα;",
    "Qu’est-ce que c’est… « ceci » – ou cela ?",
    "0123456789 3.14159 1e-10 1,000,000 №5 ½ ²",
    "12 + 30 = 42; 7 * 6 = 42",
    "def f(x):\n    if x:\n        return {'a': [1, 2]}\n\treturn None  # two",
    '<div class="a">&amp; &lt;b&gt;</div> <br/>',
    "SELECT * FROM t WHERE a <> 'b' -- comment",
    "C:\\Users\\x\\y.txt https://example.org/a?b=c&d=%20#e",
    '{"boxes": [[0.1, 0.25], [0.5, 1.0]], "label": null}',
    "| a | b |\n|---|---|\n| 1 | 2 |",
    "----------------------------------- ===== ..... ______ ******",
    "!!!???...,,,;;;:::",
    "ALL CAPS AND camelCaseWordsAndSnake_case_words",
    "USER: is a word here, and ASSISTANT too",
    "The user said USER: hello",
    "VUSER VUSER: what?",
    "\u2581a lower\u2581one eighth block\u2581",
    "a\u00a0no-break\u2003em\u3000wide\u200bzero",
    "\ufeffmark \u2028line \u2029paragraph",
    "𝔘𝔫𝔦𝔠𝔬𝔡𝔢 ﬁ ligatures Ⅷ ㎏",
    "donaudampfschifffahrtsgesellschaftskapitän",
    "supercalifragilisticexpialidocious antidisestablishmentarianism",
    "<0x0A> <s and </ s> and <unk, [INST] <|im_start|>",
    "x",
)


def prompts() -> list[Probe]:
    """Return 200 conversations: each of 50 texts alone, with an image, in its middle, in turns."""
    found = []
    for index, text in enumerate(_QUESTIONS):
        answer = _QUESTIONS[(index * 7 + 3) % len(_QUESTIONS)]
        middle = len(text) // 2
        has_image = index % 3 > 0
        first = _human("<image>\nDescribe it." if has_image else "Good morning!")
        several = [first, _gpt(answer), _human(text)]
        if index % 2:
            several += [_gpt(text), _human("And now?")]
        found += [
            Probe((_human(f"<image>\n{text}"),), True),
            Probe((_human(text),), False),
            Probe((_human(f"{text[:middle]}<image>{text[middle:]}"),), True),
            Probe(tuple(several), has_image),
        ]
    return found


def asked_prompts() -> list[Probe]:
    """Return 20 conversations in which the model asked, or is to ask."""
    found = [Probe((_human("<image>"),), True, (), "vuser")]
    for index, text in enumerate(_QUESTIONS[:19]):
        question = text.strip() if index % 2 else text
        first = _human(f"<image>\n{question}" if index % 3 else "<image>\nDescribe it.")
        turns = (first, _gpt("A cat."), _human(question), _gpt("Yes."))
        asked = (0, 2) if index % 3 else (2,)
        if index % 4 == 0:
            found.append(Probe(turns, True, asked, "vuser"))
        else:
            found.append(Probe((*turns, _human("And now?")), True, asked))
    return found


def probes_for(text: config_lib.TextConfig) -> list[Probe]:
    """Return the probes that a conversation format can render."""
    form = templates.get(text.template)
    if form.name == "plain":
        return [probe for probe in prompts() if len(probe.turns) == 1]
    return prompts() + (asked_prompts() if form.can_ask else [])


def our_turns(probe: Probe) -> list[dict[str, str]]:
    """Return the turns as `conversation.prompt` takes them.

    To ask about an image alone, chat messages have one that is only the image, and ours none.
    """
    return [] if probe.open_role == "vuser" and len(probe.turns) == 1 else list(probe.turns)


def messages(probe: Probe) -> list[dict[str, Any]]:
    """Return the turns as chat messages, texts and images in the order of the turn."""
    found = []
    for index, turn in enumerate(probe.turns):
        role = {"human": "user", "gpt": "assistant"}[turn["from"]]
        content: list[dict[str, str]] = []
        for number, text in enumerate(turn["value"].split(templates.IMAGE)):
            content += [{"type": "image"}] if number else []
            content += [{"type": "text", "text": text}] if text else []
        found.append({"role": "vuser" if index in probe.vusr_turns else role, "content": content})
    return found


def count_differences(
    folder: str | os.PathLike,
    config: config_lib.Config,
    tokenizer: tokenizers.Tokenizer,
    *,
    python: str = sys.executable,
) -> ProbeReport:
    """Compare the ids of a folder's own processor with sgqlm's, placeholders of the image too.

    The folder is opened by transformers in a process of its own, offline, with the code it has:
    check only folders that sgqlm wrote.

    Args:
        folder: the export.
        config: of the model that was exported.
        tokenizer: of that model.
        python: the interpreter that has transformers.

    Returns:
        The count; without transformers, why there is none.

    Raises:
        SgqlmError: transformers cannot open the folder.
    """
    probes = probes_for(config.text)
    ours = [_our_ids(probe, config, tokenizer) for probe in probes]
    answer = _ask(pathlib.Path(folder), probes, python)
    if "missing" in answer:
        return ProbeReport(len(probes), None, (), f"not checked: {answer['missing']}")
    number, examples = config.model.num_image_tokens, []
    for probe, wanted, row in zip(probes, ours, answer["rows"], strict=True):
        images = [number] * wanted.count(types.IMAGE_TOKEN_ID)
        if found := difference(probe, wanted, images, row):
            examples.append(found)
    shown = tuple(examples[:_MAX_EXAMPLES])
    return ProbeReport(len(probes), len(examples), shown, answer["checked_with"])


def difference(
    probe: Probe, wanted: Sequence[int], images: Sequence[int], row: dict[str, Any]
) -> str | None:
    """Say how a row of the other program differs, or return None.

    Args:
        probe: the conversation.
        wanted: our ids, one placeholder for each image.
        images: image tokens that each placeholder stands for.
        row: `ids` and `images` of the other program, or its `error`.
    """
    text = repr(probe.turns[-1]["value"])
    if "error" in row:
        return f"{text}: {row['error']}"
    if row["ids"] != wanted:
        pairs = enumerate(zip(wanted, row["ids"], strict=False))
        place = next((i for i, (a, b) in pairs if a != b), min(len(wanted), len(row["ids"])))
        part = slice(max(0, place - 1), place + 5)
        return f"{text}: at {place} {list(wanted[part])} became {row['ids'][part]}"
    if row["images"] != images:
        return f"{text}: {row['images']} image tokens, not {list(images)}"
    return None


def _human(text: str) -> dict[str, str]:
    return {"from": "human", "value": text}


def _gpt(text: str) -> dict[str, str]:
    return {"from": "gpt", "value": text}


def _our_ids(probe: Probe, config: config_lib.Config, tokenizer: tokenizers.Tokenizer) -> list[int]:
    text = config.text
    return conversation.prompt(
        our_turns(probe),
        text.template,
        tokenizer=tokenizer,
        has_image=probe.has_image,
        vusr_turns=probe.vusr_turns,
        open_role=probe.open_role,
        system=text.system,
        vusr_marker=text.vusr_marker,
    ).input_ids


def _ask(folder: pathlib.Path, probes: Sequence[Probe], python: str) -> dict[str, Any]:
    """Run the script that has transformers; return what it found."""
    given = [
        {**probe._asdict(), "turns": our_turns(probe), "messages": messages(probe)}
        for probe in probes
    ]
    with tempfile.TemporaryDirectory() as scratch:
        settings = {
            "HF_HUB_OFFLINE": "1",
            "TRANSFORMERS_OFFLINE": "1",
            "HF_MODULES_CACHE": scratch,  # the folder's code is copied there before it runs
            "PYTHONIOENCODING": "utf-8",
        }
        done = subprocess.run(
            [python, str(_SCRIPT), str(folder)],
            input=json.dumps(given),
            env={**os.environ, **settings},
            capture_output=True,
            encoding="utf-8",
            timeout=_TIMEOUT,
            check=False,
        )
    if done.returncode:
        lines = done.stderr.strip().splitlines() or [f"exit code {done.returncode}"]
        raise errors.SgqlmError(
            "transformers cannot open the exported folder",
            where=str(folder),
            why=lines[-1],
            fix="see the versions in the model card; report this if yours is among them",
            code=errors.CHECKPOINT,
        )
    return json.loads(done.stdout.strip().splitlines()[-1])
