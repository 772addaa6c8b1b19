"""`plum predict`: images -> text, masks with scores, COCO JSON and overlays. Running it again continues."""

import contextlib
import csv
import errno
import glob
import hashlib
import io
import json
import os
import sys
import time
from pathlib import Path

from plum_jax import __version__, cli, config_io, console
from plum_jax.checkpoint_flags import add_checkpoint_flags, check_random, eval_config
from plum_jax.errors import UserError
from plum_jax.run_record import RunRecord, write_json, write_text
from plum_jax.switches import switch

WRITTEN = {"coco": "coco.json", "overlay": "overlays/"}  # a format and what it writes
FORMATS = tuple(WRITTEN)
SUFFIXES = (".bmp", ".gif", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp")
SWITCHES = ("data.tokenizer_flavour", "eval.span_scope", "eval.feedback")  # that change what is predicted
LONGEST_NAME = 200  # bytes of an overlay's name; most disks take 255
PARTIAL = "records.jsonl"  # one finished image a line; what a later run continues from


def main(argv=None):
    """Entry point of `plum predict`."""
    parser = cli.Parser(prog="plum predict", description="Answer a prompt about images and mask what is named.")
    parser.add_argument("paths", nargs="+", metavar="PATH", help="image, folder (searched recursively) or glob")
    add_checkpoint_flags(parser, default="tiny")
    parser.add_argument("--prompt", required=True, help="the question, the same for every image")
    parser.add_argument("--out", required=True, metavar="DIR")
    parser.add_argument("--format", default="coco,overlay", help="coco, overlay or both (default)")
    parser.add_argument("--min-score", type=float, default=None, help="masks that score less are listed but not exported")
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--max-new-tokens", type=int, default=None)
    args, overrides = config_io.parse_args(parser, argv)
    console.check_out(args.out)
    formats = parse_formats(args.format)
    check_numbers(args)
    paths = find_images(args.paths)
    model = load(args, overrides)
    run, began = RunRecord(args.out, "predict", model.config, goes_on=True), time.monotonic()
    run.note(checkpoint={"path": str(model.path), "sha256": model.sha256}, prompt=args.prompt)
    records, errors = predict(
        model, paths, args.prompt, args.out, formats=formats, batch_size=args.batch_size, max_new_tokens=args.max_new_tokens,
        record=run,
    )  # fmt: skip
    masks = sum(span["status"] == "ok" for record in records for span in record["spans"])
    empty = sum(record["status"] != "ok" for record in records)
    faults = f", {len(errors)} faults (errors.csv)" if errors else ""
    print(f"{len(records)} images, {masks} masks, {empty} images with nothing found{faults}")
    written = ", ".join(["predictions.json", *(WRITTEN[name] for name in formats)])
    print(f"Wrote {args.out} in {console.duration(time.monotonic() - began)}: {written}")
    if not model.calibrated:
        print("Scores are raw confidences: plum evaluate partonomy --split val --calibrate turns them into expected IoU")


def load(args, overrides):
    """Model for the arguments, with the header printed. UserError for a prompt, checkpoint or override that cannot be used."""
    from plum_jax.cache import enable_compilation_cache
    from plum_jax.inference import Model, check_prompt
    from plum_jax.loading import load_model

    check_prompt(args.prompt, "--prompt")
    enable_compilation_cache()
    console.header("predict", args.out)
    loaded = load_model(args.checkpoint, base=args.base, which=args.which)
    check_random(loaded, args.allow_random)
    loaded = loaded._replace(config=eval_config(loaded.config, None, overrides))
    model = Model(loaded)
    model.encode_prompt(args.prompt, "--prompt")
    check_score(model.min_score, "--config.eval.min_score")
    if args.min_score is not None:
        model.min_score = args.min_score
    return model


def check_numbers(args):
    """UserError for a number among the arguments that makes no sense."""
    for name, value in (("batch-size", args.batch_size), ("max-new-tokens", args.max_new_tokens)):
        if value is not None and value < 1:
            raise UserError(f"--{name} {value}: is too small; give 1 or more")
    if args.min_score is not None:
        check_score(args.min_score, "--min-score")


def check_score(value, name):
    """UserError unless 0 <= value <= 1; not a number is not in there either."""
    if not 0 <= value <= 1:
        raise UserError(f"{name} {value}: scores lie between 0 and 1; give a number there")


def parse_formats(text):
    """'coco,overlay' -> tuple. UserError for another word."""
    formats = tuple(dict.fromkeys(word.strip() for word in text.split(",") if word.strip()))
    for word in formats:
        if word not in FORMATS:
            raise UserError(f"--format {word!r} is unknown; use {', '.join(FORMATS)} or both with a comma")
    if not formats:
        raise UserError(f"--format {text!r} names no format; use {', '.join(FORMATS)} or both with a comma")
    return formats


def find_images(patterns):
    """Files, folders and globs -> sorted image paths without repetition. UserError when one of them finds nothing."""
    found = []
    for pattern in map(str, patterns):
        path = Path(pattern)
        if path.is_dir():
            hits = [p for p in path.rglob("*") if p.suffix.lower() in SUFFIXES and (p.is_file() or _dangling(p))]
        elif path.is_file():
            hits = [path]
        else:
            hits = [Path(p) for p in glob.glob(pattern, recursive=True) if Path(p).suffix.lower() in SUFFIXES]
        if not hits:
            raise UserError(f"{pattern}: no such image, folder or pattern with images ({', '.join(SUFFIXES)}); check the path")
        found += hits
    return sorted(set(found))


def _dangling(path):
    return path.is_symlink() and not path.exists()


def predict(model, paths, prompt, out, *, formats=FORMATS, batch_size=8, max_new_tokens=None, record=None, log=sys.stderr):
    """Answers `prompt` about every image and writes OUT/predictions.json and what `formats` names.

    Batches are always the same images in the same places, padded to `batch_size`, so that a run which was stopped and
    continued writes the same files as one that was not. An unreadable image, or an overlay that cannot be
    written, is listed in OUT/errors.csv. `record` is a RunRecord to enter once nothing can be refused any more.

    Returns:
      (records as in predictions.json, [(file, error)]).

    Raises:
      UserError: OUT holds predictions of another checkpoint, prompt or setting, or no image could be read.
    """
    out, names = Path(out), file_names(paths)
    if max_new_tokens is None:
        max_new_tokens = model.config.eval.max_new_tokens
    settings = {
        "checkpoint": model.sha256, "prompt": prompt, "batch_size": batch_size, "min_score": model.min_score,
        "calibrated": model.calibrated, "max_new_tokens": max_new_tokens,
        "formats": list(formats), "images": names,
        **{name: switch(model.config[name.partition(".")[0]], name) for name in SWITCHES},
    }  # fmt: skip
    done = Journal(out / PARTIAL, settings)
    with record or contextlib.nullcontext():
        starts = [s for s in range(0, len(paths), batch_size) if any(n not in done for n in names[s : s + batch_size])]
        bar = (
            console.Progress(total=len(paths), label="predict", unit="image", start=len(done.entries), stream=log)
            if log
            else None
        )
        with bar or contextlib.nullcontext():
            for start in starts:
                batch = slice(start, start + batch_size)
                entries = _batch(model, paths[batch], names[batch], prompt, out, formats, batch_size, max_new_tokens)
                done.add(entries)
                if bar:
                    bar.update(len(entries))
        entries = [dict(done.entries[name]) for name in names]
        errors = [(entry["file_name"], entry.pop("error")) for entry in entries if "error" in entry]
        records = [entry for entry in entries if "spans" in entry]
        if not records:
            done.path.unlink()  # else the next run would take the images for unreadable for good
            _write_errors(out, errors)
            raise UserError(f"{paths[0]}: none of the {len(paths)} images can be read; {out / 'errors.csv'} says why of each")
        _write(out, records, errors, {**settings, "version": __version__, "checkpoint_path": str(model.path)}, formats)
    return records, errors


def _batch(model, paths, names, prompt, out, formats, batch_size, max_new_tokens):
    """One batch -> a record or an error per image, in order. Overlays are written on the way."""
    from plum_jax import coco
    from plum_jax.inference import load_image

    pixels, entries = {}, {}
    for path, name in zip(paths, names, strict=True):
        try:
            pixels[name] = load_image(path)
        except UserError as error:
            entries[name] = {"file_name": name, "error": str(error)}
    answers = model.answer(list(pixels.values()), prompt, batch_size=batch_size, max_new_tokens=max_new_tokens)
    for name, answer in zip(pixels, answers, strict=True):
        entries[name] = coco.record(name, answer)
        if "overlay" in formats:
            try:
                _save_png(answer.show(), out / "overlays" / overlay_name(name))
            except OSError as error:
                if error.errno in (errno.ENOSPC, errno.EDQUOT):
                    raise  # it is not about this image, and the next run can do better
                entries[name]["error"] = f"overlay cannot be written: {error.strerror or error}"
    return [entries[name] for name in names]


def _save_png(image, path):
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{os.getpid()}.tmp")  # short: a long name may have no room for more
    try:
        image.save(temporary, "PNG")
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def overlay_name(name):
    """'a/b.jpg' -> 'a/b.jpg.png'; a file name that is too long for most disks is cut and told apart by a hash."""
    folder, slash, last = name.rpartition("/")
    raw = os.fsencode(last)
    if len(raw) > LONGEST_NAME:
        last = raw[: LONGEST_NAME - 13].decode("utf-8", "ignore") + "-" + hashlib.sha256(raw).hexdigest()[:12]
    return f"{folder}{slash}{last}.png"


def _write(out, records, errors, settings, formats):
    from plum_jax import coco

    write_json(out / "predictions.json", {"settings": settings, "predictions": records})
    if "coco" in formats:
        about = {
            "description": "plum predict",
            **{key: settings[key] for key in ("prompt", "checkpoint", "calibrated", "version")},
        }
        write_json(out / "coco.json", coco.document(records, about))
    _write_errors(out, errors)


def _write_errors(out, errors):
    """OUT/errors.csv, only where there are any. Bytes of a file name that are not UTF-8 are written as \\udcXX."""
    if errors:
        text = io.StringIO()
        csv.writer(text, lineterminator="\n").writerows([("file_name", "error"), *errors])
        write_text(out / "errors.csv", text.getvalue().encode("utf-8", "backslashreplace").decode())
    else:
        (out / "errors.csv").unlink(missing_ok=True)


def file_names(paths):
    """Paths relative to their common folder, with forward slashes: unique, and the same from any working folder."""
    absolute = [os.path.abspath(path) for path in paths]
    root = os.path.commonpath([os.path.dirname(path) for path in absolute])
    return [Path(os.path.relpath(path, root)).as_posix() for path in absolute]


class Journal:
    """Finished images of a run, one JSON line each behind a line of settings. A line that was cut off is ignored.

    Raises:
      UserError: the file belongs to another checkpoint, prompt or setting.
    """

    def __init__(self, path, settings):
        self.path, self.entries = path, {}
        lines = path.read_text(encoding="utf-8").split("\n")[:-1] if path.is_file() else []
        if lines:
            found = json.loads(lines[0])
            changed = sorted(key for key in settings if found.get(key) != settings[key])
            if changed:
                raise UserError(
                    f"{path}: holds a run with another {', '.join(changed)}; give another --out or delete the folder"
                )
            self.entries = {entry["file_name"]: entry for entry in map(json.loads, lines[1:])}
        path.parent.mkdir(parents=True, exist_ok=True)
        head = [json.dumps(settings), *map(json.dumps, self.entries.values())]
        write_text(path, "".join(line + "\n" for line in head))

    def __contains__(self, name):
        return name in self.entries

    def add(self, entries):
        """Appends what is new and forces it to disk."""
        fresh = [entry for entry in entries if entry["file_name"] not in self.entries]
        with open(self.path, "a", encoding="utf-8") as file:
            file.writelines(json.dumps(entry) + "\n" for entry in fresh)
            file.flush()
            os.fsync(file.fileno())
        self.entries.update({entry["file_name"]: entry for entry in fresh})


if __name__ == "__main__":
    raise SystemExit(cli.run(main))
