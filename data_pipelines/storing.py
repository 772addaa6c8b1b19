"""One record of any source in the form in which it is stored: checked, masks as run lengths, image bytes as on disk."""

import collections
from pathlib import Path

import numpy as np

from data_pipelines.build_sources import options_of
from data_pipelines.conversation import Span
from data_pipelines.example import record_text
from data_pipelines.images import StoredImage, load_image
from data_pipelines.masks import decode_segmentation, encode_rle
from data_pipelines.record import Dialogue, Sample
from plum_jax.errors import UserError

# What a source of somebody else may raise for a record that it cannot read.
UNREADABLE = (UserError, ValueError, LookupError, TypeError, OSError)

Stored = collections.namedtuple("Stored", "key image record")


class BadRecord(Exception):
    """A record that is left out: `key`, `reason` (a few fixed words), and the message."""

    def __init__(self, key, reason, message):
        super().__init__(message)
        self.key, self.reason = key, reason


def is_storable(source):
    """Whether its records can be stored with all that a later draw needs (`StorableSource`)."""
    return hasattr(source, "record") and hasattr(source, "drawing")


class Recorder:
    """What is stored of each record of a source.

    Args:
      root: folder of the data; images are named relative to it.
      options: with which the source was made; those of the draw are used to try each record.
      draws: how many samples stand for a record of a source that cannot give records whole.
    """

    def __init__(self, source, root, options, draws):
        self.source, self.root, self.draws, self.draw = source, Path(root), draws, drawn_sample
        if is_storable(source):
            known = options_of(source.drawing)
            self.draw = source.drawing(**{name: value for name, value in options.items() if name in known})

    def stored(self, index):
        """-> Stored(key, image bytes, record as bytes of JSON). Raises BadRecord for what training could not use."""
        key = f"record {index}"
        try:
            record = self.source.record(index) if is_storable(self.source) else self._samples(index)
            key, path = str(record["key"]), record["image"]
        except UNREADABLE as error:
            raise BadRecord(key, "unreadable record", _message(error)) from error
        name, data, hw = None, b"", None
        if path is not None:
            name, data = _name(path, self.root), _read(path, key)
            try:
                hw = load_image(StoredImage(str(path), data)).shape[:2]
            except UserError as error:
                raise BadRecord(key, "broken image", str(error)) from error
        record = _run_lengths({**record, "image": name}, hw, key)
        try:
            self.draw(record, np.random.default_rng(index))
        except UNREADABLE as error:
            raise BadRecord(key, "nothing to draw", _message(error)) from error
        try:
            key.encode()
            return Stored(key, data, record_text(record).encode())
        except ValueError as error:  # a number that is not finite, half of a surrogate pair
            raise BadRecord(repr(key), "unreadable record", f"{key!r}: cannot be stored ({error})") from error

    def _samples(self, index):
        """A record that is a list of samples, by generators that depend on `index` and their number alone."""
        samples = [self.source.sample(index, np.random.default_rng((index, number))) for number in range(self.draws)]
        first = samples[0]
        if any(sample.image != first.image for sample in samples):
            raise ValueError(f"{first.key}: its samples have different images")
        return {"key": f"{index} {first.key}", "image": first.image, "samples": [_sample_to_json(sample) for sample in samples]}


def _message(error):
    return str(error) if isinstance(error, UserError) else f"{type(error).__name__}: {error}"


def _name(path, root):
    path = Path(path)
    return path.relative_to(root).as_posix() if path.is_relative_to(root) else path.as_posix()


def _read(path, key):
    try:
        return Path(path).read_bytes()
    except FileNotFoundError as error:
        raise BadRecord(key, "missing image", f"{path}: no such image; check the path") from error
    except OSError as error:
        raise BadRecord(key, "broken image", f"{path}: not readable ({error.strerror})") from error


def _run_lengths(value, hw, key):
    """`value` with every segmentation entry in it as {"size", "counts": str}. BadRecord for a mask that is malformed or not
    as large as the upright image: stretching one would hide a wrong annotation (D16)."""
    if isinstance(value, dict) and "size" in value and ("counts" in value or "polygon" in value):
        try:
            mask = decode_segmentation(value)
        except ValueError as error:
            raise BadRecord(key, "malformed mask", f"{key}: {error}") from error
        if hw is not None and mask.shape != tuple(hw):
            size = f"mask is {mask.shape[0]} x {mask.shape[1]}, the upright image {hw[0]} x {hw[1]}"
            raise BadRecord(key, "mask of another size", f"{key}: {size}")
        compact = isinstance(value.get("counts"), str)
        return {"size": value["size"], "counts": value["counts"]} if compact else encode_rle(mask)
    if isinstance(value, dict):
        return {name: _run_lengths(item, hw, key) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [_run_lengths(item, hw, key) for item in value]
    return value


def _sample_to_json(sample):
    dialogues = [
        {
            "turns": said.turns,
            "spans": [[s.turn, s.char_start, s.char_end] for s in said.spans],
            "masks": list(said.masks),
            **({"names": list(said.names)} if said.names else {}),
        }
        for said in sample.dialogues
    ]
    masks = [encode_rle(mask) if isinstance(mask, np.ndarray) else mask for mask in sample.masks]
    return {"family": sample.family, "dataset": sample.dataset, "key": sample.key, "dialogues": dialogues, "masks": masks}


def drawn_sample(record, rng):
    """Record of the fallback -> one of its samples."""
    stored = record["samples"][int(rng.integers(len(record["samples"])))]
    dialogues = tuple(
        Dialogue(
            tuple((question, answer) for question, answer in item["turns"]),
            tuple(Span(*span) for span in item["spans"]),
            tuple(item["masks"]),
            tuple(item.get("names", ())),
        )
        for item in stored["dialogues"]
    )
    names = (stored[name] for name in ("family", "dataset", "key"))
    return Sample(*names, record["image"], dialogues, tuple(stored["masks"]))
