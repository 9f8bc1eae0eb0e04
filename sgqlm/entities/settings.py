"""The settings of an entity extractor, the named presets, and how an extractor is made of them."""

import dataclasses
import difflib
import math
from collections.abc import Sequence
from typing import Any

from sgqlm import errors
from sgqlm.data import graphs
from sgqlm.entities import (
    boxes_as_masks,
    composite,
    filters,
    grounding_dino,
    interfaces,
    owlv2,
    ram,
    regions,
    sam,
    sam2,
    sam3,
    tags,
)

PRESETS = ("regions", "paper", "fast", "sam3")
NAMES = (*PRESETS, "custom")
TAGGERS = ("ram_plus", "ram", "fixed", "none")
DETECTORS = ("grounding_dino", "mm_grounding_dino", "owlv2")
SEGMENTERS = ("sam", "sam_hq", "sam2", "box")
DTYPES = ("auto", "float32", "bfloat16", "float16")
_CHOICES = {
    "name": NAMES,
    "tagger": TAGGERS,
    "detector": DETECTORS,
    "segmenter": SEGMENTERS,
    "dtype": DTYPES,
}
_EXAMPLES = {
    "ram_plus": "ram_plus_swin_large_14m.pth",
    "ram": "ram_swin_large_14m.pth",
    "fixed": "TAGS.txt",
    "none": "TAGS.txt",
    "grounding_dino": "IDEA-Research/grounding-dino-base",
    "mm_grounding_dino": "openmmlab-community/mm_grounding_dino_large_all",
    "owlv2": "google/owlv2-base-patch16-ensemble",
    "sam": "facebook/sam-vit-huge",
    "sam_hq": "syscv-community/sam-hq-vit-base",
    "sam2": "facebook/sam2.1-hiera-large",
    "sam3": "facebook/sam3",
}
_SHARES = ("box_threshold", "nms_iou", "mask_iou", "max_area")


def _field(default: Any, text: str) -> Any:
    return dataclasses.field(default=default, metadata={"help": text})


@dataclasses.dataclass(frozen=True)
class ExtractorConfig:
    """Settings of an entity extractor; every field is a flag of `sgqlm entities extract`.

    What a field means is in its metadata, under `help`.

    Raises:
        SgqlmError: a name is unknown, or a number is out of its range.
    """

    name: str = _field("paper", "preset, or custom: " + ", ".join(NAMES))
    tagger: str = _field("ram_plus", "what names the things in an image: " + ", ".join(TAGGERS))
    tagger_weights: str = _field("", "checkpoint of the tagger: file, folder or hub id")
    tags: str = _field("", "file, one tag a line: RAM's tag list, or the fixed vocabulary")
    tag_thresholds: str = _field("", "file, one threshold a line, of RAM's tags")
    tags_exclude: str = _field(
        "", "file, one tag a line, that never become entities; none; empty: scenes of RAM's tags"
    )
    detector: str = _field("grounding_dino", "what finds boxes: " + ", ".join(DETECTORS))
    detector_weights: str = _field("", "the detector: folder or hub id")
    separator: str = _field(". ", "between the tags of a prompt: '. ' (apart) or ', ' (together)")
    box_threshold: float = _field(0.25, "boxes with lower scores are dropped")
    segmenter: str = _field("sam", "what turns boxes into masks: " + ", ".join(SEGMENTERS))
    segmenter_weights: str = _field("", "the segmenter, or SAM3: folder or hub id")
    nms_iou: float = _field(0.5, "boxes that overlap more than this (IoU) are one entity")
    mask_iou: float = _field(0.85, "masks that overlap more than this (IoU) are one entity")
    min_side: float = _field(2.0, "boxes with a shorter side, in pixels, are dropped")
    min_area: int = _field(25, "masks with fewer pixels are dropped")
    max_area: float = _field(0.95, "masks with a larger share of the image are dropped")
    max_entities: int = _field(32, "entities of an image, those with the highest scores")
    largest_component: bool = _field(False, "keep only the largest connected part of a mask")
    fill_holes: bool = _field(False, "fill the holes of a mask")
    device: str = _field("auto", "auto, cpu or cuda")
    dtype: str = _field("auto", "of the large models: auto (bfloat16 on GPUs), " + DTYPES[1])
    views: tuple[str, ...] = _field(
        ("24x24:pad",), "patch grids whose coverage is stored, as 24x24:pad or 16x16:crop@224"
    )

    def __post_init__(self):
        """Refuse names and numbers that mean nothing."""
        for field, known in _CHOICES.items():
            if (value := getattr(self, field)) not in known:
                raise _unknown(field, value, known)
        for field in _SHARES:
            _check(field, getattr(self, field), 0, 1)
        for field in ("min_side", "min_area"):
            _check(field, getattr(self, field), 0, math.inf)
        _check("max_entities", self.max_entities, 1, math.inf)
        if self.separator.strip(" ") not in (".", ","):
            raise _wrong("separator", self.separator, "give '. ' or ', '")
        object.__setattr__(self, "views", tuple(self.views))
        for view in self.views:
            graphs.parse_view(view)


def preset(name: str) -> ExtractorConfig:
    """Return the settings called `name`.

    `paper` is RAM++, Grounding-DINO and SAM; `fast` the same with SAM2 (another small segmenter is
    chosen with `segmenter`); `sam3` finds and segments the tags of RAM++ with SAM3; `regions` needs
    no weights; `custom` is `paper` under a name that promises nothing.

    Raises:
        SgqlmError: there is no such preset.
    """
    if name not in NAMES:
        raise _unknown("extractor", name, NAMES)
    if name == "fast":
        return ExtractorConfig(name, segmenter="sam2")
    # the threshold that its authors use; the scores of Grounding-DINO are lower
    return ExtractorConfig(name, box_threshold=0.5 if name == "sam3" else 0.25)


