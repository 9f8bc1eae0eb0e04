"""What `generate`, `ask` and `chat` share: the model, an image and its entities."""

import argparse
import pathlib
import sys

from PIL import Image

from sgqlm import errors
from sgqlm import model as model_lib
from sgqlm.data import graphs, images
from sgqlm.entities import extract
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
        choices=("regions", "none"),
        default="regions",
        help="how entities are found in the picture; a drawn scene has its own",
    )
    made.add_argument("--max-new-tokens", type=int, default=128, help="of one answer or question")
    made.add_argument("--seed", type=int, default=0, help="of random draws")
    return made


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
    has_graph = model.config.model.graph.enabled and args.entities != "none"
    if args.scene is not None:
        if args.scene < 0:
            raise errors.SgqlmError("a scene has a number from 0 on", where="--scene")
        case = scenes.make_case(model.config.scenes, "test", args.scene)
        return case.image, case.entities if has_graph else None
    if args.image is None:
        return None, None
    return read_picture(args.image, extractor=args.entities if has_graph else None)


def read_picture(
    path: pathlib.Path, *, extractor: str | None
) -> tuple[Image.Image, graphs.Entities | None]:
    """Open a picture and find its entities.

    Args:
        path: the file.
        extractor: name of the extractor; None leaves the entities out.

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
    found = extract.make(extractor).extract(image)
    print(f"{path}: {len(found)} entities ({extractor})", file=sys.stderr)
    return image, found


def one_line(text: str) -> str:
    """Return `text` with every run of white space as one space, for lists of one line an entry."""
    return " ".join(text.split())
