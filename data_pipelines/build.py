"""`plum data build`: any source of training data as checksummed ArrayRecord shards, written in parallel, resumable."""

import argparse
import collections
import csv
import hashlib
import io
import json
import math
from pathlib import Path

from data_pipelines.build_sources import open_named
from data_pipelines.kinds import KINDS
from data_pipelines.layout import SPLIT, build_folder, shard_name, write_tfds_metadata
from data_pipelines.manifest import FORMAT, read_build
from data_pipelines.shard_workers import build_lock, write_shards
from data_pipelines.shards import part_path, read_part, whole_part
from data_pipelines.storing import Recorder, is_storable
from plum_jax.console import counted
from plum_jax.errors import UserError
from plum_jax.run_record import RunRecord, sha256_of, versions, write_json, write_text


def main(argv=None):
    arguments = _parser().parse_args(argv)
    options = dict(_option(text) for text in arguments.option)
    for name in ("workers", "shard_records", "draws"):
        if getattr(arguments, name) < 1:
            raise UserError(f"--{name.replace('_', '-')} is {getattr(arguments, name)}; give at least 1")
    sources = [_named(source, arguments.root, options) for source in arguments.sources]
    print(
        f"building {', '.join(arguments.sources)} {f'from {arguments.root} ' if arguments.root else ''}into {arguments.out}",
        flush=True,
    )
    with RunRecord(arguments.out, "data build") as record:
        for name, root, chosen in sources:
            for split in arguments.split:
                with record.timing(f"{root} {name} {split}"):
                    folder = build(
                        name,
                        root,
                        arguments.out,
                        split=split,
                        options=chosen,
                        workers=arguments.workers,
                        resume=arguments.resume,
                        strict=arguments.strict,
                        shard_records=arguments.shard_records,
                        draws=arguments.draws,
                        log=lambda line: print(line, flush=True),
                    )
    print(f"wrote {folder}; plum data verify {folder} compares it with its checksums, on any machine")
    return 0


def _parser():
    parser = argparse.ArgumentParser(
        prog="plum data build",
        description="Store data sets as ArrayRecord: one record for each image, with everything that training draws from.",
    )
    known = ", ".join(KINDS)
    parser.add_argument(
        "sources", nargs="+", metavar="SOURCE", help=f"{known}; a folder of PARTONOMY questions; or module:Class"
    )
    parser.add_argument("--root", help="folder of the raw data, as in docs/data; needed unless every SOURCE is a folder")
    parser.add_argument("--out", required=True, help="folder of the build")
    parser.add_argument("--split", nargs="+", default=["train"], help="splits to build, default train")
    parser.add_argument("--workers", type=int, default=1, help="processes; the result does not depend on it")
    parser.add_argument("--resume", action="store_true", help="continue a build that was interrupted, or repair a damaged one")
    parser.add_argument("--strict", action="store_true", help="end at the first bad record instead of listing it")
    parser.add_argument("--shard-records", type=int, default=1024, help="records of the source for each shard, default 1024")
    parser.add_argument(
        "--draws", type=int, default=4, help="samples of each record, for a source that cannot store records whole; default 4"
    )
    parser.add_argument(
        "--option", action="append", default=[], metavar="NAME=VALUE", help="argument of the source, such as dataset=refcoco"
    )
    return parser


def _named(source, root, options):
    """SOURCE of the command line -> (name, root, options). A folder is one of PARTONOMY questions, called as it is called."""
    if source not in KINDS and Path(source).is_dir():
        return "explanatory", source, {"dataset": Path(source).resolve().name, **options}
    if not root:
        raise UserError(f"--root is missing: {source} is no folder, so give the folder that its raw data is in")
    return source, root, options


def _option(text):
    name, equals, value = text.partition("=")
    if not equals or not name.isidentifier():
        raise UserError(f"--option {text!r} is not NAME=VALUE")
    try:
        return name, json.loads(value)
    except ValueError:
        return name, value


def build(
    name,
    root,
    out,
    *,
    split="train",
    options=None,
    workers=1,
    resume=False,
    strict=False,
    shard_records=1024,
    draws=4,
    log=print,
):
    """Builds one split of one source and returns its folder. The files depend on the data and on these arguments except
    `workers`, `resume` and `strict`, not on how often the build was interrupted.

    Raises UserError for a build that is there already (without `resume`), or that is of other data.
    """
    if not SPLIT.fullmatch(split):
        raise UserError(f"split {split!r} is no name; use letters, digits and _")
    root, options = Path(root), options or {}
    source = open_named(name, root, split, options)
    if len(source) == 0:
        raise UserError(f"{root}: {name} has no record in split {split}; check the folder with plum data check")
    folder = build_folder(out, source.family, source.dataset)
    plan = _plan(name, source, root, split, options, shard_records, draws)
    if strict and source.skipped:
        raise UserError(f"{root}: {name} leaves out {dict(source.skipped)}; repair the data, or build without --strict")
    with build_lock(folder):
        _begin(folder, split, plan, resume)
        count, whole = plan["shards"], {}
        if resume:
            parts = ((number, whole_part(folder, split, number)) for number in range(count))
            whole = {number: part for number, part in parts if part}
            log(f"{folder}: {len(whole)} of {count} shards of {split} are whole")
        jobs = [
            (range(n * shard_records, min(len(source), (n + 1) * shard_records)),
             folder / shard_name(source.family, split, n, count), part_path(folder, split, n))
            for n in range(count) if n not in whole
        ]  # fmt: skip
        write_shards(Recorder(source, root, options, draws), jobs, workers, strict=strict, log=log)
        facts = _finish(folder, split, plan, source, root)
    shards = counted(count, "shard")
    left_out = ", ".join(f"{count} {reason}" for reason, count in facts["skipped"].items()) or "none"
    log(f"{folder}: {split} has {facts['records']} records, {shards}; left out: {left_out} (errors.csv)")
    return folder


