"""A model of another program, opened: settings and leaves that are read one at a time."""

import contextlib
import dataclasses
import pathlib
import types as python_types
from collections.abc import Mapping
from typing import Any

from flax import traverse_util

from sgqlm import config as config_lib
from sgqlm import types
from sgqlm.convert import leaves as leaves_lib


@dataclasses.dataclass
class Source:
    """What an importer hands over. Use it in a `with`: files stay open until its end.

    Attributes:
        config: the model.
        text: how it reads text.
        leaves: every parameter, by path.
        carried: tensors that take no part in the model and are kept for an equal export, by name.
        tokenizer: the SentencePiece model; empty if there is none.
        about: facts of the source that an export gives back, such as the id of `<image>`.
        notes: what the user should know.
        folders: where its parts were found, by name; never stored.
    """

    config: config_lib.ModelConfig
    text: config_lib.TextConfig
    leaves: dict[str, leaves_lib.Leaf]
    carried: dict[str, leaves_lib.Leaf] = dataclasses.field(default_factory=dict)
    tokenizer: bytes = b""
    about: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    notes: list[str] = dataclasses.field(default_factory=list)
    folders: Mapping[str, pathlib.Path] = dataclasses.field(default_factory=dict)
    files: contextlib.ExitStack = dataclasses.field(default_factory=contextlib.ExitStack)

    def __enter__(self) -> "Source":
        """Return itself."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: python_types.TracebackType | None,
    ) -> None:
        """Close the files."""
        self.files.close()

    def params(self) -> types.Params:
        """Read everything."""
        loaded = {path: leaf.load() for path, leaf in self.leaves.items()}
        return traverse_util.unflatten_dict(loaded, sep="/")
