"""One shard of a build: written under a temporary name, described by a small JSON file, known to be whole by its SHA-256."""

import contextlib
import json
import os
from pathlib import Path

from data_pipelines.example import encode_record
from data_pipelines.storing import BadRecord
from plum_jax.errors import UserError
from plum_jax.run_record import sha256_of, write_json

OPTIONS = "group_size:1"  # one record to a block: a random read unpacks nothing else


def part_path(folder, split, number):
    return Path(folder) / "parts" / f"{split}-{number:05d}.json"


def write_shard(recorder, indices, shard, part, *, strict, go_on=lambda: True):
    """Stores the records `indices` of a `Recorder` in the file `shard`, then describes it in the file `part`.

    The part is written last, so that a part with the hash of its shard is the proof that both are whole. `go_on` is asked
    before each record; when it says no, nothing is left and False is returned. With `strict` a bad record raises UserError.
    """
    from array_record.python.array_record_module import ArrayRecordWriter

    shard, part = Path(shard), Path(part)
    part.unlink(missing_ok=True)
    temporary = shard.with_name(f".{shard.name}.tmp")
    records, size, errors, written = 0, 0, [], False
    writer = ArrayRecordWriter(str(temporary), OPTIONS)
    try:
        for index in indices:
            if not go_on():
                return False
            try:
                data = encode_record(*recorder.stored(index))
            except BadRecord as bad:
                message = str(bad).replace(f"{recorder.root}{os.sep}", "")  # the same list wherever the data lies
                if strict:
                    raise UserError(f"record {index}, {bad.reason}: {bad}") from bad
                errors.append([index, bad.key, bad.reason, message])
                continue
            writer.write(data)
            records, size = records + 1, size + len(data)
        written = True
    finally:
        try:
            writer.close()
        except RuntimeError as error:
            written = False
            what = f"{temporary.parent}: a shard cannot be written ({str(error).partition(';')[0]})"
            raise UserError(f"{what}; free some space, then repeat the command with --resume") from error
        finally:
            if not written:
                temporary.unlink(missing_ok=True)
    _sync(temporary)
    digest = sha256_of(temporary)
    os.replace(temporary, shard)
    facts = {"shard": shard.name, "sha256": digest, "file_bytes": shard.stat().st_size, "records": records, "bytes": size}
    write_json(part, {**facts, "errors": errors})
    return True


def _sync(path):
    with open(path, "rb+") as file:
        os.fsync(file.fileno())


def read_part(path):
    """Facts of a shard that was finished, or None."""
    with contextlib.suppress(OSError, ValueError):
        part = json.loads(Path(path).read_text(encoding="utf-8"))
        if isinstance(part, dict) and {"shard", "sha256", "records", "bytes", "errors"} <= part.keys():
            return part
    return None


def whole_part(folder, split, number):
    """The part of a shard whose bytes are those that were written, or None."""
    part = read_part(part_path(folder, split, number))
    shard = part and Path(folder) / part["shard"]
    return part if part and shard.is_file() and sha256_of(shard) == part["sha256"] else None
