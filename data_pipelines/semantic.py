"""Images with a label map: ADE20K, COCO-Stuff and Mapillary Vistas v2.0 (D 4.2)."""

import collections
import dataclasses
import functools
from pathlib import Path

import numpy as np
from PIL import Image

from data_pipelines.class_names import ADE20K, COCO_STUFF
from data_pipelines.folders import check_regular, read_json, stems
from data_pipelines.images import BROKEN
from data_pipelines.masks import encode_rle
from data_pipelines.naming import ask_for, check_per_image, is_reserved, normalise
from data_pipelines.record import Sample
from data_pipelines.templates.semantic import ANSWERS, QUESTIONS
from plum_jax.errors import UserError

IGNORED = 255  # the pixel value of what nobody labelled, in every data set
MAPILLARY_CONFIG = "mapillary/config_v2.0.json"
MODES = ("L", "P", "I", "I;16")  # images whose pixel values are labels; a palette only colours them


@dataclasses.dataclass(frozen=True)
class Layout:
    """Where a data set keeps the images and label maps of a split: {split: (folder of images, folder of label maps)}."""

    splits: dict[str, tuple[str, str]]
    page: str  # of docs/data


LAYOUTS = {
    "ade20k": Layout(
        {
            "train": ("ade20k/images/training", "ade20k/annotations/training"),
            "val": ("ade20k/images/validation", "ade20k/annotations/validation"),
        },
        "ade20k.md",
    ),
    "cocostuff": Layout(
        {"train": ("coco/train2017", "cocostuff/train2017"), "val": ("coco/val2017", "cocostuff/val2017")}, "cocostuff.md"
    ),
    "mapillary": Layout(
        {
            "train": ("mapillary/training/images", "mapillary/training/v2.0/labels"),
            "val": ("mapillary/validation/images", "mapillary/validation/v2.0/labels"),
        },
        "mapillary.md",
    ),
}


class LabelMapSource:
    """One sample per image: up to `per_image` of its classes, one conversation for each.

    Args:
      root: folder of all data sets, as in docs/data.
      dataset: of `LAYOUTS`. split: "train" or "val".
      per_image: most classes of one sample.
      ask_void: Mapillary's void classes are asked for as well ("unlabeled", ...), which the reference does.

    `listed` is the number of label maps in the folder, `skipped` says why some of them are no samples. Raises UserError for a
    missing folder, or one without an image.
    """

    family, grounded = "semantic", True

    def __init__(self, root, *, dataset, split="train", per_image=3, ask_void=False):
        if dataset not in LAYOUTS:
            raise UserError(f"data set {dataset!r} has no label maps that are known; use {', '.join(LAYOUTS)}")
        layout = LAYOUTS[dataset]
        if split not in layout.splits:
            raise UserError(f"{dataset} has no split {split!r}; use {' or '.join(layout.splits)}")
        advice = f"{dataset} is laid out as in docs/data/{layout.page}"
        self.dataset, self.per_image, self.skipped = dataset, check_per_image(per_image), collections.Counter()
        self._images, self._labels = (Path(root) / folder for folder in layout.splits[split])
        images, labels = stems(self._images, (".jpg",), advice), stems(self._labels, (".png",), advice)
        self.listed = len(labels)
        self.skipped.update({"image without a label map": len(images.keys() - labels.keys())})
        self.skipped.update({"image file missing": len(labels.keys() - images.keys())})
        self.skipped = +self.skipped  # reasons that occur
        self._records = [(images[stem], labels[stem]) for stem in sorted(images.keys() & labels.keys())]
        if not self._records:
            raise UserError(f"{self._images}: holds no .jpg with a .png of its name in {self._labels}; {advice}")
        self.names = pixel_names(root, dataset, ask_void)
        self.index_files = (Path(root) / MAPILLARY_CONFIG,) if dataset == "mapillary" else ()

    def __len__(self):
        return len(self._records)

    def _classes(self, index):
        """-> (what a record says beside its masks, label map, {name: [pixel values]})."""
        image, label = self._records[index]
        path = self._labels / label
        labels = read_label_map(path)
        classes = _classes(np.flatnonzero(np.bincount(labels.reshape(-1))), self.names, path)
        return {"key": image, "image": str(self._images / image), "dataset": self.dataset}, labels, classes

    def record(self, index):
        """-> {"key", "image", "dataset", "classes": [[name, run lengths], ...] by name}."""
        about, labels, classes = self._classes(index)
        return {**about, "classes": [[name, encode_rle(np.isin(labels, values))] for name, values in classes.items()]}

    def ignored(self, index):
        """Run lengths of the pixels that nobody labelled or whose class is not asked for, which an evaluation leaves out."""
        labels = read_label_map(self._labels / self._records[index][1])
        unnamed = [value for value, name in enumerate(self.names) if name is None]
        ignored = np.isin(labels, [IGNORED, *unnamed])
        return encode_rle(ignored) if ignored.any() else None

    def sample(self, index, rng):
        """The same as `drawing` gives for the record; only the masks that were drawn are made.

        Raises UserError for a label map that is unreadable or has nothing to ask for.
        """
        about, labels, classes = self._classes(index)
        mask_of = lambda name: np.isin(labels, classes[name]).astype(np.uint8)  # noqa: E731
        return _sample(about, list(classes), mask_of, self.per_image, rng)

    @classmethod
    def drawing(cls, *, per_image=3):
        """What makes a Sample from a record: (record, rng) -> up to `per_image` of its classes."""
        return functools.partial(_draw, per_image=check_per_image(per_image))