def make(config: ExtractorConfig) -> interfaces.EntityExtractor:
    """Return the extractor of these settings, with its models loaded.

    Raises:
        SgqlmError: weights or a list of tags are missing or do not fit, or torch is not installed.
    """
    if config.name == "regions":
        kept = regions.RegionsConfig(
            max_entities=config.max_entities,
            max_share=config.max_area,
            max_overlap=config.mask_iou,
        )
        return composite.WithCoverage(regions.RegionsExtractor(kept), config.views)
    is_ram = config.tagger in ("ram_plus", "ram")
    _check_part(config, "tagger_weights" if is_ram else "tags", config.tagger)
    if config.name != "sam3":
        _check_part(config, "detector_weights", config.detector)
    _check_part(config, "segmenter_weights", "sam3" if config.name == "sam3" else config.segmenter)
    _check_torch(config.name)
    tagger, vocabulary = _tagger(config)
    shared: dict[str, Any] = {"vocabulary": vocabulary, "views": config.views, "name": config.name}
    place: dict[str, Any] = {"device": config.device, "dtype": config.dtype}
    if config.name == "sam3":
        threshold = config.box_threshold
        return sam3.Sam3Extractor(
            tagger, config.segmenter_weights, _limits(config), box_threshold=threshold,
            **shared, **place,
        )  # fmt: skip
    detector, segmenter = _detector(config, place), make_segmenter(config)
    return composite.CompositeExtractor(tagger, detector, segmenter, _limits(config), **shared)


def make_segmenter(config: ExtractorConfig) -> interfaces.Segmenter:
    """Return the segmenter of these settings alone, with its model loaded.

    Raises:
        SgqlmError: weights are missing or do not fit, or torch is not installed.
    """
    if config.segmenter == "box":
        return boxes_as_masks.BoxSegmenter()
    _check_part(config, "segmenter_weights", config.segmenter)
    _check_torch(config.segmenter)
    kinds = (sam.SamSegmenter, sam.SamHqSegmenter, sam2.Sam2Segmenter)
    kind = {one.name: one for one in kinds}[config.segmenter]
    return kind(config.segmenter_weights, device=config.device, dtype=config.dtype)


def _check_part(config: ExtractorConfig, field: str, part: str) -> None:
    """Refuse at once what would only be found after other models are loaded."""
    if part != "box" and not getattr(config, field):
        what = "a list of tags" if field == "tags" else "weights"
        fix = f"give {_flag(field)}={_EXAMPLES[part]}"
        raise errors.SgqlmError(f"{part} needs {what}", where=_flag(field), fix=fix)


def _check_torch(name: str) -> None:
    try:
        import torch
        import transformers
    except ImportError as error:
        raise errors.SgqlmError(
            f"{name} needs torch and transformers", why=str(error),
            fix="pip install -e '.[entities]' in the clone, or take regions or "
            "boxes, which need neither",
        ) from error  # fmt: skip
    del torch, transformers


def _limits(config: ExtractorConfig) -> filters.Limits:
    # the user's own vocabulary is asked for as it is: the list of scenes is for RAM's tags
    is_open = config.tagger in ("ram_plus", "ram")
    exclude = is_open or config.tags_exclude
    return filters.Limits(
        nms_iou=config.nms_iou,
        mask_iou=config.mask_iou,
        min_side=config.min_side,
        min_area=config.min_area,
        max_area=config.max_area,
        max_entities=config.max_entities,
        exclude=tags.read_exclude(config.tags_exclude) if exclude else frozenset(),
        largest_component=config.largest_component,
        fill_holes=config.fill_holes,
    )


def _tagger(config: ExtractorConfig) -> tuple[interfaces.Tagger | None, Sequence[str]]:
    if config.tagger == "none":
        return None, tags.read_tags(config.tags)
    if config.tagger == "fixed":
        return tags.FixedVocabulary.load(config.tags), ()
    loaded = ram.RamTagger.load(
        config.tagger_weights, tags=config.tags, thresholds=config.tag_thresholds, exclude=(),
        kind=config.tagger, device=config.device, dtype=config.dtype,
    )  # fmt: skip
    return loaded, ()


def _detector(config: ExtractorConfig, place: dict[str, Any]) -> interfaces.Detector:
    source, threshold = config.detector_weights, config.box_threshold
    if config.detector == "owlv2":
        return owlv2.Owlv2.load(source, box_threshold=threshold, **place)
    both = (grounding_dino.GroundingDino, grounding_dino.MMGroundingDino)
    kind = {one.name: one for one in both}[config.detector]
    return kind.load(source, box_threshold=threshold, separator=config.separator, **place)


def _flag(field: str) -> str:
    return "--extractor" if field == "name" else "--" + field.replace("_", "-")


def _check(field: str, value: float | int, low: float | int, high: float | int) -> None:
    if not low <= value <= high or math.isinf(value):  # not a number is not in any range either
        limit = f"{low} or more" if math.isinf(high) else f"a number from {low} to {high}"
        raise _wrong(field, value, f"give {limit}")


def _wrong(field: str, value: Any, fix: str) -> errors.SgqlmError:
    return errors.SgqlmError(f"{value!r} is no {field}", where=_flag(field), fix=fix)


def _unknown(field: str, value: Any, known: Sequence[str]) -> errors.SgqlmError:
    kind = "extractor" if field == "name" else field
    near = difflib.get_close_matches(str(value), known, 1)
    why = f"did you mean {near[0]}?" if near else ""
    return errors.SgqlmError(
        f"there is no {kind} {value!r}", where=_flag(field), why=why,
        fix="use one of " + ", ".join(known),
    )  # fmt: skip
