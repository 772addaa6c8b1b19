"""Small data sets of every family for tests of the mixture, drawn into a folder: real pictures, known spans and masks."""

import collections
from pathlib import Path

import numpy as np
from PIL import Image

from configs.tiny import get_config
from data_pipelines.conversation import Span
from data_pipelines.masks import encode_rle
from data_pipelines.record import NO_MASK, Dialogue, Sample
from plum_jax.errors import UserError

DATASETS = {  # dataset: (family, records)
    "ade20k": ("semantic", 7), "refcoco": ("refer", 5), "vqa": ("vqa", 6), "reason": ("reason", 3),
    "explanatory": ("explanatory", 4),
}  # fmt: skip
WORDS = ("lamp", "shade", "pole", "base")
WEIGHTS = (9, 5, 5, 1)  # of the first four


def mixture_config(**data):
    """configs/tiny.py for the mixture of these data sets."""
    config = get_config()
    config.loss.patch = 0.0
    values = dict(sources=({"name": "ade20k", "weight": 1},), root="data", global_batch=8, max_tokens=60, canvas=(64, 64))
    config.data.update({**values, "cache": False, "grounded": (), **data})
    return config


def question_about(words, masks, *, image=True):
    """Dialogue whose answer names `words`, each with the mask of its number."""
    answer, spans = "There are", []
    for word in words:
        spans.append(Span(0, len(answer) + 1, len(answer) + 1 + len(word)))
        answer += f" {word}"
    return Dialogue((("<image>\n" * image + "What is it?", f"{answer}."),), tuple(spans), tuple(masks))


class FakeSource:
    """`Source` of pictures in different sizes. Records in `broken` raise, those in `lost` name an image that is not there."""

    def __init__(self, root, *, dataset, split="train", per_image=1, broken=(), lost=()):
        self.family, count = DATASETS[dataset]
        self.dataset, self.grounded, self.per_image = dataset, self.family != "vqa", per_image
        self.skipped, self.broken, self.lost = collections.Counter(), broken, lost
        self.folder, self.sizes = Path(root) / dataset / split, [(40 + 4 * (i % 4), 56 - 3 * (i % 5)) for i in range(count)]
        self.folder.mkdir(parents=True, exist_ok=True)
        rng = np.random.default_rng(count)
        for i, hw in enumerate(self.sizes):
            Image.fromarray(rng.integers(0, 256, (*hw, 3), np.uint8)).save(self.folder / f"{i}.png")

    def __len__(self):
        return len(self.sizes)

    def mask(self, index, k):
        """The k-th mask of an image: a box that no other mask shares."""
        mask = np.zeros(self.sizes[index], np.uint8)
        mask[8 * k : 8 * k + 8, 2 : 10 + index] = 1
        return mask

    def sample(self, index, rng):
        if index in self.broken:
            raise UserError(f"{self.dataset}: record {index} is broken; make it again")
        path = str(self.folder / f"{index}.png") if index not in self.lost else str(self.folder / "lost.png")
        about = (self.family, self.dataset, f"{self.dataset}/{index}")
        if not self.grounded:
            text_alone = index == 0
            dialogue = question_about([rng.choice(WORDS)], [NO_MASK], image=not text_alone)
            return Sample(*about, None if text_alone else path, (Dialogue(dialogue.turns),))
        order = rng.permutation(len(WORDS))
        if self.family == "explanatory":
            dialogues = (question_about([WORDS[k] for k in order], order.tolist()),)
        else:
            dialogues = tuple(question_about([WORDS[k]], [k]) for k in order[: self.per_image].tolist())
        masks = tuple(self.mask(index, k) if k % 2 else encode_rle(self.mask(index, k)) for k in range(len(WORDS)))
        return Sample(*about, path, dialogues, masks)


class Given:
    """`Source` of the samples that it is given; an exception among them is raised."""

    def __init__(self, *samples, family="semantic", dataset="ade20k"):
        self.samples, self.family, self.dataset = samples, family, dataset
        self.grounded, self.skipped = family != "vqa", collections.Counter()

    def __len__(self):
        return len(self.samples)

    def sample(self, index, rng):
        if isinstance(self.samples[index], Exception):
            raise self.samples[index]
        return self.samples[index]
