"""`PartonomySource`: the images of a PARTONOMY folder with their questions, as rows of a `Batch` (D 4.6)."""

import collections
import dataclasses
import functools
import json
from pathlib import Path

import numpy as np

from data_pipelines.images import boxed, clip_view, load_image, sam_view
from data_pipelines.masks import part_masks, patch_parts
from data_pipelines.partonomy.records import Question, question_file, read_questions, training_conversation
from data_pipelines.rows import GROUNDED_FIELDS, assign_slots, fit, pair_spans, stack
from data_pipelines.string_search import TextSwitches, encode_owned
from plum_jax.errors import UserError
from plum_jax.switches import switch


@dataclasses.dataclass(frozen=True)
class Record:
    """One image with one box drawn, or none. `instances[i]` numbers the segmentations object of questions[i] among the distinct
    ones of the record."""

    index: int
    image_path: str
    highlight_box: tuple[int, ...] | None
    questions: tuple[Question, ...]
    instances: tuple[int, ...]
    probabilities: np.ndarray  # float64[questions], of being drawn


class PartonomySource:
    """Random access to the images of one split; an item is a `Record`, `example` draws questions and builds the row.

    `parts` is the sorted part vocabulary of the folder. `dropped` counts what the configured sizes have no room for.
    With config.data.cache everything decoded or tokenised is kept in memory: views as uint8, masks bit-packed. Raises
    UserError for a bad folder before any image is read.
    """

    def __init__(self, folder, split, config, tokenizer):
        self.folder, self.config, self.tokenizer = Path(folder), config, tokenizer
        self.pairing, self.mismatch = (switch(config.data, f"data.{x}") for x in ("span_pairing", "resize_mismatched_masks"))
        self.switches = TextSwitches.of(config.data)
        self.path = question_file(folder, split)
        self.records = _group(read_questions(self.path), dict(config.data.question_weights))
        if not self.records:
            raise UserError(f"{self.path}: no question has a positive config.data.question_weights; raise one")
        self.parts = read_parts(folder, self.records)
        self._part_ids = {part: number for number, part in enumerate(self.parts, 1)}
        self._cache = {}
        self._drops = {}
        self._check()

    def __len__(self):
        return len(self.records)

    def __getitem__(self, index):
        return self.records[index]

    @property
    def dropped(self):
        """Counter over the distinct questions that this process has encoded so far: spans lost to "max_tokens", "max_spans",
        "max_masks" and "string_search", and "tokens" cut off the ends."""
        return sum(list(self._drops.values()), collections.Counter())

    def choose(self, record, rng):
        """-> (record, question numbers): config.data.conversations different ones, by weight; fewer where there are fewer."""
        count = min(self.config.data.conversations, int((record.probabilities > 0).sum()))
        return record, tuple(rng.choice(len(record.questions), count, replace=False, p=record.probabilities).tolist())

    def example(self, record, rng):
        """One row of a `Batch` as a dictionary of its fields, with SAM view and masks."""
        return self.row(*self.choose(record, rng), grounded=True)

    def row(self, record, chosen, *, grounded):
        """The `Batch` fields of an image and its chosen questions; SAM view and masks are None where not `grounded`."""
        data = self.config.data
        texts = [self._once(("text", record.index, i), self._text, record, i) for i in chosen]
        texts, slots, lost = assign_slots(texts, data.max_masks)
        for i, number in zip(chosen, lost, strict=True):
            if number:
                self._drops["masks", record.index, i] = collections.Counter(max_masks=number)
        row = stack([encoded for encoded, _ in texts], data)
        row["sample_id"] = np.int64(record.index)
        picture = boxed(self.folder / record.image_path, record.highlight_box)
        image = functools.cache(lambda: load_image(picture))  # at most one reading for all views
        row["clip_pixels"] = self._once(("clip", record.index), self._clip, image)
        row["patch_part"] = None
        if self.config.loss.patch > 0:
            row["patch_part"] = self._once(("patch", record.index), self._patch, record, image)
        row.update(dict.fromkeys(GROUNDED_FIELDS))
        if grounded:
            row["sam_pixels"], row["resized_hw"] = self._once(("sam", record.index), self._sam, image)
            self._add_masks(row, record, image, slots)
            pair_spans(row, [owners for _, owners in texts], slots, self.pairing)
        return row

    def _add_masks(self, row, record, image, slots):
        """Target masks. A part with an empty mask keeps its label but is no target."""
        data = self.config.data
        names, (height, width), packed = self._once(("masks", record.index), self._masks, record, image)
        row["original_hw"] = np.array((height, width), np.int32)
        row["masks"] = np.zeros((data.max_masks, *data.canvas), np.uint8)
        row["mask_valid"] = np.zeros(data.max_masks, bool)
        for name, slot in slots.items():
            mask = np.unpackbits(packed[names[name]], axis=-1, count=width)
            row["masks"][slot, :height, :width] = mask
            row["mask_valid"][slot] = mask.any()

    def _once(self, key, function, *args):
        if not self.config.data.cache:
            return function(*args)
        if key not in self._cache:
            self._cache[key] = function(*args)
        return self._cache[key]

    def _text(self, record, i):
        """Question i -> (Encoded of at most max_tokens tokens and max_spans spans, [(instance, part) of each span])."""
        data, row = self.config.data, training_conversation(record.questions[i])
        owners = [(record.instances[i], part) for part in row.parts]
        whole, owners, unfound = encode_owned(row.turns, row.spans, owners, row.parts, self.tokenizer, data, self.switches)
        encoded, kept, drops = fit(whole, data)
        self._drops["text", record.index, i] = drops + collections.Counter(string_search=unfound)
        unused = np.zeros((0, 2), np.int32)  # characters are not needed any more: they would be most of the cache
        encoded = dataclasses.replace(encoded, text="", offsets=unused)
        return encoded, [owners[s] for s in kept]

    def _clip(self, image):
        return clip_view(image(), self.config.model.clip.image_size, self.config.data.clip_view)

    def _sam(self, image):
        view, resized_hw = sam_view(image(), self.config.model.sam.image_size)
        return view, np.array(resized_hw, np.int32)

    def _masks(self, record, image):
        """-> ({(instance, part): row}, (H, W), uint8[rows, H, ceil(W / 8)] bit-packed masks of the whole image)."""
        hw = image().shape[:2]
        if hw[0] > self.config.data.canvas[0] or hw[1] > self.config.data.canvas[1]:
            canvas = tuple(self.config.data.canvas)
            raise UserError(f"{self.folder / record.image_path}: {hw} does not fit config.data.canvas {canvas}; enlarge it")
        names, masks, seen = {}, [], set()
        for question, instance in zip(record.questions, record.instances, strict=True):
            if instance in seen:
                continue
            seen.add(instance)
            try:
                decoded = part_masks(question.segmentations, hw, self.mismatch)
            except ValueError as error:
                raise UserError(f"{self.path}: {record.image_path}: {error}; run plum data check on the folder") from error
            for part, mask in decoded.items():
                names[instance, part] = len(masks)
                masks.append(np.packbits(mask, axis=-1))
        return names, hw, np.array(masks, np.uint8).reshape(len(masks), hw[0], -(-hw[1] // 8))

    def _patch(self, record, image):
        """int16[P]: part id, from 1, that covers most of each CLIP patch (`patch_parts`)."""
        names, hw, packed = self._once(("masks", record.index), self._masks, record, image)
        masks = np.unpackbits(packed, axis=-1, count=hw[1])
        ids = [self._part_ids[part] for _, part in names]
        clip = self.config.model.clip
        return patch_parts(masks, ids, hw, clip.image_size, clip.patch, self.config.data.clip_view)

    def _check(self):
        """Every answer must list its parts and every part must be in the vocabulary: found now, not in the middle of a run."""
        for record in self.records:
            for question in record.questions:
                try:
                    training_conversation(question)
                except ValueError as error:
                    raise UserError(f"{self.path}: {record.image_path}: {error}; run plum data check on it") from error
                unknown = sorted(set(question.segmentations) - self._part_ids.keys())
                if unknown:
                    raise UserError(f"{self.path}: part {unknown[0]!r} is not among the parts of dataset.json; add it there")


def _group(questions, weights):
    """Questions with a positive weight -> one `Record` per image and box, in first-appearance order as its questions."""
    by_image = collections.defaultdict(list)
    for question in questions:
        if weights.get(question.question_type, weights.get("default", 1.0)) > 0:
            by_image[question.image_path, question.highlight_box].append(question)
    records = []
    for index, ((image_path, box), group) in enumerate(by_image.items()):
        distinct, instances = [], []
        for question in group:
            if question.segmentations not in distinct:
                distinct.append(question.segmentations)
            instances.append(distinct.index(question.segmentations))
        shared = [dataclasses.replace(q, segmentations=distinct[i]) for q, i in zip(group, instances, strict=True)]
        weight = np.array([weights.get(q.question_type, weights.get("default", 1.0)) for q in group], np.float64)
        records.append(Record(index, image_path, box, tuple(shared), tuple(instances), weight / weight.sum()))
    return records


def read_parts(folder, records):
    """Sorted part names: those of dataset.json, or without that file those of the segmentations of these records."""
    path = Path(folder) / "dataset.json"
    if not path.is_file():
        return sorted({part for record in records for question in record.questions for part in question.segmentations})
    try:
        return sorted(set(json.loads(path.read_text(encoding="utf-8"))["parts"]))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path}: has no readable list of parts ({error!r}); run plum data make again") from error
