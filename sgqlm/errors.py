"""Errors a user sees: one block that says what, where, why and what to do."""

OK = 0
USAGE = 2
DATA = 3
CHECKPOINT = 4
NON_FINITE = 5
RESOURCES = 6
PREEMPTED = 75
INTERRUPTED = 130


class SgqlmError(Exception):
    """An error with a remedy.

    Args:
        what: what went wrong, one sentence.
        where: the file, record, flag or parameter concerned; empty when there is none.
        why: the reason, where the message does not already give it.
        fix: what the user can do about it.
        code: the exit code of the process (`USAGE`, `DATA`, `CHECKPOINT`, ...).
    """

    def __init__(
        self, what: str, *, where: str = "", why: str = "", fix: str = "", code: int = USAGE
    ):
        super().__init__(what)
        self.what, self.where, self.why, self.fix, self.code = what, where, why, fix, code

    def __str__(self) -> str:
        """Return the block: the sentence, then one indented line per known part."""
        lines = [self.what]
        for name in ("where", "why", "fix"):
            if value := getattr(self, name):
                lines.append(f"  {name}: {value}")
        return "\n".join(lines)

    @property
    def line(self) -> str:
        """The block in one line. Example: `no such file (a.json): it was moved; give its path`."""
        what = f"{self.what} ({self.where})" if self.where else self.what
        more = "; ".join(part for part in (self.why, self.fix) if part)
        return " ".join((f"{what}: {more}" if more else what).split())

    def __reduce__(self):
        """Pickle by value, so an error raised in a data worker arrives whole."""
        return _rebuild, (self.what, self.where, self.why, self.fix, self.code)


def _rebuild(what, where, why, fix, code):
    return SgqlmError(what, where=where, why=why, fix=fix, code=code)
