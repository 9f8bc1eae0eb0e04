"""What every entity extractor offers."""

from collections.abc import Mapping
from typing import Any, Protocol, runtime_checkable

from PIL import Image

from sgqlm.data import graphs


@runtime_checkable
class EntityExtractor(Protocol):
    """Find the entities of one image.

    An extractor is deterministic: the same image and settings give the same entities.
    """

    name: str

    def settings(self) -> Mapping[str, Any]:
        """Return all that changes the result (json types); its hash names a finished run."""
        ...

    def extract(self, image: Image.Image) -> graphs.Entities:
        """Return the entities of an upright RGB image, in pixels of that image."""
        ...
