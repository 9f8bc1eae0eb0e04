"""Captions to relations by a language model behind an OpenAI-compatible address.

Every answer is kept in a file, so a run that is repeated or was cut off asks nothing twice. The key
comes from the environment variable OPENAI_API_KEY and appears in no message and no file.
"""

import dataclasses
import hashlib
import http.client
import json
import os
import pathlib
import re
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable
from typing import Any

from sgqlm import errors
from sgqlm.data.relations import text, types

KEY = "OPENAI_API_KEY"
_WAIT = 60.0  # seconds, the longest pause between two tries
_LIMIT = 1 << 20  # bytes of an answer
_MAX_WORDS = 5
_SYSTEM = (
    "You extract visual relations from image captions. You get a caption and numbered phrases of "
    "it. Answer with a json list of [subject number, predicate, object number] and nothing else. "
    "Use only relations that the caption states and that can be seen; a predicate has one to four "
    "words in lower case, such as holding, next to, in front of. Answer [] if there is none."
)


class _NoRedirects(urllib.request.HTTPRedirectHandler):
    """Follows no redirect: the key would travel along."""

    def redirect_request(self, req, fp, code, msg, headers, newurl):
        """Refuse by giving no request; then the answer counts as an error."""


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
        parts = urllib.parse.urlsplit(self.url)
        if parts.scheme not in ("http", "https") or not parts.netloc or not self.model:
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
            known[digest] = self._ask(question)
            self._remember(digest, known[digest])
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

    def _remember(self, digest: str, answer: str) -> None:
        self.cache.parent.mkdir(parents=True, exist_ok=True)
        line = json.dumps({"question": digest, "answer": answer})
        with self.cache.open("a+b") as file:  # a line that was cut off must not swallow this one
            if file.seek(0, os.SEEK_END):
                file.seek(-1, os.SEEK_END)
                line = line if file.read(1) == b"\n" else "\n" + line
            file.write(line.encode() + b"\n")

    def _ask(self, question: str) -> str:
        pause, why = 1.0, ""
        for attempt in range(self.tries):
            if attempt:
                self.sleep(min(pause, _WAIT))
                pause *= 2
            try:
                return self._request(question)
            except urllib.error.HTTPError as error:
                why = f"HTTP {error.code} {error.reason}"
                error.close()
                if error.code not in (408, 409, 425, 429) and error.code < 500:
                    break
                pause = max(pause, _retry_after(error))
            except (OSError, http.client.HTTPException, ValueError) as error:
                why = f"{type(error).__name__}: {error}"
        fix = f"start the service, correct the address or {KEY}; the answers so far are kept"
        raise errors.SgqlmError(
            "the text service gives no answer",
            where=self.url.split("?")[0].rsplit("@", 1)[-1],
            why=why,
            fix=fix,
            code=errors.RESOURCES,
        )

    def _request(self, question: str) -> str:
        url = self.url.rstrip("/")
        url = url if url.endswith("/chat/completions") else f"{url}/chat/completions"
        messages = [{"role": "system", "content": _SYSTEM}, {"role": "user", "content": question}]
        body = {"model": self.model, "messages": messages, "temperature": 0}
        headers = {"Content-Type": "application/json"}
        if key := os.environ.get(KEY):
            headers["Authorization"] = f"Bearer {key}"
        request = urllib.request.Request(url, json.dumps(body).encode(), headers)
        opener = urllib.request.build_opener(_NoRedirects)
        with opener.open(request, timeout=self.timeout) as answer:
            value = json.loads(answer.read(_LIMIT))
        try:
            return str(value["choices"][0]["message"]["content"])
        except (KeyError, IndexError, TypeError) as error:
            raise ValueError(f"no chat completion: {str(value)[:80]}") from error


def _retry_after(error: urllib.error.HTTPError) -> float:
    try:
        return float(error.headers.get("Retry-After") or 0)
    except ValueError:  # a date
        return 0.0


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
