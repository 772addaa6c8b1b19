"""ReasonSeg (D 4.5): images, queries that need a thought, and one target region; responses and explanations in words.

The region is the target of the response, which is one span as a whole. The reference keys its spans by the query, which no
response contains, so that its masks are never trained on (D20); it also takes the response of another query (D20c) and
answers images without an explanation by their own query (D20b).
"""

import functools
import json
import warnings
from pathlib import Path

import numpy as np
from PIL import Image

from data_pipelines.conversation import END, IMAGE, Span
from data_pipelines.images import BROKEN
from data_pipelines.left_out import LeftOut
from data_pipelines.masks import decode_polygon, encode_rle
from data_pipelines.record import Dialogue, Sample
from data_pipelines.templates import reason as templates
from plum_jax.errors import UserError

FOLDER = "reason_seg/ReasonSeg"
LAYOUT = f"{FOLDER}/{{train,val,test}}/<name>.jpg and <name>.json"
TARGET, IGNORE = 1, 255
EXIF_ORIENTATION = 0x0112


class ReasonSeg:
    """A Source of queries about images.

    Args:
      root: folder of all data sets.
      split: train, val or test.
      per_image: up to so many queries of an image make one sample.
      explanatory: probability that an image with an explanation gives question and response alone, without a mask; the
        others give, half and half, a request for the mask and one for mask and explanation.
      responses: JSON file {stem: [one declarative response for each query]}; default, if it exists:
        <split>/<split>_reformulated_responses.json. Without a response a carrier sentence of
        templates/reason.py stands around the query.
      span: "response", or "query" to make only the query in a carrier sentence the span.

    Pixels of `ignore` shapes do not belong to the target: they count as background.
    """

    family, dataset, grounded = "reason", "reason_seg", True

    def __init__(self, root, *, split="train", per_image=3, explanatory=0.1, responses=None, span="response"):
        folder = Path(root) / FOLDER / split
        self._draw = self.drawing(per_image=per_image, explanatory=explanatory, span=span)
        images = sorted(folder.glob("*.jpg"))
        if not images:
            raise UserError(f"{folder}: has no images; the layout is {LAYOUT} (docs/data/reasonseg.md)")
        said_path = folder / f"{split}_reformulated_responses.json"
        explained_path = folder.parent / "explanatory" / "train.json"
        said = _read_responses(responses or said_path, required=bool(responses))
        explained = _read_explanations(explained_path)
        left_out, self._records = LeftOut(), []
        for path in images:
            try:
                self._records.append(_read_record(path, said, explained.get(path.name)))
            except ValueError as reason:
                left_out.add(f"{split}/{path.stem}", str(reason), f"{path}: {reason}")
        for path in sorted(folder.glob("*.json")):
            if path != said_path and not path.with_suffix(".jpg").exists():
                left_out.add(f"{split}/{path.stem}", "image file missing", f"{path.with_suffix('.jpg')}: image file missing")
        if not self._records:
            raise UserError(f"{folder}: no image is usable (left out: {left_out}); the layout is {LAYOUT}")
        self.skipped, self.faults, self.parts = left_out.counts, left_out.faults, ()
        paths = (Path(responses) if responses else said_path, explained_path, *(p.with_suffix(".json") for p in images))
        self.index_files = tuple(path for path in paths if path.is_file())
        self.without_response = sum(response is None for record in self._records for response in record["responses"])
        if self.without_response:
            warnings.warn(
                f"{folder}: {self.without_response} queries have no response and get a carrier sentence; give "
                "responses=FILE to train on your own (docs/data/reasonseg.md)",
                stacklevel=2,
            )

    def __len__(self):
        return len(self._records)

    def record(self, index):
        """-> {"key", "image", "queries", "responses", "is_sentence", "explanation", "mask"}; None for a missing text."""
        return self._records[index]

    def ignored(self, index):
        """Run lengths of what the `ignore` shapes cover, which an evaluation leaves out; None without any."""
        record = self._records[index]
        labels = label_map(read_annotation(Path(record["image"]).with_suffix(".json"))[2], record["mask"]["size"])
        return encode_rle(labels == IGNORE) if (labels == IGNORE).any() else None

    def sample(self, index, rng):
        return self._draw(self._records[index], rng)

    @classmethod
    def drawing(cls, *, per_image=3, explanatory=0.1, span="response"):
        """What makes a Sample from a record: (record, rng) -> up to `per_image` of its queries."""
        if per_image < 1 or not 0 <= explanatory <= 1 or span not in ("response", "query"):
            raise UserError(
                f"{cls.dataset}: per_image {per_image}, explanatory {explanatory}, span {span!r}; use 1 or more, a "
                "probability, and response or query"
            )
        return functools.partial(_draw, per_image=per_image, explanatory=explanatory, span=span)


def _draw(record, rng, *, per_image, explanatory, span):
    chosen = rng.permutation(len(record["queries"]))[:per_image]
    choice = 0
    if record["explanation"] is not None:
        choice = 2 if rng.random() < explanatory else int(rng.integers(2))
    dialogues = tuple(_dialogue(record, k, choice, span, rng) for k in chosen)
    masks = () if choice == 2 else (record["mask"],)
    return Sample(ReasonSeg.family, ReasonSeg.dataset, record["key"], record["image"], dialogues, masks)


