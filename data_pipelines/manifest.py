"""build.json: what a build holds, per split."""

import json
from pathlib import Path

from plum_jax.errors import UserError

FORMAT = 1  # of build.json and the records; readers refuse others


def read_build(folder):
    """The dictionary of build.json. UserError when it is missing, unreadable or of another format."""
    path = Path(folder) / "build.json"
    try:
        facts = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(facts["splits"], dict) or facts["format"] != FORMAT:
            raise ValueError(f"format {facts['format']!r}, this version reads {FORMAT}")
    except FileNotFoundError as error:
        raise UserError(f"{path}: no such file; give the folder that plum data build wrote (.../{{data set}}/1.0.0)") from error
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path}: is no description of a build ({error}); build again") from error
    return facts
