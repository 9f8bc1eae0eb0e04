"""Captions to relations by a language model behind an OpenAI-compatible address.

Every answer is kept in a file, so a run that is repeated or was cut off asks nothing twice.
"""

import dataclasses
import hashlib
import json
import pathlib
import re
import time
import urllib.parse
from collections.abc import Callable
from typing import Any

from sgqlm import errors
from sgqlm.data import chat
from sgqlm.data.relations import text, types

_MAX_WORDS = 5
_SYSTEM = (
    "You extract visual relations from image captions. You get a caption and numbered phrases of "
    "it. Answer with a json list of [subject number, predicate, object number] and nothing else. "
    "Use only relations that the caption states and that can be seen; a predicate has one to four "
    "words in lower case, such as holding, next to, in front of. Answer [] if there is none."
)


@dataclasses.dataclass
class Endpoint:
    """Asks a chat completion service for the relations of captions.

    Attributes:
        url: base address such as `http://localhost:8000/v1`, or that of `chat/completions` itself.
        model: name of the model there.
        cache: jsonl file of all answers; made if it is not there.
        report: counts answers that cannot be used.
        timeout: seconds to wait for an answer.
        tries: how often a question is asked that the service did not answer.
        sleep: waits; for tests.
    """

    url: str
    model: str
    cache: pathlib.Path
    report: types.Report = dataclasses.field(default_factory=types.Report)
    timeout: float = 60.0
    tries: int = 6
    sleep: Callable[[float], None] = time.sleep
    name: str = "endpoint"
    _known: dict[str, str] | None = None

    def __post_init__(self):
        """Check the address."""
        if not chat.is_address(self.url) or not self.model:
            parts = urllib.parse.urlsplit(self.url)
            raise errors.SgqlmError(
                "text to relations needs an address and a model",
                where=f"--text-to-relations={parts.scheme}://{parts.hostname or ''}",
                fix="give --text-to-relations=http://HOST:PORT/v1 --text-model=NAME",
            )

    def __call__(self, caption: str, spans: text.Spans) -> list[text.Triple]:
        """Return the relations of a caption; see `text.RuleBased`.

        Raises:
            SgqlmError: the service does not answer, or refuses.
        """
        phrases = [caption[start:end] for start, end in spans]
        numbered = "\n".join(f"{i}: {phrase}" for i, phrase in enumerate(phrases, 1))
        question = f"Caption: {caption}\nPhrases:\n{numbered}"
        digest = hashlib.sha256(json.dumps([self.model, _SYSTEM, question]).encode()).hexdigest()
        known = self._answers()
        if digest not in known:
            system = {"role": "system", "content": _SYSTEM}
            client = chat.Client(self.url, self.model, self.timeout, self.tries, self.sleep)
            known[digest] = client.complete([system, {"role": "user", "content": question}])
            chat.append(self.cache, {"question": digest, "answer": known[digest]})
        try:
            return parse(known[digest], len(spans))
        except ValueError as error:
            self.report.note("answer that cannot be used", f"{error}: {known[digest][:80]!r}")
            return []

    def _answers(self) -> dict[str, str]:
        """Return the answers of earlier runs; a line that was cut off is asked again."""
        if self._known is None:
            self._known = {}
            if self.cache.is_file():
                for line in self.cache.read_text("utf-8").split("\n"):
                    try:
                        value = json.loads(line)
                        self._known[value["question"]] = str(value["answer"])
                    except (ValueError, KeyError, TypeError):
                        continue
        return self._known


def parse(answer: str, count: int) -> list[text.Triple]:
    """Return the triples of an answer, with phrases counted from 0.

    Args:
        answer: a json list of [subject number, predicate, object number], numbers from 1; a code
            fence round it is allowed, other text is not.
        count: number of phrases.

    Raises:
        ValueError: it is anything else.
    """
    fenced = re.fullmatch(r"\s*```(?:json)?\s*(.*?)\s*```\s*", answer, re.DOTALL)
    value: Any = json.loads(fenced[1] if fenced else answer)
    if not isinstance(value, list):
        raise ValueError("not a list")
    found = []
    for item in value:
        if not isinstance(item, list) or len(item) != 3:
            raise ValueError("an entry is no triple")
        subject, predicate, target = item
        ends = (subject, target)
        if not all(type(end) is int and 1 <= end <= count for end in ends) or subject == target:
            raise ValueError("a number that is no phrase")
        words = types.clean(predicate) if isinstance(predicate, str) else ""
        if not 1 <= len(words.split()) <= _MAX_WORDS:
            raise ValueError("a predicate of no or too many words")
        found.append((subject - 1, words, target - 1))
    return found