def _draw(record, rng, *, per_image):
    masks = dict(record["classes"])
    return _sample(record, list(masks), masks.__getitem__, per_image, rng)


def _sample(about, names, mask_of, per_image, rng):
    if len(names) > per_image:
        names = [names[i] for i in rng.choice(len(names), per_image, replace=False)]
    dialogues = tuple(ask_for(name, i, QUESTIONS, ANSWERS, rng) for i, name in enumerate(names))
    masks = tuple(map(mask_of, names))
    return Sample(LabelMapSource.family, about["dataset"], about["key"], about["image"], dialogues, masks)


def pixel_names(root, dataset, ask_void=False):
    """Class names by pixel value, normalised; None for values that are not asked for."""
    if dataset == "ade20k":
        return (None, *ADE20K)  # 0: no label
    if dataset == "cocostuff":  # "wall-brick", "plant-other": not what anybody calls a thing
        return tuple(None if "-" in name else name for name in COCO_STUFF)
    path = Path(root) / MAPILLARY_CONFIG
    config = read_json(path, "it is in the root of the release of Mapillary Vistas v2.0 (docs/data/mapillary.md)")
    labels = config.get("labels") if isinstance(config, dict) else None
    if not isinstance(labels, list) or not labels or len(labels) > IGNORED:
        raise UserError(f"{path}: has no list of labels; take the file of the release v2.0")
    return tuple(_mapillary_name(label, number, path, ask_void) for number, label in enumerate(labels))


def _mapillary_name(label, number, path, ask_void):
    name = label.get("readable") if isinstance(label, dict) else None
    if not isinstance(name, str) or not normalise(name) or is_reserved(name):
        raise UserError(f"{path}: label {number} has no readable name; take the file of the release v2.0")
    void = label.get("evaluate") is False or normalise(name) == "unlabeled"
    return None if void and not ask_void else normalise(name)


def read_label_map(path):
    """uint8 or uint16[H, W] pixel values. UserError for a file that is missing, broken, or a picture in colours."""
    try:
        check_regular(path)
        with Image.open(path) as image:
            if image.mode not in MODES:
                raise UserError(
                    f"{path}: is an image of mode {image.mode}, label maps have one channel; take that of the release"
                )
            labels = np.asarray(image)
    except FileNotFoundError as error:
        raise UserError(f"{path}: no such label map; put it back") from error
    except (*BROKEN, Image.DecompressionBombError) as error:
        raise UserError(f"{path}: not a readable label map ({error}); replace or remove it") from error
    if labels.min() < 0 or labels.max() > 65535:
        raise UserError(f"{path}: holds pixel values from {labels.min()} to {labels.max()}, which are no labels; replace it")
    return labels


def _classes(values, names, path):
    """Pixel values of an image -> {name: [values]} of what can be asked for, sorted; values of one name are united (D22)."""
    classes = collections.defaultdict(list)
    for value in values.tolist():
        if value == IGNORED:
            continue
        if value >= len(names):
            raise UserError(f"{path}: pixel value {value} has no class, the last one is {len(names) - 1}; replace the file")
        if names[value] is not None:
            classes[names[value]].append(value)
    if not classes:
        raise UserError(f"{path}: has no class to ask for; remove it with its image")
    return dict(sorted(classes.items()))


SOURCES = {name: functools.partial(LabelMapSource, dataset=name) for name in LAYOUTS}
