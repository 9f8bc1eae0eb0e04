"""Judges: language models that grade answers, asked over HTTP or replayed from a file.

A judge is whatever has a `name` and `complete`. What `gpt-4-0314` and `gpt-4-0613` said can no
longer be asked for, so absolute values under another judge do not compare with published ones; the
name of the judge and the hash of the prompt belong in every report.
"""

import collections
import dataclasses
import hashlib
import json
import os
import pathlib
import threading
import urllib.parse
from collections.abc import Mapping
from typing import Any, Protocol, runtime_checkable

from sgqlm import errors
from sgqlm.data import chat
from sgqlm.evals import answers

OPENAI = "https://api.openai.com/v1"
URL, MODEL = "OPENAI_BASE_URL", "OPENAI_MODEL"  # environment variables
KINDS = "none, openai, an http address, or replay:FILE"


@runtime_checkable
class Judge(Protocol):
    """Something that answers conversations."""

    @property
    def name(self) -> str:
        """The model, for reports."""
        ...

    def complete(
        self, messages: chat.Messages, *, max_tokens: int | None, temperature: float
    ) -> str:
        """Return the answer to a conversation."""
        ...


class NoJudge:
    """Is not asked: what needs a judge stays open and is counted as `needs_judge`."""

    name = "none"

    def complete(
        self, messages: chat.Messages, *, max_tokens: int | None, temperature: float
    ) -> str:
        """Refuse."""
        raise errors.SgqlmError("this answer needs a judge", fix=f"give a judge: {KINDS}")


class Service:
    """A model behind an address; several threads may ask it.

    Args:
        client: of the service.

    Attributes:
        tokens: what the service counted so far, of questions and answers; 0 where it does not tell.
    """

    def __init__(self, client: chat.Client):
        self._client = dataclasses.replace(client, on_usage=self._count)
        self._lock = threading.Lock()
        self.name, self.tokens = client.model, 0

    @property
    def about(self) -> dict[str, str]:
        """Return where the model is, without user, password and query of the address."""
        return {"backend": "http", "host": urllib.parse.urlsplit(self._client.url).hostname or ""}

    def complete(
        self, messages: chat.Messages, *, max_tokens: int | None, temperature: float
    ) -> str:
        """Return the answer of the service."""
        asked = {"max_tokens": max_tokens, "temperature": temperature}
        return self._client.complete(messages, **asked)

    def _count(self, usage: Mapping[str, Any]) -> None:
        number = usage.get("total_tokens")
        with self._lock:
            self.tokens += number if isinstance(number, int) else 0


class Recorder:
    """Passes on to a judge, and writes every reply to a file that `Replay` reads.

    Args:
        judge: who is asked.
        path: jsonl file; appended to.

    Raises:
        SgqlmError: the file has replies of another judge, or is another kind of file.
    """

    def __init__(self, judge: Judge, path: str | os.PathLike):
        self._judge, self._path = judge, pathlib.Path(path)
        self._lock = threading.Lock()
        self.name = judge.name
        if self._path.is_file() and self._path.stat().st_size and Replay(path).name != self.name:
            raise errors.SgqlmError(
                "a record is of one judge",
                where=str(path),
                why=f"the file has replies of {Replay(path).name}, the judge now is {self.name}",
                fix="give another file",
            )

    @property
    def about(self) -> dict[str, str]:
        """Return what is known about the judge behind it."""
        return about(self._judge)

    @property
    def tokens(self) -> int:
        """Return what the judge behind it has counted."""
        return getattr(self._judge, "tokens", 0)

    def complete(
        self, messages: chat.Messages, *, max_tokens: int | None, temperature: float
    ) -> str:
        """Return the answer of the judge once it is on disk."""
        reply = self._judge.complete(messages, max_tokens=max_tokens, temperature=temperature)
        key = question_hash(messages, max_tokens=max_tokens, temperature=temperature)
        with self._lock:
            chat.append(self._path, {"prompt": key, "judge": self.name, "reply": reply})
        return reply


