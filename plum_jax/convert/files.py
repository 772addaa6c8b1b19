"""What a weights file is by its first bytes, and the one file that is open while its tensors are read."""

from pathlib import Path

from plum_jax.errors import UserError

SUFFIXES = {".safetensors": "safetensors", ".bin": "PyTorch", ".pth": "PyTorch", ".pt": "PyTorch"}

_held = {}  # at most one entry: {(path, opener, inode, size, time of change): the opened file}


def hold(path, opener):
    """The opened file: `opener(path)`, or what it returned last time if no other file was opened since and it is the same.

    One file is held at a time, so that a checkpoint of many shards needs the memory (or the mapping) of one.
    """
    try:
        stat = path.stat()
    except OSError as error:
        raise UserError(f"{path}: cannot be opened ({error.strerror}); put the file back or give another one") from None
    key = path, opener, stat.st_ino, stat.st_size, stat.st_mtime_ns
    if key not in _held:
        _held.clear()  # before the next one is opened: a file of the old PyTorch format is in memory as a whole
        _held[key] = opener(path)
    return _held[key]


def close():
    """Lets go of the file that is open."""
    _held.clear()


def check_kind(path):
    """Path of a weights file -> "safetensors" or "PyTorch", the same by its name and by its content.

    Raises:
      UserError: no such file, another extension, an empty file, a Git LFS pointer, a content that the extension denies.
    """
    path = Path(path)
    if not path.exists():
        raise UserError(f"{path}: no such file; give a {', '.join(SUFFIXES)} file")
    if path.is_dir():
        raise UserError(f"{path}: is a folder; give a {', '.join(SUFFIXES)} file in it")
    if path.suffix not in SUFFIXES:
        raise UserError(f"{path}: the extension {path.suffix!r} is not of weights; give a {', '.join(SUFFIXES)} file")
    try:
        with open(path, "rb") as file:
            head = file.read(64)
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}); change its permissions") from None
    if not head:
        raise UserError(f"{path}: is empty, 0 bytes; download it again")
    if head.startswith(b"version https://git-lfs"):
        raise UserError(f"{path}: is a Git LFS pointer instead of the weights; run `git lfs pull` in its folder")
    kind = _kind(head)
    if kind is None:
        raise UserError(f"{path}: is neither safetensors nor PyTorch, it begins with {head[:12]!r}; download it again")
    if kind != SUFFIXES[path.suffix]:
        suffix = ".safetensors" if kind == "safetensors" else ".bin"
        raise UserError(f"{path}: is a {kind} file by its content; rename it to {path.stem}{suffix}")
    return kind


def _kind(head):
    if head[6:9] == b"\0\0{":  # the length of a JSON header in eight bytes, and the header
        return "safetensors"
    return "PyTorch" if head.startswith((b"PK\3\4", b"\x80")) else None  # a zip, or the bare pickles before PyTorch 1.6
