"""Checks values read from a prediction file against predictions.schema.json, and says in one sentence what is wrong.

The schema is the only place that says what a prediction looks like. Each part of it has a `description` that reads well after
"give": the fix of the message.
"""

import difflib
import functools
import json
from pathlib import Path

SCHEMA_FILE = Path(__file__).with_name("predictions.schema.json")
SHOWN = 60  # characters of a wrong value in a message


class Invalid(ValueError):
    """What is wrong with a value, where in it, and the fix: '$.answer.choice is -1; give a whole number ...'."""


@functools.cache
def _schema():
    return json.loads(SCHEMA_FILE.read_text(encoding="utf-8"))


@functools.cache
def _validator(name):
    from jsonschema import Draft202012Validator
    from jsonschema.validators import extend

    whole = lambda _, value: type(value) is int  # noqa: E731, the standard takes 1.0 as well, which is no place in a list
    kinds = Draft202012Validator.TYPE_CHECKER.redefine("integer", whole)
    schema = _schema()
    return extend(Draft202012Validator, type_checker=kinds)({"$ref": f"#/$defs/{name}", "$defs": schema["$defs"]})


def check(value, name="prediction"):
    """Raises Invalid when `value` (from JSON) is not what `$defs` of the schema calls `name`."""
    errors = list(_validator(name).iter_errors(value))
    if errors:  # a misspelt field explains what else is missing
        raise Invalid(_sentence(_inmost(next((e for e in errors if e.validator == "additionalProperties"), errors[0]))))


def _inmost(error):
    """The fault itself. Of several ways to be right, the one that gets furthest knows it best: deepest into the value, or
    past its type. Where none gets anywhere the whole choice is the fault."""
    while error.context:
        best = max(error.context, key=lambda e: (len(e.path), e.validator not in ("type", "required", "minProperties")))
        if not best.path and best.validator in ("type", "required", "minProperties"):
            return error
        error = best
    return error


def _sentence(error):
    where, fix = error.json_path, _fix(error.schema)
    if error.validator == "required":
        missing = next(key for key in error.validator_value if key not in error.instance)
        wanted = _fix(error.schema.get("properties", {}).get(missing, {}))
        return f"{where} has no {missing!r}; give {wanted or fix}"
    if error.validator == "additionalProperties":
        known = list(error.schema["properties"])
        notes = "patternProperties" in error.schema  # whether names that begin with x_ are free
        unknown = next(key for key in error.instance if key not in known and not (notes and key.startswith("x_")))
        near = difflib.get_close_matches(unknown, known, n=1)
        listed = ", ".join(known) + (", or begin the name with x_" if notes else "")
        hint = f"did you mean {near[0]!r}?" if near else f"use {listed}"
        return f"{where} has the unknown field {show(unknown)}; {hint}"
    if error.validator in ("anyOf", "oneOf") and isinstance(error.instance, dict):
        return f"{where} has {', '.join(map(show, list(error.instance)[:8])) or 'no field'}; give {fix}"
    return f"{where} is {show(error.instance)}; give {fix}"


def _fix(schema):
    """Description of a part of the schema, followed to where it is defined."""
    while "description" not in schema and "$ref" in schema:
        at = _schema()
        for step in schema["$ref"].removeprefix("#/").split("/"):
            at = at[step]
        schema = at
    return schema.get("description", "")


def show(value):
    """A value as it stands in the file, at most SHOWN characters of it."""
    text = json.dumps(value, ensure_ascii=True, default=repr)
    return text if len(text) <= SHOWN else text[: SHOWN - 3] + "..."
