"""The folder that `plum export` writes: names, and the checks before anything of it is run. Imports no jax."""

import json
from pathlib import Path

from plum_jax.errors import UserError
from plum_jax.run_record import sha256_of

FORMAT = 2
MANIFEST, PARAMETERS, TOKENIZER, CALIBRATION = "manifest.json", "parameters", "tokenizer", "calibration.json"
KEYS = ("programs", "platforms", "parameters", "config", "checkpoint", "calling_convention", "versions", "files")


def files_of(folder):
    """Sorted names of the files that a manifest lists: programs, parameters, tokenizer, calibration."""
    folder = Path(folder)
    tops = [*folder.glob("*.stablehlo"), *(folder / name for name in (PARAMETERS, TOKENIZER, CALIBRATION))]
    files = [path for top in tops for path in (top.rglob("*") if top.is_dir() else [top]) if path.is_file()]
    return sorted(path.relative_to(folder).as_posix() for path in files)


def read_manifest(folder):
    """FOLDER/manifest.json as a dictionary.

    Raises:
      UserError: there is none, it cannot be read, or it is of another format.
    """
    path = Path(folder) / MANIFEST
    if not path.is_file():
        raise UserError(f"{path}: no such file; give a folder that `plum export` finished")
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
        found, complete = manifest["format"], all(key in manifest for key in KEYS)
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path}: is damaged; copy the folder again or export again") from error
    if found != FORMAT:
        raise UserError(f"{path}: has format {found!r}, this plum_jax reads {FORMAT}; export again with this version")
    if not complete:
        raise UserError(f"{path}: is damaged, parts of it are missing; copy the folder again or export again")
    return manifest


def check_files(folder, manifest, *, hashes=True):
    """UserError when a file of the manifest is missing or, with `hashes`, has another SHA-256."""
    for name, sha256 in manifest["files"].items():
        path = Path(folder) / name
        if not path.is_file():
            raise UserError(f"{path}: is missing; copy the folder again or export again")
        if hashes and sha256_of(path) != sha256:
            raise UserError(f"{path}: is damaged, its SHA-256 is not the manifest's; copy the folder again or export again")
