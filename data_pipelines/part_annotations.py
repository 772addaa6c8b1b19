"""Objects and their parts in COCO files: PACO-LVIS, PASCAL-Part and PartImageNet (D 2, D 4.2)."""

import collections
import dataclasses
import functools
import types
from collections.abc import Callable
from pathlib import Path

from data_pipelines import category_names
from data_pipelines.coco_source import CocoSource
from data_pipelines.folders import identity, image_size, inside, present, read_coco
from data_pipelines.left_out import LeftOut
from data_pipelines.masks import decode_rle, encode_rle
from data_pipelines.naming import ask_for, check_per_image, is_reserved, normalise
from data_pipelines.partonomy.cleaning import PART_NAMES
from data_pipelines.record import Sample
from data_pipelines.templates.semantic import ANSWERS, QUESTIONS
from plum_jax.errors import UserError


def paco_label(category):
    """`trash_can:lid` -> ("trash can", "lid"), `bow_(weapon):string` -> ("bow", "string"), `dog_(animal)` -> ("dog", None)."""
    return _label(category_names.paco_lvis(category))


def pascal_label(category):
    """`aeroplane:wing` -> ("aeroplane", "wing"); there are no whole objects."""
    return _label(category_names.pascal_part(category), least=2)


def partimagenet_label(category):
    """Supercategory `Car`, name `Car Tier` -> ("car", "tire"), as the release misspells it; `Car` alone -> ("car", None)."""
    return _label(category_names.partimagenet(category), PART_NAMES["partimagenet"])


def _label(pieces, other_names=types.MappingProxyType({}), *, least=1):
    """[object] or [object, part] -> (object, part or None) as templates have them; None where one is missing or reserved."""
    names = [normalise(piece.replace("_", " ")) for piece in pieces]
    if not least <= len(names) <= 2 or not all(name and not is_reserved(name) for name in names):
        return None
    whole, part = (*names, None)[:2]
    return whole, other_names.get(part, part)


@dataclasses.dataclass(frozen=True)
class Layout:
    """Where a data set keeps its files, and what its categories mean."""

    annotations: str  # with {split}
    images: str  # with {split}; where that is missing, that of the split without `_whole`
    splits: tuple[str, ...]
    label: Callable  # entry of "categories" -> (object, part or None), or None
    page: str  # of docs/data


LAYOUTS = {
    "paco_lvis": Layout(
        "vlpart/paco/annotations/paco_lvis_v1_{split}.json", "coco", ("train", "val", "test"), paco_label, "paco_lvis.md"
    ),
    "pascal_part": Layout(
        "vlpart/pascal_part/{split}.json",
        "vlpart/pascal_part/VOCdevkit/VOC2010/JPEGImages",
        ("train", "val"),
        pascal_label,
        "pascal_part.md",
    ),
    "partimagenet": Layout(
        "partimagenet/PartImageNet/annotations/{split}/{split}.json",
        "partimagenet/PartImageNet/images/{split}",
        ("train", "train_whole", "val", "val_whole", "test", "test_whole"),
        partimagenet_label,
        "partimagenet.md",
    ),
}


