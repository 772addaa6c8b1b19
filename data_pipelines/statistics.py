"""Numbers about a data set of parts: what it holds, how large its masks are, how alike the choices of its questions (D 2.5)."""

import collections
import dataclasses
import itertools

import numpy as np

AREA_EDGES = (0.001, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5)  # shares of the image
PAIRS = 30  # of parts that occur together, in the report


@dataclasses.dataclass
class Statistics:
    """Counts of one file, or of several together. `add_object` is called once for every object in an image."""

    images: set = dataclasses.field(default_factory=set)
    objects: collections.Counter = dataclasses.field(default_factory=collections.Counter)  # {label: objects in images}
    parts: collections.Counter = dataclasses.field(default_factory=collections.Counter)  # {part: objects that show it}
    pairs: collections.Counter = dataclasses.field(default_factory=collections.Counter)  # {(label, part): objects}
    together: collections.Counter = dataclasses.field(default_factory=collections.Counter)  # {(part, part): objects}
    masks: collections.Counter = dataclasses.field(default_factory=collections.Counter)  # {image: masks}
    areas: list = dataclasses.field(default_factory=list)  # shares of the image
    parts_of_object: collections.Counter = dataclasses.field(default_factory=collections.Counter)  # {number: objects}
    unreadable_masks: int = 0
    types: collections.Counter = dataclasses.field(default_factory=collections.Counter)
    positions: collections.Counter = dataclasses.field(default_factory=collections.Counter)  # of the correct choice
    object_positions: collections.Counter = dataclasses.field(default_factory=collections.Counter)
    answer_parts: collections.Counter = dataclasses.field(default_factory=collections.Counter)  # {number: questions}
    overlap: dict = dataclasses.field(default_factory=lambda: collections.defaultdict(list))  # {type: [(mean, max, min)]}
    word_overlap: dict = dataclasses.field(default_factory=lambda: collections.defaultdict(list))
    left_out: collections.Counter = dataclasses.field(default_factory=collections.Counter)

    def add_object(self, image, label, parts, areas, unreadable=0):
        """`parts`: names that it shows; `areas`: share of the image that each of its masks covers."""
        self.images.add(image)
        self.objects[label] += 1
        names = sorted(set(parts))
        self.parts.update(names)
        self.pairs.update((label, part) for part in names)
        self.together.update((one, other) for i, one in enumerate(names) for other in names[i + 1 :])
        self.masks[image] += len(areas)
        self.areas.extend(areas)
        self.parts_of_object[len(names)] += 1
        self.unreadable_masks += unreadable

    def add_question(self, question):
        self.images.add(question.image_path)
        self.types[question.question_type] += 1
        self.positions[question.correct] += 1
        if question.object_correct is not None:
            self.object_positions[question.object_correct] += 1
        self.answer_parts[len(question.correct_parts)] += 1
        kind, right = question.question_type, question.correct
        self.overlap[kind].append(_spread(question.answer_parts, right, set))
        self.word_overlap[kind].append(_spread(question.answer_choices, right, _words))

    def summary(self):
        """Everything as plain JSON."""
        masks = list(self.masks.values())
        together = sorted(self.together.items(), key=lambda item: (-item[1], item[0]))[:PAIRS]
        return {
            "images": len(self.images), "objects": len(self.objects), "objects_in_images": sum(self.objects.values()),
            "parts": len(self.parts), "object_part_pairs": len(self.pairs), "masks": len(self.areas),
            "unreadable_masks": self.unreadable_masks, "masks_per_image": _describe(masks),
            "mask_area": {**_describe(self.areas), "histogram": _histogram(self.areas)},
            "parts_per_object": {str(n): count for n, count in sorted(self.parts_of_object.items())},
            "by_object": dict(self.objects.most_common()), "by_part": dict(self.parts.most_common()),
            "together": [[*pair, count] for pair, count in together],
            "questions": sum(self.types.values()), "types": dict(sorted(self.types.items())),
            "correct_position": {str(n): count for n, count in sorted(self.positions.items())},
            "correct_object_position": {str(n): count for n, count in sorted(self.object_positions.items())},
            "parts_in_answer": {str(n): count for n, count in sorted(self.answer_parts.items())},
            "answer_overlap": {"parts": _overlaps(self.overlap), "words": _overlaps(self.word_overlap)},
            "left_out": dict(self.left_out),
        }  # fmt: skip


def _spread(choices, right, as_set):
    """Jaccard overlap of the correct choice with each wrong one -> (mean, max, min)."""
    correct = as_set(choices[right])
    found = [jaccard(correct, as_set(choice)) for i, choice in enumerate(choices) if i != right]
    return sum(found) / len(found), max(found), min(found)


def jaccard(one, other):
    return len(one & other) / len(one | other) if one | other else 1.0


def _words(answer):
    """Words of the list at the end of an answer: what stands before the colon all choices share (D 2.5)."""
    return set(answer.rpartition(":")[2].replace(",", " ").replace(".", " ").lower().split()) - {"and"}


def _overlaps(found):
    return {
        kind: dict(zip(("mean", "mean_of_max", "mean_of_min"), np.round(np.mean(rows, axis=0), 4).tolist(), strict=True))
        for kind, rows in sorted(found.items())
    }


def _describe(values):
    if not len(values):
        return {"mean": None, "median": None, "least": None, "most": None}
    return {
        "mean": float(np.mean(values)), "median": float(np.median(values)),
        "least": float(min(values)), "most": float(max(values)),
    }  # fmt: skip


def _histogram(shares):
    """[[from, to, masks]]; the last bin includes 1. An empty mask counts in the first one."""
    edges = (0.0, *AREA_EDGES, 1.0)
    counts = np.bincount(np.digitize(shares, AREA_EDGES), minlength=len(edges) - 1) if len(shares) else [0] * (len(edges) - 1)
    return [[low, high, int(count)] for (low, high), count in zip(itertools.pairwise(edges), counts, strict=True)]
