"""`PartonomySource`: images with their PARTONOMY questions, of a folder or a build of one, as rows of a `Batch` (D 4.6)."""

import collections
import dataclasses
import functools

import numpy as np

from data_pipelines.account import Account
from data_pipelines.images import boxed, clip_view, load_image, sam_view
from data_pipelines.mask_sizes import shrink_mask
from data_pipelines.masks import part_masks, patch_parts
from data_pipelines.partonomy.opened import open_questions
from data_pipelines.partonomy.records import Question, training_conversation
from data_pipelines.rows import GROUNDED_FIELDS, assign_slots, fit, fit_canvas, pair_spans, stack
from data_pipelines.string_search import TextSwitches, encode_owned
from plum_jax.errors import UserError
from plum_jax.switches import switch


@dataclasses.dataclass(frozen=True)
class Record:
    """One image with one box drawn, or none. `instances[i]` numbers the segmentations object of questions[i] among the distinct
    ones of the record."""

    index: int
    image: str  # its name where it was opened
    highlight_box: tuple[int, ...] | None
    questions: tuple[Question, ...]
    instances: tuple[int, ...]
    probabilities: np.ndarray  # float64[questions], of being drawn


class PartonomySource:
    """Random access to the images of one split; an item is a `Record`, `example` draws questions and builds the row.

    `folder` holds question files, or what `plum data build` made of them. `parts` is the sorted part vocabulary. Masks of an
    image larger than config.data.canvas are shrunk onto it, as in a mixture. With config.data.cache everything decoded or
    tokenised is kept in memory: views as uint8, masks bit-packed. Raises UserError for a bad folder before any image is read.
    """

    family, dataset = "explanatory", "partonomy"

    def __init__(self, folder, split, config, tokenizer):
        self.config, self.tokenizer = config, tokenizer
        self.pairing, self.mismatch = (switch(config.data, f"data.{x}") for x in ("span_pairing", "resize_mismatched_masks"))
        self.switches = TextSwitches.of(config.data)
        opened = open_questions(folder, split)
        self.path, self._open = opened.path, opened.image
        self.records = _group(opened.asked, dict(config.data.question_weights))
        if not self.records:
            raise UserError(f"{self.path}: no question has a positive config.data.question_weights; raise one")
        seen = {part for record in self.records for question in record.questions for part in question.segmentations}
        self.parts = sorted(seen if opened.parts is None else set(opened.parts))
        self._part_ids = {part: number for number, part in enumerate(self.parts, 1)}
        self._cache = {}
        self._check()

    def __len__(self):
        return len(self.records)

    def __getitem__(self, index):
        return self.records[index]

    def choose(self, record, rng):
        """-> (record, question numbers): config.data.conversations different ones, by weight; fewer where there are fewer."""
        count = min(self.config.data.conversations, int((record.probabilities > 0).sum()))
        return record, tuple(rng.choice(len(record.questions), count, replace=False, p=record.probabilities).tolist())

    def example(self, record, rng):
        """One row of a `Batch` as a dictionary of its fields, with SAM view and masks."""
        return self.row(*self.choose(record, rng), grounded=True)[0]

    def counted_row(self, record, chosen, *, grounded):
        """-> (row, Account): `row` of one draw."""
        row, counts = self.row(record, chosen, grounded=grounded)
        account = Account()
        account.of(self.family, self.dataset).update(draws=1, **counts)
        return row, account

    def row(self, record, chosen, *, grounded):
        """An image and its chosen questions -> ({field: array}, Counter as of `Account`); SAM view and masks are None where not
        `grounded`."""
        data, counts = self.config.data, collections.Counter()
        texts = []
        for i in chosen:
            *text, lost = self._once(("text", record.index, i), self._text, record, i)
            texts.append(text)
            counts.update(lost)
        texts, slots, lost = assign_slots(texts, data.max_masks)
        owners = [spans for _, spans in texts]
        counts.update({"lost spans: max_masks": sum(lost), "conversations": len(texts), "spans": sum(map(len, owners))})
        row = stack([encoded for encoded, _ in texts], data)
        row["sample_id"] = np.int64(record.index)
        image = functools.cache(lambda: self._load(record))  # at most one reading for all views
        row["clip_pixels"] = self._once(("clip", record.index), self._clip, image)
        row["patch_part"] = None
        if self.config.loss.patch > 0:
            row["patch_part"] = self._once(("patch", record.index), self._patch, record, image)
        row.update(dict.fromkeys(GROUNDED_FIELDS))
        if grounded:
            row["sam_pixels"], row["resized_hw"] = self._once(("sam", record.index), self._sam, image)
            self._add_masks(row, record, image, slots, counts)
            pair_spans(row, owners, slots, self.pairing)
        return row, +counts

    def _add_masks(self, row, record, image, slots, counts):
        """Target masks. A part with an empty mask keeps its label but is no target."""
        data = self.config.data
        names, (height, width), shrunk, packed = self._once(("masks", record.index), self._masks, record, image)
        row["original_hw"] = np.array((height, width), np.int32)
        row["masks"] = np.zeros((data.max_masks, *data.canvas), np.uint8)
        row["mask_valid"] = np.zeros(data.max_masks, bool)
        for name, slot in slots.items():
            mask = np.unpackbits(packed[names[name]], axis=-1, count=width)
            row["masks"][slot, :height, :width] = mask
            row["mask_valid"][slot] = mask.any()
        counts["shrunk"], counts["masks"] = int(shrunk), int(row["mask_valid"].sum())
        counts["lost masks: empty"] = len(slots) - counts["masks"]

    def _once(self, key, function, *args):
        if not self.config.data.cache:
            return function(*args)
        if key not in self._cache:
            self._cache[key] = function(*args)
        return self._cache[key]

    def _load(self, record):
        return load_image(boxed(self._open(record.image), record.highlight_box))

    def _text(self, record, i):
        """Question i -> (Encoded of at most max_tokens tokens and max_spans spans, [(instance, part) of each span], Counter of
        what was lost)."""
        data, row = self.config.data, training_conversation(record.questions[i])
        owners = [(record.instances[i], part) for part in row.parts]
        whole, owners, unfound = encode_owned(row.turns, row.spans, owners, row.parts, self.tokenizer, data, self.switches)
        encoded, kept, lost = fit(whole, data)
        lost["lost spans: string_search"] = unfound
        unused = np.zeros((0, 2), np.int32)  # characters are not needed any more: they would be most of the cache
        encoded = dataclasses.replace(encoded, text="", offsets=unused)
        return encoded, [owners[s] for s in kept], +lost

    def _clip(self, image):
        return clip_view(image(), self.config.model.clip.image_size, self.config.data.clip_view)

    def _sam(self, image):
        view, resized_hw = sam_view(image(), self.config.model.sam.image_size)
        return view, np.array(resized_hw, np.int32)

    def _masks(self, record, image):
        """-> ({(instance, part): row}, (H, W) on the canvas, whether the image is larger, the masks as bits: uint8[rows, H,
        ceil(W / 8)])."""
        whole = image().shape[:2]
        hw = fit_canvas(whole, self.config.data.canvas)
        names, masks, seen = {}, [], set()
        for question, instance in zip(record.questions, record.instances, strict=True):
            if instance in seen:
                continue
            seen.add(instance)
            try:
                decoded = part_masks(question.segmentations, whole, self.mismatch)
            except ValueError as error:
                raise UserError(f"{self.path}: {record.image}: {error}; run plum data check on the folder") from error
            for part, mask in decoded.items():
                names[instance, part] = len(masks)
                masks.append(np.packbits(shrink_mask(mask, hw), axis=-1))
        return names, hw, hw != whole, np.array(masks, np.uint8).reshape(len(masks), hw[0], -(-hw[1] // 8))

    def _patch(self, record, image):
        """int16[P]: part id, from 1, that covers most of each CLIP patch (`patch_parts`), by the masks on the canvas."""
        names, hw, _, packed = self._once(("masks", record.index), self._masks, record, image)
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
                    raise UserError(f"{self.path}: {record.image}: {error}; run plum data check on it") from error
                unknown = sorted(set(question.segmentations) - self._part_ids.keys())
                if unknown:
                    raise UserError(f"{self.path}: part {unknown[0]!r} is not among the parts of dataset.json; add it there")


def _group(asked, weights):
    """[(Question, image)] of positive weight -> a `Record` per image and box, in first-appearance order as its questions."""
    by_image = collections.defaultdict(list)
    for question, image in asked:
        if weights.get(question.question_type, weights.get("default", 1.0)) > 0:
            by_image[image, question.highlight_box].append(question)
    records = []
    for index, ((image, box), group) in enumerate(by_image.items()):
        distinct, instances = [], []
        for question in group:
            if question.segmentations not in distinct:
                distinct.append(question.segmentations)
            instances.append(distinct.index(question.segmentations))
        shared = [dataclasses.replace(q, segmentations=distinct[i]) for q, i in zip(group, instances, strict=True)]
        weight = np.array([weights.get(q.question_type, weights.get("default", 1.0)) for q in group], np.float64)
        records.append(Record(index, image, box, tuple(shared), tuple(instances), weight / weight.sum()))
    return records