class Replay:
    """Gives recorded replies; those to an equal question in the order they were recorded.

    Args:
        path: jsonl file of `Recorder`.

    Raises:
        SgqlmError: the file is missing, empty or of another form, or has replies of two judges.
    """

    def __init__(self, path: str | os.PathLike):
        self._path = pathlib.Path(path)
        self._replies: dict[str, collections.deque[str]] = collections.defaultdict(
            collections.deque
        )
        judges = set()
        for number, line in enumerate(answers.iterate(path), 1):
            values = [line.get(name) for name in ("prompt", "judge", "reply")]
            if not all(isinstance(value, str) for value in values):
                raise errors.SgqlmError(
                    "this is no recorded reply of a judge",
                    where=f"{path}: record {number}",
                    why="it has no prompt, judge and reply",
                    fix="give a file that was recorded, not one of reviews or answers",
                    code=errors.DATA,
                )
            self._replies[str(line["prompt"])].append(str(line["reply"]))
            judges.add(str(line["judge"]))
        if len(judges) != 1:
            raise errors.SgqlmError(
                "a replay is of one judge",
                where=str(path),
                why=f"the file has replies of {', '.join(sorted(judges)) or 'none'}",
                fix="record one judge a file",
                code=errors.DATA,
            )
        self.name = judges.pop()

    def complete(
        self, messages: chat.Messages, *, max_tokens: int | None, temperature: float
    ) -> str:
        """Return the next recorded reply to this conversation.

        Raises:
            SgqlmError: there is none, or none is left.
        """
        key = question_hash(messages, max_tokens=max_tokens, temperature=temperature)
        if self._replies.get(key):
            return self._replies[key].popleft()
        told = "all its replies are used up" if key in self._replies else "it was never recorded"
        raise errors.SgqlmError(
            "the judge has no recorded reply to this question",
            where=f"{self._path}: {str(messages[-1].get('content', ''))[-120:]!r}",
            why=f"{told} (temperature {temperature}, at most {max_tokens} tokens)",
            fix="ask the judge itself, and record it",
            code=errors.DATA,
        )


def question_hash(messages: chat.Messages, *, max_tokens: int | None, temperature: float) -> str:
    """Return the sha256 of a conversation and its settings, by which replies are recorded."""
    plain = [{"role": m["role"], "content": m["content"]} for m in messages]
    settings = [plain, max_tokens, float(temperature)]
    return hashlib.sha256(json.dumps(settings).encode()).hexdigest()


def about(judge: Judge) -> dict[str, str]:
    """Return what a report tells of a judge beside its name: `backend`, and `host` of a service."""
    return getattr(judge, "about", None) or {"backend": type(judge).__name__.lower()}


def make(
    kind: str,
    *,
    model: str = "",
    record: str | os.PathLike | None = None,
    key_env: str = "",
    timeout: float = 60.0,
    tries: int = 6,
) -> Judge:
    """Return the judge that a user names.

    Args:
        kind: `none`; `openai` (the address in OPENAI_BASE_URL, or that of OpenAI); the base
            address of a service with its protocol; `replay:FILE`.
        model: its name at the service; empty for the one in OPENAI_MODEL.
        record: a file that the replies are appended to.
        key_env: the environment variable with the key, which then must be there; empty for
            OPENAI_API_KEY, which only OpenAI itself asks for.
        timeout: seconds to wait for an answer.
        tries: how often a service that does not answer is asked.

    Raises:
        SgqlmError: there is no such kind, or the model or the key is missing.
    """
    if kind == "none":
        return NoJudge()
    if kind.startswith("replay:"):
        return Replay(kind.removeprefix("replay:"))
    url = os.environ.get(URL) or OPENAI if kind == "openai" else kind
    if not chat.is_address(url):
        raise errors.SgqlmError("there is no such judge", where=kind, fix=f"give {KINDS}")
    model = model or os.environ.get(MODEL, "")
    if not model:
        raise errors.SgqlmError(
            "a judge behind an address needs the name of a model",
            where=kind,
            fix=f"name the model (--judge-model=NAME), or set {MODEL}",
        )
    if (key_env or url == OPENAI) and not os.environ.get(key_env or chat.KEY, "").strip():
        raise errors.SgqlmError(
            "the key of the judge is missing",
            where=f"environment variable {key_env or chat.KEY}",
            fix="set it, or name the one that has the key with --judge-key-env=NAME",
        )
    client = chat.Client(url, model, timeout, tries, key_env=key_env or chat.KEY)
    service = Service(client)
    return Recorder(service, record) if record else service
