"""The referring expressions of a data set: `refs(unc).p` of the refer tools, or JSON (D 4.3).

A pickle is a program. Only its instructions for containers, strings and numbers are followed; a function or class that it names
is refused before anything is called. It is read once: what was in it is kept as JSON beside it, or in the user's cache where
that folder cannot be written to.
"""

import contextlib
import dataclasses
import hashlib
import json
import os
import pickle
import struct
from pathlib import Path

from data_pipelines.folders import check_regular, read_json
from plum_jax.cache import cache_dir
from plum_jax.errors import UserError

NO_TARGET = -1
MALFORMED = (pickle.UnpicklingError, EOFError, ValueError, TypeError, AttributeError, LookupError, struct.error, OverflowError)


@dataclasses.dataclass(frozen=True)
class Ref:
    """Phrases that all mean the same annotations of an image; none of them where nothing in the image fits the phrases."""

    image_id: int | str
    split: str
    annotation_ids: tuple[int | str, ...]
    sentences: tuple[str, ...]  # as written


class _Refused(Exception):
    """The name of a function or class that a pickle wants."""


class _PlainUnpickler(pickle.Unpickler):
    """Containers, strings and numbers have instructions of their own; whatever needs a name is refused by it."""

    def find_class(self, module, name):
        raise _Refused(f"{module}.{name}"[:100])


def read_refs(folder, name, advice):
    """`folder`/`name`.json, or `folder`/`name`.p, which is converted at the first reading -> list of Ref.

    Raises:
      UserError: neither file exists (with `advice`), the pickle calls something or is damaged, an entry is malformed.
    """
    beside, source = Path(folder) / f"{name}.json", Path(folder) / f"{name}.p"
    if beside.exists() or not source.exists():
        return _parse(read_json(beside, f"there is no {name}.p either; {advice}"), beside)
    cached = _cache_path(source)
    if cached.exists():
        return _parse(read_json(cached, "start again"), cached)
    refs = _parse(_load_pickle(source), source)
    _keep(refs, beside, cached)
    return refs


def _load_pickle(path):
    try:
        check_regular(path)
        with open(path, "rb") as file:  # Python 2 wrote them: its strings are bytes
            return _PlainUnpickler(file, encoding="utf-8", errors="replace").load()
    except _Refused as error:
        advice = "expressions need plain containers only; nothing was run; download the file again from a source you trust"
        raise UserError(f"{path}: its pickle calls {error}, {advice}") from None
    except (*MALFORMED, MemoryError) as error:
        raise UserError(f"{path}: is not a readable pickle of referring expressions ({error}); download it again") from None
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}); change its permissions") from error


def _parse(content, path):
    """[{ref_id, image_id, split, ann_id, sentences: [{sent}]}] -> list of Ref."""
    if not isinstance(content, list):
        raise UserError(f"{path}: holds a {type(content).__name__}, expected a list of expressions; download it again")
    return [_parse_ref(entry, path, number) for number, entry in enumerate(content)]


def _parse_ref(entry, path, number):
    def check(right, what):
        if not right:
            raise UserError(f"{path}: entry {number}: {what}; download the file again")

    check(isinstance(entry, dict), "is not a dictionary")
    image_id, split, targets, sentences = (entry.get(field) for field in ("image_id", "split", "ann_id", "sentences"))
    check(_is_id(image_id), "has no image_id")
    check(isinstance(split, str), "has no split")
    targets = targets if isinstance(targets, list) else [targets]
    targets = [] if targets == [NO_TARGET] else targets
    check(all(_is_id(target) and target != NO_TARGET for target in targets), "has an ann_id that is no annotation's")
    check(isinstance(sentences, list), "has no list of sentences")
    check(all(isinstance(s, dict) and isinstance(s.get("sent"), str) for s in sentences), "has a sentence without sent")
    return Ref(image_id, split, tuple(targets), tuple(_whole_characters(sentence["sent"]) for sentence in sentences))


def _is_id(value):
    return isinstance(value, str) or (isinstance(value, int) and abs(value) < 1 << 63)


def _whole_characters(text):
    """Halves of surrogate pairs, which no tokenizer takes, become question marks."""
    return text.encode("utf-8", "replace").decode("utf-8")


def _keep(refs, beside, cached):
    """Writes the refs as JSON that `_parse` reads; where neither folder can be written the pickle is read again next time."""
    entries = [
        {
            "image_id": ref.image_id,
            "split": ref.split,
            "ann_id": list(ref.annotation_ids) or [NO_TARGET],
            "sentences": [{"sent": sentence} for sentence in ref.sentences],
        }
        for ref in refs
    ]
    text = json.dumps(entries)
    for path in (beside, cached):
        with contextlib.suppress(OSError):
            path.parent.mkdir(parents=True, exist_ok=True)
            partial = path.with_name(f"{path.name}.{os.getpid()}.partial")  # several processes may open the data set at once
            try:
                partial.write_text(text, encoding="utf-8")
                os.replace(partial, path)
            finally:
                partial.unlink(missing_ok=True)
            return


def _cache_path(source):
    """In the user's cache: one name for each state of the pickle."""
    stat = source.stat()
    state = f"{source.resolve()} {stat.st_size} {stat.st_mtime_ns}"
    return cache_dir() / "refs" / f"{hashlib.sha256(state.encode()).hexdigest()[:16]}.json"
