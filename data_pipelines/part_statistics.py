"""Numbers about a data set of parts: what it holds, how large its masks are, which parts occur together (D 2.5)."""

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
            "left_out": dict(self.left_out),
        }  # fmt: skip


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
