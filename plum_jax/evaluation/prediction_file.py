"""predictions.jsonl: one `Prediction` a line, as JSON.

Numbers pass unchanged in both directions, so that scores from the file are those of the run. Nothing is validated here: what
another program wrote is checked by `plum score` before it comes here.
"""

import dataclasses
import json
import os

from plum_jax.evaluation.prediction import Answer, Prediction, Span


def to_json(prediction):
    """Prediction -> dictionary of plain JSON values, without the optional fields that say nothing."""
    fields = _fields(prediction)
    fields["choice_scores"] = prediction.choice_scores
    fields["answers"] = {mode: _answer_to_json(answer) for mode, answer in prediction.answers.items()}
    return fields


def from_json(fields):
    """The inverse of `to_json`. KeyError or TypeError when a field is missing or unknown."""
    answers = {mode: _answer_from_json(answer) for mode, answer in fields.get("answers", {}).items()}
    return Prediction(**{"choice_scores": {}, **fields, "answers": answers})


def _fields(record):
    """{field: value} of a dataclass, in its order, without optional fields that hold their default."""
    values = {field.name: getattr(record, field.name) for field in dataclasses.fields(record)}
    return {field.name: values[field.name] for field in dataclasses.fields(record) if values[field.name] != _default(field)}


def _default(field):
    return field.default if field.default_factory is dataclasses.MISSING else field.default_factory()


def _answer_to_json(answer):
    return {**_fields(answer), "spans": [_fields(span) for span in answer.spans]}


def _answer_from_json(fields):
    values = {**fields, "spans": tuple(_span_from_json(span) for span in fields.get("spans", ()))}
    if values.get("bio_counts") is not None:
        values["bio_counts"] = tuple(tuple(pair) for pair in values["bio_counts"])
    return Answer(**values)


def _span_from_json(fields):
    char = fields.get("char")
    return Span(**{**fields, "char": None if char is None else tuple(char)})


def append(path, predictions):
    """Adds complete lines to the file and forces them to disk."""
    with open(path, "a", encoding="utf-8") as file:
        file.writelines(json.dumps(to_json(prediction), allow_nan=False) + "\n" for prediction in predictions)
        file.flush()
        os.fsync(file.fileno())


def read(path):
    """Yields the Prediction of every line."""
    with open(path, encoding="utf-8") as file:
        yield from (from_json(json.loads(line)) for line in file if line.strip())
