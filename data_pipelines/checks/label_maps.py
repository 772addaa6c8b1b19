"""Images with a label map (ADE20K, COCO-Stuff, Mapillary): both readable, of one size, and every pixel value a class."""

from pathlib import Path

import numpy as np

from data_pipelines.checks.pictures import pick, read_ahead, read_picture
from data_pipelines.folders import stems
from data_pipelines.semantic import IGNORED, LAYOUTS, pixel_names, read_label_map
from plum_jax.errors import UserError


def check_label_maps(root, name, split, findings, options):
    """-> counts of the pairs of a split. What is missing was counted when the data set was opened."""
    images, labels = (Path(root) / folder for folder in LAYOUTS[name].splits[split])
    where = f"{name} {split}"
    try:
        files, maps = stems(images, (".jpg",), "see docs/data"), stems(labels, (".png",), "see docs/data")
        known = len(pixel_names(root, name))
    except UserError:  # said when the data set was opened
        return {}
    pairs = pick(
        [(images / files[stem], labels / maps[stem]) for stem in sorted(files.keys() & maps.keys())], options.max_images
    )
    faulty = 0
    for faults in read_ahead(lambda pair: _read_pair(*pair, known), pairs, workers=options.workers, label=where):
        for kind, text in faults:
            findings.error(kind, where, None, text)
        faulty += bool(faults)
    return {"pairs": len(files.keys() & maps.keys()), "read": len(pairs), "faulty": faulty}


def _read_pair(image, label, known):
    """-> [(kind of fault, sentence)]."""
    picture = read_picture(image)
    faults = [] if picture.fault is None else [("unreadable image", picture.fault)]
    try:
        labels = read_label_map(label)
    except UserError as error:
        return [*faults, ("unreadable label map", str(error))]
    if picture.fault is None and labels.shape != picture.hw:
        text = f"{label}: is {labels.shape[0]} x {labels.shape[1]}, the upright image {picture.hw[0]} x {picture.hw[1]}"
        if picture.turned and labels.shape == picture.hw[::-1]:
            text += "; it was drawn before the EXIF orientation turned the image: turn the label map too"
        faults.append(("mask of another size than its image", text))
    values = np.unique(labels)
    unknown = values[(values >= known) & (values != IGNORED)]
    if len(unknown):
        faults.append(("unknown label", f"{label}: pixel value {unknown[0]} has no class, the last one is {known - 1}"))
    return faults
