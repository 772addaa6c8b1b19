"""Conversations in LLaVA's format (D 4.4): LLaVA-Instruct-150k, mix665k and files like them. No masks; text alone is fine."""

import functools
from pathlib import Path

import numpy as np

from data_pipelines.conversation import END, IMAGE
from data_pipelines.folders import Listing, find_image, inside
from data_pipelines.json_array import JsonArray, scan
from data_pipelines.left_out import LeftOut
from data_pipelines.record import Dialogue, Sample
from plum_jax.errors import UserError

FILE = "llava_dataset/llava_instruct_150k.json"
IMAGES = (".", "coco/train2017")
LAYOUT = 'a JSON array of {"id", "image", "conversations": [{"from": "human" or "gpt", "value"}]}'


class Unusable(Exception):
    """Why an entry is left out: a few words that `Vqa.skipped` counts by."""


class Vqa:
    """A Source of conversations about an image, or about none.

    Args:
      root: folder of all data sets.
      split: "train" is all there is.
      per_image: up to so many conversations of an image make one sample, so that it is encoded once for all of them.
      file: the JSON file, in `root`.
      images: folders in `root`, tried in this order; the `image` of an entry is a path in one of them. The default suits files
        that name the image alone and files that name it from the root on, as mix665k does.
      dataset: name of its samples; default: that of the file.

    An image that is in none of the folders is counted when the source is opened, and its entry left out.
    """

    family, grounded = "vqa", False

    def __init__(self, root, *, split="train", per_image=1, file=FILE, images=IMAGES, dataset=None):
        if split != "train":
            raise UserError(f"{file}: split {split!r} does not exist for conversations; use train")
        if per_image < 1:
            raise UserError(f"{file}: per_image is {per_image}; use 1 or more")
        path = Path(root) / file
        self.dataset, self.index_files, self.parts = dataset or path.stem, (path,), ()
        self.folders = tuple(str(Path(root) / folder) for folder in images)
        left_out, listing, ranges, groups = LeftOut(), Listing(self.folders), [], {}
        for number, (start, stop, entry) in enumerate(scan(path, LAYOUT)):
            try:
                parse_entry(entry)
                image = entry.get("image")
                if image is not None and listing.find(image) is None:
                    raise Unusable("image file missing")
            except Unusable as reason:
                named = f", image {str(entry['image'])[:100]!r}" if isinstance(entry, dict) and entry.get("image") else ""
                left_out.add(f"entry {number}", str(reason), f"{path}: entry {number}{named}: {reason}")
                continue
            groups.setdefault(len(ranges) if per_image == 1 or image is None else image, []).append(len(ranges))
            ranges.append((start, stop))
        if not ranges:
            raise UserError(f"{path}: has no usable conversation (left out: {left_out}); see docs/data/llava_instruct.md")
        self.skipped, self.faults = left_out.counts, left_out.faults
        self._entries = JsonArray(path, ranges)
        self._members = np.array([k for group in groups.values() for k in group], np.int64)
        self._starts = np.cumsum([0, *map(len, groups.values())])
        self._draw = self.drawing(per_image=per_image)

    def __len__(self):
        return len(self._starts) - 1

    def record(self, index):
        """-> {"key", "image", "dataset", "conversations": [[[question, answer], ...], ...]}."""
        members = self._members[self._starts[index] : self._starts[index + 1]]
        entries = [self._entries[k] for k in members]
        name = entries[0].get("image")
        image = None if name is None else find_image(self.folders, name)
        if name is not None and image is None:
            raise UserError(f"{self._entries.path}: image {name!r} has vanished since the file was opened; put it back")
        key = f"{entries[0].get('id')}#{members[0]}"  # an id alone is often that of the image, which has several conversations
        return {
            "key": key, "image": image, "dataset": self.dataset, "conversations": [parse_entry(entry) for entry in entries],
        }  # fmt: skip

    def sample(self, index, rng):
        return self._draw(self.record(index), rng)

    @classmethod
    def drawing(cls, *, per_image=1):
        """What makes a Sample from a record: (record, rng) -> up to `per_image` of its conversations."""
        return functools.partial(_draw, per_image=per_image)


def _draw(record, rng, *, per_image):
    asked = record["conversations"]
    if len(asked) > 1:
        asked = [asked[k] for k in rng.permutation(len(asked))[:per_image]]
    dialogues = tuple(Dialogue(tuple((question, answer) for question, answer in turns)) for turns in asked)
    return Sample(Vqa.family, record["dataset"], record["key"], record["image"], dialogues)


def parse_entry(entry):
    """One JSON object -> ((question, answer), ...). The placeholder of the image goes to the front of the first question.

    A first turn that is not human is dropped, and a last question without an answer too. Raises Unusable.
    """
    if not isinstance(entry, dict) or not isinstance(entry.get("conversations"), list):
        raise Unusable("no list of conversations")
    image, turns = entry.get("image"), entry["conversations"]
    if image is not None and not isinstance(image, str):
        raise Unusable("image is not one path")
    if image is not None and not inside(image):
        raise Unusable("image path leaves the folder")
    if not all(isinstance(turn, dict) and isinstance(turn.get("value"), str) for turn in turns):
        raise Unusable("turn without a text")
    if turns and turns[0].get("from") != "human":
        turns = turns[1:]
    if any(turn.get("from") != ("human", "gpt")[number % 2] for number, turn in enumerate(turns)):
        raise Unusable("roles do not alternate")
    if len(turns) < 2:
        raise Unusable("no answer")
    texts = [turn["value"] for turn in turns[: len(turns) // 2 * 2]]
    return _pairs(texts, image is not None)


def _pairs(texts, has_image):
    placeholders = sum(text.count(IMAGE) for text in texts[::2])
    if any(IMAGE in text for text in texts[1::2]) or any(END in text for text in texts):
        raise Unusable("reserved token in a text")
    if placeholders > 1:
        raise Unusable("several images")
    if placeholders and not has_image:
        raise Unusable("placeholder without an image")
    texts = [text.replace(IMAGE, "").strip() for text in texts]
    if not all(texts):
        raise Unusable("empty turn")
    if has_image:
        texts[0] = f"{IMAGE}\n{texts[0]}"
    return tuple(zip(texts[::2], texts[1::2], strict=True))
