"""`plum predict`: images -> text, masks with scores, COCO JSON and overlays. Running it again continues."""

import argparse
import csv
import glob
import io
import json
import os
import sys
import time
from pathlib import Path

from plum_jax import __version__, cli, config_io, console
from plum_jax.errors import UserError
from plum_jax.run_record import RunRecord, write_json, write_text

FORMATS = ("coco", "overlay")
SUFFIXES = (".bmp", ".gif", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp")
PARTIAL = "records.jsonl"  # one finished image a line; what a later run continues from


def main(argv=None):
    """Entry point of `plum predict`."""
    parser = argparse.ArgumentParser(prog="plum predict", description="Answer a prompt about images and mask what is named.")
    parser.add_argument("paths", nargs="+", metavar="PATH", help="image, folder (searched recursively) or glob")
    parser.add_argument("--checkpoint", default="tiny", help="a run folder, or the word tiny (default)")
    parser.add_argument("--prompt", required=True, help="the question, the same for every image")
    parser.add_argument("--out", required=True, metavar="DIR")
    parser.add_argument("--format", default="coco,overlay", help="coco, overlay or both (default)")
    parser.add_argument("--min-score", type=float, default=None, help="masks that score less are listed but not exported")
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--max-new-tokens", type=int, default=None)
    args, overrides = config_io.parse_args(parser, argv)
    formats = parse_formats(args.format)
    if args.batch_size < 1:
        raise UserError(f"--batch-size {args.batch_size} is not a batch; give 1 or more")
    paths = find_images(args.paths)
    from plum_jax.cache import enable_compilation_cache
    from plum_jax.inference import load

    enable_compilation_cache()
    console.header("predict", args.out)
    model = load(args.checkpoint)
    for override in overrides:
        config_io.apply_override(model.config, override)
    model.min_score = model.config.eval.min_score if args.min_score is None else args.min_score
    with RunRecord(args.out, "predict", model.config) as run:
        run.note(checkpoint={"path": str(model.path), "sha256": model.sha256}, prompt=args.prompt)
        began = time.monotonic()
        records, errors = predict(
            model, paths, args.prompt, args.out, formats=formats, batch_size=args.batch_size, max_new_tokens=args.max_new_tokens
        )
    masks = sum(span["status"] == "ok" for record in records for span in record["spans"])
    empty = sum(record["status"] != "ok" for record in records)
    unreadable = f", {len(errors)} unreadable (errors.csv)" if errors else ""
    print(f"{len(records)} images, {masks} masks, {empty} images with nothing found{unreadable}")
    print(f"Wrote {args.out} in {console.duration(time.monotonic() - began)}: predictions.json, {', '.join(formats)}")
    if not model.calibrated:
        print("Scores are raw confidences: plum evaluate partonomy --split val --calibrate turns them into expected IoU")
    if not records:
        raise UserError(f"{args.paths[0]}: none of {len(paths)} images could be read; see {Path(args.out) / 'errors.csv'}")


def parse_formats(text):
    """'coco,overlay' -> tuple. UserError for another word."""
    formats = tuple(dict.fromkeys(word.strip() for word in text.split(",") if word.strip()))
    for word in formats:
        if word not in FORMATS:
            raise UserError(f"--format {word!r} is unknown; use {', '.join(FORMATS)} or both with a comma")
    return formats


def find_images(patterns):
    """Files, folders and globs -> sorted image paths without repetition. UserError when one of them finds nothing."""
    found = []
    for pattern in map(str, patterns):
        path = Path(pattern)
        if path.is_dir():
            hits = [p for p in path.rglob("*") if p.suffix.lower() in SUFFIXES and p.is_file()]
        elif path.is_file():
            hits = [path]
        else:
            hits = [Path(p) for p in glob.glob(pattern, recursive=True) if Path(p).suffix.lower() in SUFFIXES]
        if not hits:
            raise UserError(f"{pattern}: no such image, folder or pattern with images ({', '.join(SUFFIXES)}); check the path")
        found += hits
    return sorted(set(found))


def predict(model, paths, prompt, out, *, formats=FORMATS, batch_size=8, max_new_tokens=None, log=sys.stderr):
    """Answers `prompt` about every image and writes OUT/predictions.json and what `formats` names.

    Batches are always the same images in the same places, padded to `batch_size`, so that a run which was stopped and
    continued writes the same files as one that was not. An unreadable image is listed in OUT/errors.csv.

    Returns:
      (records as in predictions.json, [(file, error)]).

    Raises:
      UserError: OUT holds predictions of another checkpoint, prompt or setting.
    """
    out, names = Path(out), file_names(paths)
    settings = {
        "checkpoint": model.sha256, "prompt": prompt, "batch_size": batch_size, "min_score": model.min_score,
        "calibrated": model.calibrated, "max_new_tokens": max_new_tokens or model.config.eval.max_new_tokens,
        "formats": list(formats), "images": names,
    }  # fmt: skip
    done = Journal(out / PARTIAL, settings)
    starts = [s for s in range(0, len(paths), batch_size) if any(n not in done for n in names[s : s + batch_size])]
    bar = (
        console.Progress(total=len(paths), label="predict", unit="image", start=len(done.entries), stream=log) if log else None
    )
    for start in starts:
        batch = slice(start, start + batch_size)
        entries = _batch(model, paths[batch], names[batch], prompt, out, formats, batch_size, max_new_tokens)
        done.add(entries)
        if bar:
            bar.update(len(entries))
    if bar:
        bar.__exit__(None, None, None)
    entries = [done.entries[name] for name in names]
    records = [entry for entry in entries if "error" not in entry]
    errors = [(entry["file_name"], entry["error"]) for entry in entries if "error" in entry]
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
            _save_png(answer.show(), out / "overlays" / f"{name}.png")
    return [entries[name] for name in names]


def _save_png(image, path):
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.tmp")
    image.save(temporary, "PNG")
    os.replace(temporary, path)


def _write(out, records, errors, settings, formats):
    from plum_jax import coco

    write_json(out / "predictions.json", {"settings": settings, "predictions": records})
    if "coco" in formats:
        about = {
            "description": "plum predict",
            **{key: settings[key] for key in ("prompt", "checkpoint", "calibrated", "version")},
        }
        write_json(out / "coco.json", coco.document(records, about))
    if errors:
        text = io.StringIO()
        csv.writer(text, lineterminator="\n").writerows([("file_name", "error"), *errors])
        write_text(out / "errors.csv", text.getvalue())
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
                raise UserError(f"{path}: holds a run with another {changed[0]}; give another --out or delete the folder")
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
