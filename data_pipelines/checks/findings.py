"""What a check found: errors and warnings apart, as numbered lines or as JSON; and images that are safe to open."""

import json
import stat
from pathlib import Path

from data_pipelines.images import load_image
from plum_jax.errors import UserError


class Findings:
    """`errors` and `warnings`: lists of {"file", "id", "problem"}; id is that of an annotation or entry, or None."""

    def __init__(self):
        self.errors, self.warnings = [], []

    def error(self, file, number, problem):
        self.errors.append({"file": str(file), "id": number, "problem": problem})

    def warn(self, file, number, problem):
        self.warnings.append({"file": str(file), "id": number, "problem": problem})

    def finish(self, numbers, lines, as_json):
        """Prints the report on stdout and returns the exit status: 1 with errors, else 0."""
        if as_json:
            print(json.dumps({**numbers, "errors": self.errors, "warnings": self.warnings}, indent=2))
        else:
            for title, found in (("errors", self.errors), ("warnings", self.warnings)):
                lines = [*lines, f"{len(found)} {title}"]
                lines += [f"{number}. {_line(finding)}" for number, finding in enumerate(found, 1)]
            print("\n".join(lines).encode("utf-8", "replace").decode("utf-8"))
        return 1 if self.errors else 0


def _line(finding):
    number = "" if finding["id"] is None else f" {finding['id']}"
    return f"{finding['file']}{number}: {finding['problem']}"


def image_size(path):
    """Path -> (H, W) of the upright image, decoded whole. UserError, also for a pipe or device, which would never end."""
    try:
        if not stat.S_ISREG(Path(path).stat().st_mode):
            raise UserError(f"{path}: is not a regular file; replace it by an image")
    except FileNotFoundError as error:
        raise UserError(f"{path}: no such image; check the path") from error
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: cannot be read ({error}); change its permissions or its name") from error
    return load_image(path).shape[:2]
