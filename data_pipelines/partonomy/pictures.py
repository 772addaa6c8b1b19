"""The images of a dataset folder: their names there, copies, links, and a box around the object meant (D 2.2, D 2.3)."""

import collections
import hashlib
import os
import re
import shutil
from pathlib import Path, PurePosixPath

from PIL import Image

from data_pipelines.images import boxed, load_image


def output_names(paths):
    """{path: file name in images/}. Where names clash, other contents than the first have 8 digits of their MD5 after them.

    Equal files of equal names share one. Names that differ in case only clash too, as not every disk tells them apart.
    """
    names, clashing = {}, collections.defaultdict(list)
    for path in sorted(set(paths)):
        clashing[_clean(PurePosixPath(str(path)).name).lower()].append(path)
    for group in clashing.values():
        seen = {}
        for path in group:
            name = _clean(PurePosixPath(str(path)).name)
            if len(group) > 1:
                digest = hashlib.md5(Path(path).read_bytes(), usedforsecurity=False).hexdigest()
                name = seen.setdefault(digest, name if not seen else _suffixed(name, digest[:8]))
            names[path] = name
    return names


def boxed_name(name, box):
    """Name of a copy with a box drawn: 'a.jpg' -> 'a-box-1f2e3d4c.jpg'; PNG for other formats than JPEG."""
    digest = hashlib.md5(repr((name, tuple(box))).encode(), usedforsecurity=False).hexdigest()
    return _suffixed(name if _is_jpeg(name) else f"{name}.png", f"box-{digest[:8]}")


def _is_jpeg(name):
    return name.lower().endswith((".jpg", ".jpeg"))


def _suffixed(name, text):
    path = PurePosixPath(name)
    return f"{path.stem}-{text}{path.suffix}"


def _clean(name):
    """Without what a path in a question file must not hold."""
    return re.sub(r"[:\\\x00-\x1f]|\.\.", "_", name)


def write_images(jobs, folder, link):
    """Writes images/<name> for every (source path, name, box or None) that is not there yet."""
    for source, name, box in jobs:
        target = Path(folder) / "images" / name
        if os.path.lexists(target):
            continue
        temporary = target.with_name(f".{os.getpid()}-{name}")
        if box is not None:
            picture = Image.fromarray(load_image(boxed(source, box)))
            picture.save(temporary, **({"format": "JPEG", "quality": 95} if _is_jpeg(name) else {"format": "PNG"}))
        elif link:
            os.symlink(os.path.abspath(source), temporary)
        else:
            shutil.copyfile(source, temporary)
        os.replace(temporary, target)
