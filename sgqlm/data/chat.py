"""A client of chat completion services behind an OpenAI-compatible address.

The key comes from an environment variable, OPENAI_API_KEY unless another is named, and appears in
no message and no file.
"""

import dataclasses
import http.client
import json
import os
import pathlib
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Mapping, Sequence
from typing import Any, BinaryIO

from sgqlm import errors

KEY = "OPENAI_API_KEY"
Messages = Sequence[Mapping[str, str]]  # of `role` and `content`
_WAIT = 60.0  # seconds, the longest pause between two tries
_LIMIT = 1 << 20  # bytes of an answer
_AGAIN = (408, 409, 425, 429)  # and everything from 500 on


class _NoRedirects(urllib.request.HTTPRedirectHandler):
    """Follows no redirect: the key would travel along."""

    def redirect_request(self, req, fp, code, msg, headers, newurl):
        """Refuse by giving no request; then the answer counts as an error."""


def is_address(url: str) -> bool:
    """Return whether a text is an http or https address with a host."""
    try:
        parts = urllib.parse.urlsplit(url)
    except ValueError:  # a bracket that is not closed
        return False
    return parts.scheme in ("http", "https") and bool(parts.netloc)


@dataclasses.dataclass(frozen=True)
class Client:
    """Asks a chat completion service; a busy one is asked again, after longer and longer pauses.

    Attributes:
        url: base address such as `http://localhost:8000/v1`, or that of `chat/completions` itself.
        model: name of the model there.
        timeout: seconds to wait for an answer.
        tries: how often a question is asked that the service did not answer.
        sleep: waits; for tests.
        key_env: name of the environment variable with the key.
        on_usage: told what the service says about the tokens of an answer, where it says it.
    """

    url: str
    model: str
    timeout: float = 60.0
    tries: int = 6
    sleep: Callable[[float], None] = time.sleep
    key_env: str = KEY
    on_usage: Callable[[Mapping[str, Any]], None] = lambda usage: None

    @property
    def name(self) -> str:
        """The model, for reports."""
        return self.model

    def complete(
        self, messages: Messages, *, max_tokens: int | None = None, temperature: float = 0
    ) -> str:
        """Return the answer to a conversation; empty where the model said nothing.

        Args:
            messages: `role` and `content` each.
            max_tokens: length of the answer at most; None leaves it to the service.
            temperature: of sampling.

        Raises:
            SgqlmError: the service does not answer, or refuses.
        """
        body = {"model": self.model, "messages": list(messages), "temperature": temperature}
        if max_tokens is not None:
            body["max_tokens"] = max_tokens
        pause, why = 1.0, ""
        for attempt in range(self.tries):
            if attempt:
                self.sleep(min(pause, _WAIT))
                pause *= 2
            try:
                return self._request(body)
            except urllib.error.HTTPError as error:
                why = f"HTTP {error.code} {error.reason}{_details(error, self.key_env)}"
                error.close()
                if error.code not in _AGAIN and error.code < 500:
                    break
                pause = max(pause, _retry_after(error))
            except (OSError, http.client.HTTPException, ValueError) as error:
                why = f"{type(error).__name__}: {_without_key(str(error), self.key_env)}"
        raise errors.SgqlmError(
            "the chat service gives no answer",
            where=self.url.split("?")[0].rsplit("@", 1)[-1],
            why=why,
            fix=f"start the service, correct the address, the model or {self.key_env}; "
            "what was answered so far is kept",
            code=errors.RESOURCES,
        )

    def _request(self, body: Mapping[str, Any]) -> str:
        url = self.url.rstrip("/")
        url = url if url.endswith("/chat/completions") else f"{url}/chat/completions"
        headers = {"Content-Type": "application/json"}
        if key := _key(self.key_env):
            headers["Authorization"] = f"Bearer {key}"
        request = urllib.request.Request(url, json.dumps(body).encode(), headers)
        opener = urllib.request.build_opener(_NoRedirects)
        with opener.open(request, timeout=self.timeout) as answer:
            value = json.loads(answer.read(_LIMIT))
        try:
            content = value["choices"][0]["message"]["content"]
        except (KeyError, IndexError, TypeError) as error:
            raise ValueError(f"no chat completion: {str(value)[:80]}") from error
        if isinstance(usage := value.get("usage"), dict):
            self.on_usage(usage)
        return content if isinstance(content, str) else ""


def _details(error: urllib.error.HTTPError, key_env: str) -> str:
    """Return what the service says about a bad request; others may repeat the key, so 400 alone."""
    if error.code != 400:
        return ""
    try:
        text = " ".join(error.read(2000).decode(errors="replace").split())
    except (OSError, http.client.HTTPException):
        return ""
    return f": {_without_key(text, key_env)[:300]}" if text else ""


def _key(name: str) -> str:
    return os.environ.get(name, "").strip()


def _without_key(text: str, key_env: str) -> str:
    key = _key(key_env)
    for form in (key, repr(key)[1:-1]):  # http.client tells a header it refuses in quotes
        text = text.replace(form, "***") if form else text
    return text


def _retry_after(error: urllib.error.HTTPError) -> float:
    try:
        return float(error.headers.get("Retry-After") or 0)
    except ValueError:  # a date
        return 0.0


def append(path: pathlib.Path, value: Mapping[str, Any]) -> None:
    """Append a json line to a file; what a killed program left of its last line is cut off."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a+b") as file:
        if file.seek(0, os.SEEK_END):
            file.seek(-1, os.SEEK_END)
            if file.read(1) != b"\n":
                _end_line(file)
        file.write(json.dumps(value).encode() + b"\n")


def _end_line(file: BinaryIO) -> None:
    file.seek(0)
    data = file.read()
    start = data.rfind(b"\n") + 1
    if _is_json(data[start:]):
        file.write(b"\n")
    else:
        file.truncate(start)


def _is_json(data: bytes) -> bool:
    try:
        json.loads(data)
    except ValueError:
        return False
    return True
