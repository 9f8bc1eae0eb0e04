"""A model whose texts are kept in a file, so that a stopped evaluation goes on where it was."""

from collections.abc import Sequence

from sgqlm.decode import ask, inputs, sample
from sgqlm.evals import answers
from sgqlm.train import progress


class Kept:
    """Responds as the model does, and asks it only for what the file does not have yet.

    Texts are found again by the part of the evaluation, the number of the call in it and the
    position of the row: an evaluation makes the same calls in the same order every time.

    Args:
        model: the model.
        out: receives one line a row; None keeps the texts in memory alone.
        name: of the evaluation, for the progress.
    """

    def __init__(self, model: ask.Responder, out: answers.AnswerFile | None = None, name: str = ""):
        """Read what the file has."""
        self._model, self._out, self._name = model, out, name
        self._part, self._calls = "", 0
        lines = answers.read(out.path)[1] if out else []
        self._texts: dict[str, str] = {line["key"]: line["text"] for line in lines}

    def begin(self, part: str) -> None:
        """Open a part of the evaluation."""
        self._part, self._calls = part, 0

    def texts(self, part: str) -> list[str]:
        """Return the texts of the first call of a part."""
        start = f"{part}/0/"
        found = {int(k[len(start) :]): t for k, t in self._texts.items() if k.startswith(start)}
        return [found[at] for at in sorted(found)]

    def respond(
        self,
        rows: Sequence[inputs.Row],
        *,
        max_new_tokens: int,
        sampling: sample.Sampling,
        draws: Sequence[tuple[int, int]] | None = None,
        batch_size: int,
    ) -> list[str]:
        """Return one text a row; see `model.VisionLanguageModel.respond`."""
        keys = [f"{self._part}/{self._calls}/{at}" for at in range(len(rows))]
        self._calls += 1
        draws = draws or [(0, at) for at in range(len(rows))]
        todo = [at for at, key in enumerate(keys) if key not in self._texts]
        todo.sort(key=lambda at: -sum(len(turn["value"]) for turn in rows[at].turns))
        done = len(rows) - len(todo)
        with progress.Progress(f"{self._name} {self._part}", len(rows), done=done) as bar:
            for start in range(0, len(todo), batch_size):
                batch = todo[start : start + batch_size]
                texts = self._model.respond(
                    [rows[at] for at in batch],
                    max_new_tokens=max_new_tokens,
                    sampling=sampling,
                    draws=[draws[at] for at in batch],
                    batch_size=batch_size,
                )
                self._keep([keys[at] for at in batch], texts)
                bar.update(done := done + len(batch))
        return [self._texts[key] for key in keys]

    def _keep(self, keys: Sequence[str], texts: Sequence[str]) -> None:
        if self._out:
            self._out.extend([{"key": k, "text": t} for k, t in zip(keys, texts, strict=True)])
        self._texts.update(zip(keys, texts, strict=True))
