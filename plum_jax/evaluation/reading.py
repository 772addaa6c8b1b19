"""Prediction files on disk -> their entries, in any of three layouts: a JSON array, an object that holds it, JSON lines."""

import dataclasses
import json
import math
from pathlib import Path

from data_pipelines.folders import check_regular
from data_pipelines.json_array import scan, scan_object
from plum_jax.errors import UserError
from plum_jax.evaluation.schema import show

LINES = (".jsonl", ".ndjson")
LAYOUT = "a JSON array of predictions, an object with the array predictions, or JSON lines"
HEADER = ("better", "model", "version", "metrics")  # fields beside predictions


@dataclasses.dataclass(frozen=True)
class PredictionFile:
    """`entries`: [(where, value)] with where "entry 3" or "line 4", counted from 0 and 1 as their readers do."""

    path: Path
    header: dict
    entries: list


def read_predictions(path):
    """-> PredictionFile; the entries are not checked yet. UserError when the file is not readable or holds no prediction."""
    path = Path(path)
    layout = _layout(path)
    if layout == "lines":
        header, entries = {}, list(_lines(path))
    elif layout == "array":
        header, entries = {}, [(f"entry {i}", value) for i, (_, _, value) in enumerate(scan(path, LAYOUT, DECODER))]
    else:
        header, entries = _object(path)
    if not entries:
        raise UserError(f"{path}: holds no prediction; give {LAYOUT}")
    return PredictionFile(path, header, entries)


def _layout(path):
    """ "lines", "array" or "object", from the name or the first line."""
    try:
        check_regular(path)
        with open(path, "rb") as file:
            first = next((line for line in file if line.strip(b" \t\r\n\xef\xbb\xbf")), b"").strip(b" \t\r\n\xef\xbb\xbf")
    except FileNotFoundError as error:
        raise UserError(f"{path}: no such file; give {LAYOUT}") from error
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}); give {LAYOUT}") from error
    if not first:
        raise UserError(f"{path}: is empty; give {LAYOUT}")
    if path.suffix.lower() in LINES:
        return "lines"
    if not first.startswith(b"{"):
        return "array"
    try:
        value = json.loads(first)
    except (ValueError, RecursionError):
        return "object"
    return "object" if "predictions" in value else "lines"


def _lines(path):
    with open(path, "rb") as file:
        for number, line in enumerate(file, 1):
            try:
                text = line.decode("utf-8-sig" if number == 1 else "utf-8").strip()
                if text:
                    yield f"line {number}", DECODER.decode(text)
            except UnicodeDecodeError as error:
                raise UserError(f"{path}: line {number}: is not UTF-8 ({error.reason}); write the file as UTF-8") from error
            except RecursionError as error:
                raise UserError(f"{path}: line {number}: is nested too deeply; give one prediction a line") from error
            except ValueError as error:
                said = f"not readable as JSON ({error})"
                raise UserError(f"{path}: line {number}: {said}; give one prediction a line, or take the line out") from error


def _object(path):
    header, entries, found = {}, [], False
    for name, value in scan_object(path, LAYOUT, DECODER):
        if name == "predictions":
            found = True
            if value != []:  # an array comes element by element; [] stands for an empty one
                entries.append((f"entry {len(entries)}", value))
        else:
            header[name] = value
    if not found:
        raise UserError(f"{path}: is a JSON object without predictions; give {LAYOUT}")
    unknown = next((name for name in header if name not in HEADER and not name.startswith("x_")), None)
    if unknown is not None:
        raise UserError(f"{path}: has the unknown field {show(unknown)} beside predictions; use {', '.join(HEADER)}")
    if header.get("better", "lower") not in ("lower", "higher"):
        raise UserError(f'{path}: better is {show(header["better"])}; give "lower" or "higher"')
    return header, entries


def _reject(name):
    raise ValueError(f"{name} is not a JSON number; write null where there is no number")


def _finite(text):
    number = float(text)
    if not math.isfinite(number):
        _reject(text[:20])
    return number


DECODER = json.JSONDecoder(parse_constant=_reject, parse_float=_finite)
