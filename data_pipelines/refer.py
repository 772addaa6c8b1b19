"""Referring segmentation: refCOCO, refCOCO+, refCOCOg, refCLEF and gRefCOCO (D 4.3)."""

import collections
import dataclasses
import functools
from pathlib import Path

from data_pipelines.coco_segmentation import Segmentations
from data_pipelines.folders import identity, image_size, inside, present, read_coco
from data_pipelines.masks import decode_rle, encode_rle
from data_pipelines.naming import ask_for, check_per_image, fill, is_reserved, normalise
from data_pipelines.record import Dialogue, Sample
from data_pipelines.refs_file import read_refs
from data_pipelines.templates.refer import ANSWERS, NO_TARGET_ANSWERS, QUESTIONS
from plum_jax.errors import UserError

COCO_IMAGES, CLEF_IMAGES = "images/mscoco/images/train2014", "images/saiapr_tc-12"


@dataclasses.dataclass(frozen=True)
class Layout:
    """Of refer_seg/<data set>: `refs(split_by)` names the file of expressions, `images` their folder in refer_seg."""

    refs: str = "refs"
    split_by: str = "unc"
    images: str = COCO_IMAGES
    page: str = "refcoco.md"  # of docs/data


LAYOUTS = {
    "refcoco": Layout(),
    "refcoco+": Layout(),
    "refcocog": Layout(split_by="umd"),
    "refclef": Layout(images=CLEF_IMAGES, page="refclef.md"),
    "grefcoco": Layout(refs="grefs", page="grefcoco.md"),
}
SPLITS = ("train", "val", "test", "testA", "testB", "testC")


class ReferSource:
    """One sample per image: up to `per_image` of its phrases, one conversation for each.

    A phrase owns the union of the annotations that it means, as ones and zeros (D23); where nothing in the image fits it
    (gRefCOCO) the answer says so and has no span. A phrase that means different things in one image is left out.

    Args:
      root: folder of all data sets, as in docs/data.
      dataset: of `LAYOUTS`. split: of `SPLITS`; "test" is all test splits together.
      per_image: most phrases of one sample.
      split_by: whose division into splits, where it is not the usual one ("unc", for refCOCOg "umd").
      every_sentence: for evaluation: every sentence of every expression, in the order of the file, also those that stand twice
        or mean different things in one image.

    `listed` is the number of images that have phrases of the split; `skipped` says what was left out, by reason. Raises
    UserError for missing or malformed files, a pickle that calls something, and a split without phrases.
    """

    family, grounded = "refer", True

    def __init__(self, root, *, dataset, split="train", per_image=3, split_by=None, every_sentence=False):
        if dataset not in LAYOUTS:
            raise UserError(f"data set {dataset!r} has no referring expressions that are known; use {', '.join(LAYOUTS)}")
        if split not in SPLITS:
            raise UserError(f"{dataset} has no split {split!r}; use {', '.join(SPLITS)}")
        layout, folder = LAYOUTS[dataset], Path(root) / "refer_seg"
        advice = f"{dataset} is laid out as in docs/data/{layout.page}"
        self.dataset, self.per_image, self.skipped = dataset, check_per_image(per_image), collections.Counter()
        self.path, self._images = folder / dataset / "instances.json", folder / layout.images
        name = f"{layout.refs}({split_by or layout.split_by})"
        refs = read_refs(folder / dataset, name, advice)
        pickled = folder / dataset / f"{name}.p"  # reading it may put a .json beside it
        self.index_files = (self.path, pickled if pickled.is_file() else pickled.with_suffix(".json"))
        wanted = collections.defaultdict(list)
        for ref in refs:
            if in_split(ref.split, split):
                wanted[ref.image_id].append(ref)
        if not wanted:
            known = ", ".join(sorted({ref.split for ref in refs})) or "none at all"
            raise UserError(f"{folder / dataset}: has no expression of split {split!r}; it has {known}")
        self.listed, self._every_sentence = len(wanted), every_sentence
        self._segmentations = Segmentations()
        self._records = self._read(read_coco(self.path, advice), wanted, advice)
        if not self._records:
            why = ", ".join(f"{count} x {reason}" for reason, count in self.skipped.items())
            raise UserError(f"{self.path}: has no image in {self._images} with a phrase of split {split!r} ({why}); {advice}")

    def _read(self, content, wanted, advice):
        """-> [(file name, (H, W), [(phrase, segmentation numbers)])] by file name."""
        entries = [entry for entry in content["images"] if identity(entry, "id") in wanted]
        found = present(self._images, [e["file_name"] for e in entries if inside(e.get("file_name"))], advice)
        images = {}
        for entry in entries:
            name, hw = entry.get("file_name"), image_size(entry)
            if not inside(name) or hw is None:
                self.skipped["image entry without a file name or a size"] += 1
            elif name not in found:
                self.skipped["image file missing"] += 1
            else:
                images[entry["id"]] = (name, hw)
        unknown = wanted.keys() - {entry["id"] for entry in entries}
        self.skipped.update({"image of a phrase not in instances.json": len(unknown)})
        targets = self._read_targets(content["annotations"], wanted, images)
        records = []
        for number, (name, hw) in images.items():
            phrases = self._phrases(wanted[number], targets)
            if phrases:
                records.append((name, hw, phrases))
            else:
                self.skipped["image without a phrase"] += 1
        self.skipped = +self.skipped
        return sorted(records, key=lambda record: record[0])

    def _read_targets(self, annotations, wanted, images):
        """{(image id, annotation id): number of its segmentation} of what the phrases of these images mean."""
        meant = {(i, target) for i in images for ref in wanted[i] for target in ref.annotation_ids}
        targets = {}
        for annotation in annotations:
            key = identity(annotation, "image_id"), identity(annotation, "id")
            if key in meant:
                try:
                    targets[key] = self._segmentations.add(annotation.get("segmentation"), images[key[0]][1])
                except ValueError:
                    self.skipped["annotation without a usable mask"] += 1
        return targets

    def _phrases(self, refs, targets):
        """Refs of one image -> [(phrase, segmentation numbers)] in order, each phrase once."""
        meanings, asked = {}, []
        for ref in refs:
            keys = [(ref.image_id, target) for target in ref.annotation_ids]
            if not all(key in targets for key in keys):
                self.skipped["expression whose target has no mask"] += 1
                continue
            numbers = tuple(sorted({targets[key] for key in keys}))
            for phrase in map(plain_phrase, ref.sentences):
                if not phrase or is_reserved(phrase):
                    self.skipped["phrase that is empty or holds a reserved word"] += 1
                else:
                    meanings.setdefault(phrase, set()).add(numbers)
                    asked.append((phrase, numbers))
        if self._every_sentence:
            return asked
        self.skipped["phrase with several meanings in one image"] += sum(len(found) > 1 for found in meanings.values())
        return [(phrase, min(found)) for phrase, found in meanings.items() if len(found) == 1]

    def __len__(self):
        return len(self._records)

    def _about(self, name, file):
        return {"key": name, "image": str(self._images / name), "dataset": self.dataset, "file": str(file)}

    def record(self, index):
        """-> {"key", "image", "dataset", "file", "phrases": [[phrase, number of its mask or None]], "masks": [run lengths]}."""
        name, hw, phrases = self._records[index]
        slots = {}
        for _, numbers in phrases:
            if numbers:
                slots.setdefault(numbers, len(slots))
        masks = [encode_rle(self._mask(numbers, hw, name)) for numbers in slots]
        return {
            **self._about(name, self.path.name),
            "phrases": [[phrase, slots.get(numbers)] for phrase, numbers in phrases],
            "masks": masks,
        }

    def sample(self, index, rng):
        """The same as `drawing` gives for the record; only the masks that were drawn are made.

        Raises UserError where no phrase of the image has a mask that can be read.
        """
        name, hw, phrases = self._records[index]
        return _sample(
            self._about(name, self.path), phrases, lambda numbers: self._mask(numbers, hw, name), self.per_image, rng
        )

    @classmethod
    def drawing(cls, *, per_image=3):
        """What makes a Sample from a record: (record, rng) -> up to `per_image` of its phrases."""
        return functools.partial(_draw, per_image=check_per_image(per_image))

    def _mask(self, numbers, hw, name):
        try:
            return self._segmentations.mask(numbers, hw)
        except ValueError as error:
            raise UserError(f"{self.path}: an annotation of {name}: {error}; download the file again") from error


