"""What `generate`, `ask` and `chat` share: the model, an image and its entities."""

import argparse
import functools
import hashlib
import pathlib
import sys

from PIL import Image

from sgqlm import errors
from sgqlm import model as model_lib
from sgqlm.cli import common, extractor_flags
from sgqlm.data import graphs, images, records
from sgqlm.entities import interfaces, settings
from sgqlm.evals import scenes


def parser(verb: str, description: str | None) -> argparse.ArgumentParser:
    """Return a parser with the shared arguments."""
    made = common.Parser(prog=f"sgqlm {verb}", description=description)
    made.add_argument(
        "--checkpoint", required=True, help="checkpoint, work directory or Hugging Face folder"
    )
    made.add_argument("--base", help="where the base weights lie, if they were moved")
    what = made.add_mutually_exclusive_group()
    what.add_argument("--image", type=pathlib.Path, help="a picture of any common format")
    what.add_argument("--scene", type=int, help="number of a drawn test scene instead of a picture")
    made.add_argument(
        "--entities",
        default="extract",
        metavar="extract|none|STORE",
        help="none: the model sees the picture without them; STORE: a folder of `sgqlm entities "
        "extract` that has the picture; a drawn scene has its own (default extract)",
    )
    made.add_argument("--max-new-tokens", type=int, default=128, help="of one answer or question")
    made.add_argument("--seed", type=int, default=0, help="of random draws")
    extractor_flags.add(made)
    return made


def wants_entities(model: model_lib.VisionLanguageModel, args: argparse.Namespace) -> bool:
    """Return whether the model has a scene graph and the user did not leave it out."""
    return model.config.model.graph.enabled and args.entities != "none"


class Stored:
    """Entities that were found before, by the content of the picture.

    Args:
        folder: the store.
    """

    def __init__(self, folder: str):
        """Open the store."""
        self.store = records.EntityStore(pathlib.Path(folder))
        self._rows = {self.store.image_digest(row): row for row in range(len(self.store))}

    def get(self, data: bytes, where: str) -> graphs.Entities:
        """Return the entities of an image file with this content.

        Raises:
            SgqlmError: there are none.
        """
        row = self._rows.get(hashlib.sha256(data).hexdigest())
        if row is None or self.store.status(row).startswith("error"):
            raise errors.SgqlmError(
                "the entity store lacks the picture" if row is None else self.store.status(row),
                where=f"{self.store.folder}: {where}",
                fix="extract its entities, or leave --entities out: they are then found",
                code=errors.DATA,
            )
        return self.store[row]


Finder = interfaces.EntityExtractor | Stored | None


def make_finder(model: model_lib.VisionLanguageModel, args: argparse.Namespace) -> Finder:
    """Return what gives the entities that the flags name, None where none are wanted."""
    if not wants_entities(model, args):
        return None
    if args.entities != "extract":
        return Stored(args.entities)
    return _loaded(extractor_flags.read(args))


def find_entities(
    finder: Finder, image: Image.Image, data: bytes, where: str
) -> graphs.Entities | None:
    """Return the entities of a picture.

    Args:
        finder: of `make_finder`.
        image: the upright picture.
        data: its file.
        where: its name, for messages.

    Raises:
        SgqlmError: a store does not have it.
    """
    if isinstance(finder, Stored):
        return finder.get(data, where)
    return None if finder is None else finder.extract(image)


def told_entities(args: argparse.Namespace) -> str:
    """Return what says where entities come from: two runs must have it in common."""
    if args.entities == "extract":
        return repr(extractor_flags.read(args))
    return Stored(args.entities).store.manifest_digest


@functools.lru_cache(maxsize=1)
def _loaded(config: settings.ExtractorConfig) -> interfaces.EntityExtractor:
    return settings.make(config)  # a chat opens many pictures


def open_picture(
    model: model_lib.VisionLanguageModel, args: argparse.Namespace
) -> tuple[Image.Image | None, graphs.Entities | None]:
    """Return the image and entities that the arguments name.

    Args:
        model: decides whether entities are needed.
        args: of `parser`.

    Returns:
        The image, None if there is none, and its entities, None without a scene graph.
    """
    if args.scene is not None:
        if args.scene < 0:
            raise errors.SgqlmError("a scene has a number from 0 on", where="--scene")
        case = scenes.make_case(model.config.scenes, "test", args.scene)
        return case.image, case.entities if wants_entities(model, args) else None
    if args.image is None:
        return None, None
    return read_picture(args.image, finder=make_finder(model, args))


def read_picture(
    path: pathlib.Path, *, finder: Finder
) -> tuple[Image.Image, graphs.Entities | None]:
    """Open a picture and find its entities.

    Args:
        path: the file.
        finder: gives the entities; None leaves them out.

    Returns:
        The upright image and its entities.
    """
    if not path.is_file():
        raise errors.SgqlmError(
            "there is no such picture", where=str(path), fix="give an image file", code=errors.DATA
        )
    image = images.open_image(path)
    found = find_entities(finder, image, path.read_bytes(), str(path))
    if found is not None and finder is not None:
        name = finder.store.folder if isinstance(finder, Stored) else finder.name
        print(f"{path}: {len(found)} entities ({name})", file=sys.stderr)
    return image, found


def one_line(text: str) -> str:
    """Return `text` with every run of white space as one space, for lists of one line an entry."""
    return " ".join(text.split())