class PartAnnotationSource(CocoSource):
    """One sample per image: up to `per_image` of its labels, one conversation for each, whose mask is the union of all
    annotations of that label in the image (D22). A part is called "cat eye" or "eye of the cat".

    Args:
      root: folder of all data sets, as in docs/data.
      dataset: of `LAYOUTS`, which also lists the splits.
      per_image: most labels of one sample.
      images: folder of the images where it is not that of the layout.

    `listed` is the number of images in the annotation file; `skipped` and `faults` say what was left out: annotations, and
    images that are missing or have no annotation left. Raises UserError for a missing or malformed file.
    """

    family, grounded = "semantic", True

    def __init__(self, root, *, dataset, split="train", per_image=3, images=None):
        if dataset not in LAYOUTS:
            raise UserError(f"data set {dataset!r} has no part annotations that are known; use {', '.join(LAYOUTS)}")
        layout = LAYOUTS[dataset]
        if split not in layout.splits:
            raise UserError(f"{dataset} has no split {split!r}; use {', '.join(layout.splits)}")
        advice = f"{dataset} is laid out as in docs/data/{layout.page}"
        path = Path(root) / layout.annotations.format(split=split)
        folders = [Path(root) / layout.images.format(split=name) for name in (split, split.removesuffix("_whole"))]
        folder = Path(images or next((folder for folder in folders if folder.is_dir()), folders[-1]))
        super().__init__(dataset, path, folder, per_image)
        self.index_files = (path,)
        content = read_coco(self.path, advice)
        self.listed = len(content["images"])
        labels = _read_labels(content, layout.label)
        self.labels = sorted(set(labels.values()), key=lambda label: (label[0], label[1] or ""))
        left_out = LeftOut()
        self._records = self._read(content, labels, advice, left_out)
        if not self._records:
            raise UserError(f"{self.path}: has no image in {self._images} with an annotation (left out: {left_out}); {advice}")
        self.skipped, self.faults = left_out.counts, left_out.faults

    def _read(self, content, labels, advice, left_out):
        """-> [(file name, (H, W), {label number: [segmentation numbers]})] by file name."""
        names = [entry["file_name"] for entry in content["images"] if inside(entry.get("file_name"))]
        found = present(self._images, names, advice)
        images = {}
        for place, entry in enumerate(content["images"]):
            name, hw, number = entry.get("file_name"), image_size(entry), identity(entry, "id")
            if not inside(name) or hw is None or number is None:
                reason = "image entry without an id, a file name or a size"
                left_out.add(f"images[{place}]", reason, f"{self.path}: images[{place}]: {reason}")
            elif name not in found:
                left_out.add(name, "image file missing", f"{self._images / name}: no such image")
            else:
                images[number] = (name, hw, collections.defaultdict(list))
        place = {label: i for i, label in enumerate(self.labels)}
        for annotation in content["annotations"]:
            image = images.get(identity(annotation, "image_id"))
            if image is None:  # of an image that is counted
                continue
            reason = self._add(annotation, *image[1:], place.get(labels.get(identity(annotation, "category_id"))))
            if reason:
                which = f"annotation {identity(annotation, 'id')}"
                left_out.add(f"{image[0]}: {which}", reason, f"{self.path}: {which} of {image[0]}: {reason}")
        for name, _, numbers in images.values():
            if not numbers:
                reason = "image without an annotation"
                left_out.add(name, reason, f"{self.path}: {name}: {reason} to ask for")
        kept = [(name, hw, dict(numbers)) for name, hw, numbers in images.values() if numbers]
        return sorted(kept, key=lambda record: record[0])

    def _add(self, annotation, hw, numbers, label):
        """-> why the annotation is left out, None where it is kept."""
        if annotation.get("iscrowd"):
            return "crowd annotation"
        if label is None:
            return "annotation without a known label"
        try:
            numbers[label].append(self._segmentations.add(annotation.get("segmentation"), hw))
        except ValueError:
            return "annotation without a usable mask"
        return None

    def record(self, index):
        """-> {"key", "image", "dataset", "file", "labels": [[object, part or None, run lengths], ...]}."""
        name, hw, annotations = self._records[index]
        labels = [[*self.labels[k], encode_rle(self._mask(annotations[k], hw, name))] for k in sorted(annotations)]
        return {**self._about(name, self.path.name), "labels": labels}

    def sample(self, index, rng):
        """The same as `drawing` gives for the record; only the masks that were drawn are made.

        Raises UserError where no mask of the image can be read or has a pixel.
        """
        name, hw, annotations = self._records[index]
        numbers = sorted(annotations)
        labels, mask_of = [self.labels[k] for k in numbers], lambda i: self._mask(annotations[numbers[i]], hw, name)
        return _sample(self._about(name, self.path), labels, mask_of, self.per_image, rng)

    @classmethod
    def drawing(cls, *, per_image=3):
        """What makes a Sample from a record: (record, rng) -> up to `per_image` of its labels."""
        return functools.partial(_draw, per_image=check_per_image(per_image))


def _draw(record, rng, *, per_image):
    masks = [mask for _, _, mask in record["labels"]]
    labels = [(whole, part) for whole, part, _ in record["labels"]]
    return _sample(record, labels, lambda i: decode_rle(masks[i]["counts"], masks[i]["size"]), per_image, rng)


def _sample(about, labels, mask_of, per_image, rng):
    """`labels` [(object, part or None)], sorted; mask_of(number among them) -> uint8[H, W]."""
    dialogues, masks, asked = [], [], set()
    for i in rng.permutation(len(labels)).tolist():
        mask = mask_of(i)
        said = call(labels[i], rng)
        if mask.any() and said not in asked:  # a ring may be too thin for a pixel
            asked.add(said)
            dialogues.append(ask_for(said, len(masks), QUESTIONS, ANSWERS, rng))
            masks.append(mask)
        if len(masks) == per_image:
            break
    if not masks:
        raise UserError(f"{about['file']}: no annotation of {about['key']} covers a pixel; remove them")
    family = PartAnnotationSource.family
    return Sample(family, about["dataset"], about["key"], about["image"], tuple(dialogues), tuple(masks))


def _read_labels(content, rule):
    """{category id: (object, part or None)} of the categories that the rule of the data set understands."""
    labels = {}
    for category in content["categories"]:
        if all(isinstance(category.get(field, ""), str) for field in ("name", "supercategory")) and "name" in category:
            number, label = identity(category, "id"), rule({"supercategory": "", **category})
            if number is not None and label is not None:
                labels[number] = label
    return labels


def call(label, rng):
    """A name for (object, part or None): "cat", and for parts "cat eye" or "eye of the cat" with equal chance."""
    whole, part = label
    if part is None:
        return whole
    return f"{whole} {part}" if rng.random() < 0.5 else f"{part} of the {whole}"


SOURCES = {name: functools.partial(PartAnnotationSource, dataset=name) for name in LAYOUTS}