def _dialogue(record, k, choice, span, rng):
    """Query k under choice 0 (mask), 1 (mask and explanation) or 2 (words alone)."""
    query, (answer, start, end) = record["queries"][k], response(record, k, span)
    if choice == 0:
        requests = templates.LONG if record["is_sentence"] else templates.SHORT
        question = requests[rng.integers(len(requests))].format(query=query)
    else:
        question = f"{IMAGE}\n{query}"
    if choice == 1:
        question += f" {templates.EXPLAIN[rng.integers(len(templates.EXPLAIN))]}"
        answer += f" {record['explanation']}"
    if choice == 2:
        return Dialogue(((question, answer),))
    return Dialogue(((question, answer),), (Span(0, start, end),), (0,))


def response(record, k, span):
    """-> (response to query k, first character of its span, last + 1)."""
    if record["responses"][k] is not None:
        return record["responses"][k], 0, len(record["responses"][k])
    carrier = templates.LONG_CARRIER if record["is_sentence"] else templates.SHORT_CARRIER
    query = record["queries"][k] if record["is_sentence"] else record["queries"][k].rstrip(" .?!")
    answer = carrier.format(query=query)
    start = carrier.index("{query}")
    return (answer, start, start + len(query)) if span == "query" else (answer, 0, len(answer))


def label_map(shapes, hw):
    """[{"label", "points"}] -> uint8[H, W]: TARGET, IGNORE, or 0. Later in the order of falling area covers earlier.

    `flag` shapes are no regions. Raises ValueError for a shape that cannot be drawn.
    """
    painted = []
    for shape in shapes:
        label = shape["label"].lower()
        if label != "flag":
            corners = [[float(x), float(y)] for x, y in shape["points"]]
            corners += corners[-1:] * (3 - len(corners))  # a line or a dot is drawn as such
            painted.append((decode_polygon([number for corner in corners for number in corner], hw), "ignore" in label))
    labels = np.zeros(hw, np.uint8)
    for mask, ignored in sorted(painted, key=lambda item: -int(item[0].sum())):
        labels[mask > 0] = IGNORE if ignored else TARGET
    return labels


def read_annotation(path):
    """JSON in UTF-8, or else in cp1252 -> (queries, is_sentence, shapes). Raises ValueError with the reason."""
    try:
        data = path.read_bytes()
    except OSError as error:
        raise ValueError("annotation missing") from error
    try:
        entry = _loads(data)
        queries, is_sentence = entry["text"], bool(entry["is_sentence"])
        shapes = [{"label": str(shape["label"]), "points": list(shape["points"])} for shape in entry["shapes"]]
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise ValueError("annotation not readable") from error
    if not isinstance(queries, list) or not queries or not all(map(_is_text, queries)):
        raise ValueError("a query is empty or no text")
    return tuple(query.strip() for query in queries), is_sentence, shapes


def _loads(data):
    """JSON text of bytes in UTF-8 (with or without a mark in front) or, where that fails, cp1252."""
    try:
        return json.loads(data.decode("utf-8-sig"))
    except UnicodeDecodeError:
        return json.loads(data.decode("cp1252"))


def _read_record(path, said, explanation):
    queries, is_sentence, shapes = read_annotation(path.with_suffix(".json"))
    responses = (None,) * len(queries)
    if path.stem in said:
        responses = tuple(said[path.stem])
        if len(responses) != len(queries):
            raise UserError(
                f"{path.with_suffix('.json')}: has {len(queries)} queries but {len(responses)} responses under {path.stem!r}; "
                "give one response for each query, in the same order"
            )
    hw = _upright_size(path)
    try:
        target = label_map(shapes, hw) == TARGET
    except (ValueError, TypeError, OverflowError) as error:
        raise ValueError("shape not readable") from error
    if not target.any():
        raise ValueError("no target pixel")
    return {
        "key": f"{path.parent.name}/{path.stem}", "image": str(path), "queries": queries, "responses": responses,
        "is_sentence": is_sentence, "explanation": explanation, "mask": encode_rle(target),
    }  # fmt: skip


def _upright_size(path):
    """(H, W) after the EXIF orientation, from the head of the file: shapes are drawn on the upright image."""
    try:
        with Image.open(path) as image:
            width, height = image.size
            turned = image.getexif().get(EXIF_ORIENTATION, 1) >= 5
    except (*BROKEN, Image.DecompressionBombError) as error:
        raise ValueError("image not readable") from error
    return (width, height) if turned else (height, width)


def _read_responses(path, *, required):
    """{stem: [responses]}, {} where a file that is not required is missing."""
    try:
        said = _loads(Path(path).read_bytes())
    except FileNotFoundError as error:
        if required:
            raise UserError(f"{path}: no such file; give JSON {{stem: [responses]}}") from error
        return {}
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{path}: not readable as JSON ({error}); write the file again") from error
    if not isinstance(said, dict):
        raise UserError(f"{path}: holds a {type(said).__name__}; give JSON {{stem: [responses]}}")
    for stem, texts in said.items():
        if not isinstance(texts, list) or not all(_is_text(text) for text in texts):
            raise UserError(f"{path}: {stem!r} has {json.dumps(texts)[:100]}; give a list of texts without {IMAGE} and {END}")
    return {stem: [text.strip() for text in texts] for stem, texts in said.items()}


def _read_explanations(path):
    """{image file name: explanation}, {} without the file."""
    try:
        entries = _loads(path.read_bytes())
        return {entry["image"]: entry["outputs"].strip() for entry in entries if _is_text(entry["outputs"])}
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise UserError(
            f'{path}: is not a JSON array of {{"image", "query", "outputs"}} ({error!r}); download it again'
        ) from error


def _is_text(value):
    return isinstance(value, str) and bool(value.strip()) and IMAGE not in value and END not in value