def _draw(record, rng, *, per_image):
    masks = record["masks"]
    phrases = [(phrase, () if number is None else (number,)) for phrase, number in record["phrases"]]
    return _sample(
        record, phrases, lambda numbers: decode_rle(masks[numbers[0]]["counts"], masks[numbers[0]]["size"]), per_image, rng
    )


def _sample(about, phrases, mask_of, per_image, rng):
    """`phrases` [(phrase, key of its mask, empty where nothing is meant)]; mask_of(key) -> uint8[H, W]."""
    dialogues, masks, slots = [], [], {}
    for i in rng.permutation(len(phrases)).tolist():
        phrase, key = phrases[i]
        if key and key not in slots:
            mask = mask_of(key)
            if not mask.any():  # a ring too thin for a pixel: its phrase would be about nothing that can be seen
                continue
            slots[key] = len(masks)
            masks.append(mask)
        dialogues.append(ask_for(phrase, slots[key], QUESTIONS, ANSWERS, rng) if key else refuse(phrase, rng))
        if len(dialogues) == per_image:
            break
    if not dialogues:
        raise UserError(f"{about['file']}: no phrase of {about['key']} means an annotation that covers a pixel; remove them")
    return Sample(ReferSource.family, about["dataset"], about["key"], about["image"], tuple(dialogues), tuple(masks))


def in_split(ref_split, split):
    """Whether an expression of split `ref_split` belongs to `split`: testAB of refCLEF is in testA, in testB and in test."""
    if split in ("train", "val"):
        return ref_split == split
    return "test" in ref_split and (split == "test" or split[-1] in ref_split)


def plain_phrase(sentence):
    """A sentence as it stands in question and answer: the form of names, without the full stop that the text brings itself."""
    return normalise(sentence).rstrip(" .")


def refuse(phrase, rng):
    """A question about something that is not in the image, and an answer that says so without a span. -> Dialogue."""
    question, _ = fill(QUESTIONS[rng.integers(len(QUESTIONS))], phrase)
    return Dialogue(((question, NO_TARGET_ANSWERS[rng.integers(len(NO_TARGET_ANSWERS))]),))


SOURCES = {name: functools.partial(ReferSource, dataset=name) for name in LAYOUTS}
