"""What `generate`, `ask` and `chat` share: the model, an image and its entities."""

import argparse
import functools
import pathlib
import sys

from PIL import Image

from sgqlm import errors
from sgqlm import model as model_lib
from sgqlm.cli import extractor_flags
from sgqlm.data import graphs, images
from sgqlm.entities import interfaces, settings
from sgqlm.evals import scenes


def parser(verb: str, description: str | None) -> argparse.ArgumentParser:
    """Return a parser with the shared arguments."""
    made = argparse.ArgumentParser(prog=f"sgqlm {verb}", description=description)
    made.add_argument(
        "--checkpoint", required=True, help="checkpoint, work directory or Hugging Face folder"
    )
    made.add_argument("--base", help="where the base weights lie, if they were moved")
    what = made.add_mutually_exclusive_group()
    what.add_argument("--image", type=pathlib.Path, help="a picture of any common format")
    what.add_argument("--scene", type=int, help="number of a drawn test scene instead of a picture")
    made.add_argument(
        "--entities",
        choices=("extract", "none"),
        default="extract",
        help="none: the model sees the picture without them; a drawn scene has its own",
    )
    made.add_argument("--max-new-tokens", type=int, default=128, help="of one answer or question")
    made.add_argument("--seed", type=int, default=0, help="of random draws")
    extractor_flags.add(made)
    return made


def wants_entities(model: model_lib.VisionLanguageModel, args: argparse.Namespace) -> bool:
    """Return whether the model has a scene graph and the user did not leave it out."""
    return model.config.model.graph.enabled and args.entities != "none"


def make_extractor(
    model: model_lib.VisionLanguageModel, args: argparse.Namespace
) -> interfaces.EntityExtractor | None:
    """Return the extractor that the flags name, None where no entities are wanted."""
    return _loaded(extractor_flags.read(args)) if wants_entities(model, args) else None


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
    return read_picture(args.image, extractor=make_extractor(model, args))


def read_picture(
    path: pathlib.Path, *, extractor: interfaces.EntityExtractor | None
) -> tuple[Image.Image, graphs.Entities | None]:
    """Open a picture and find its entities.

    Args:
        path: the file.
        extractor: finds the entities; None leaves them out.

    Returns:
        The upright image and its entities.
    """
    if not path.is_file():
        raise errors.SgqlmError(
            "there is no such picture", where=str(path), fix="give an image file", code=errors.DATA
        )
    image = images.open_image(path)
    if extractor is None:
        return image, None
    found = extractor.extract(image)
    print(f"{path}: {len(found)} entities ({extractor.name})", file=sys.stderr)
    return image, found


def one_line(text: str) -> str:
    """Return `text` with every run of white space as one space, for lists of one line an entry."""
    return " ".join(text.split())