def _plan(name, source, root, split, options, shard_records, draws):
    """What decides which bytes are written; a build is only continued with the same plan."""
    plan = {
        "source": name,
        "family": source.family,
        "dataset": source.dataset,
        "grounded": bool(source.grounded),
        "options": options,
        "source_records": len(source),
        "source_skipped": dict(sorted(source.skipped.items())),
        "shard_records": shard_records,
        "shards": math.ceil(len(source) / shard_records),
        "whole_records": is_storable(source),
        "draws": None if is_storable(source) else draws,
        "index_files": {
            Path(path).relative_to(root).as_posix() if Path(path).is_relative_to(root) else str(path): sha256_of(path)
            for path in getattr(source, "index_files", ())
        },
        "versions": {key: value for key, value in versions().items() if key in ("plum_jax", "array_record", "pycocotools")},
    }
    text = json.dumps({"split": split, **plan}, sort_keys=True)
    return {**plan, "fingerprint": hashlib.sha256(text.encode()).hexdigest()}


def _begin(folder, split, plan, resume):
    """Writes the plan into build.json, after comparing it with what is there."""
    known = read_build(folder) if (folder / "build.json").is_file() else {"format": FORMAT, "splits": {}}
    old = known["splits"].get(split)
    if old and not resume:
        raise UserError(f"{folder}: holds split {split} already; continue or repair it with --resume, or remove the folder")
    if old and old["fingerprint"] != plan["fingerprint"]:
        changed = [key for key in plan if key != "fingerprint" and plan[key] != old.get(key)]
        raise UserError(
            f"{folder}: was begun with other {', '.join(changed) or 'data'} ({_difference(old, plan, changed)}); "
            f"use the same data and options, or another --out"
        )
    for temporary in folder.glob(f".plum_*-{split}.array_record-*.tmp"):
        temporary.unlink()
    known["splits"][split] = {"status": "unfinished", **plan}
    write_json(folder / "build.json", known)


def _difference(old, plan, changed):
    return "; ".join(f"{key} {json.dumps(old.get(key))[:80]} then, {json.dumps(plan[key])[:80]} now" for key in changed)


def _finish(folder, split, plan, source, root):
    """build.json, errors.csv and TFDS's description, from the parts. Returns what build.json says about the split."""
    parts = [read_part(part_path(folder, split, number)) for number in range(plan["shards"])]
    errors = [["", key, reason, str(message).replace(f"{root}/", "")] for key, reason, message in getattr(source, "faults", ())]
    named = collections.Counter(error[2] for error in errors)
    for reason, n in plan["source_skipped"].items():
        if n > named[reason]:
            errors.append(["", "", reason, f"{n - named[reason]} more" if named[reason] else f"{n} times"])
    errors += [error for part in parts for error in part["errors"]]
    records = sum(part["records"] for part in parts)
    if records == 0:
        raise UserError(f"{folder}: no record of {split} can be used; the first fault: {errors[0][3] if errors else 'unknown'}")
    skipped = collections.Counter(plan["source_skipped"]) + collections.Counter(e[2] for part in parts for e in part["errors"])
    splits = read_build(folder)["splits"]
    splits[split] = {
        "status": "complete",
        **plan,
        "records": records,
        "skipped": dict(sorted(skipped.items())),
        "parts": list(getattr(source, "parts", ())),
        "files": {part["shard"]: {key: part[key] for key in ("sha256", "file_bytes", "records", "bytes")} for part in parts},
    }
    _write_errors(folder / "errors.csv", split, errors)
    complete = {
        name: [(file["records"], file["bytes"]) for file in facts["files"].values()]
        for name, facts in splits.items()
        if facts["status"] == "complete"
    }
    metadata = {name: plan[name] for name in ("family", "dataset", "grounded", "source", "options", "whole_records")}
    write_tfds_metadata(folder, plan["family"], plan["dataset"], complete, metadata)
    write_json(folder / "build.json", {"format": FORMAT, "splits": dict(sorted(splits.items()))})
    return splits[split]


def _write_errors(path, split, errors):
    """Replaces the rows of a split: split, number of the record (empty for what the source left out), key, reason, message."""
    others = []
    if path.is_file():
        with open(path, encoding="utf-8", newline="") as file:
            others = [row for row in list(csv.reader(file))[1:] if row[0] != split]
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["split", "record", "key", "reason", "message"])
    writer.writerows(sorted([*others, *([split, *error] for error in errors)], key=lambda row: row[0]))
    write_text(path, text.getvalue().encode("utf-8", "backslashreplace").decode())


if __name__ == "__main__":
    from plum_jax import cli

    raise SystemExit(cli.run(main))
