"""Run folders and weights on disk or in a bucket: `gs://bucket/run` works where a folder does.

Local paths are `pathlib.Path`, so nothing changes for them. Paths that begin with gs:// are `etils.epath.Path`, which reads and
writes whole objects through gcsfs. A bucket knows no rename and no append: an object appears whole when it is written, and what
grows (metrics.csv, TensorBoard) is kept on the local disk and uploaded now and then (`Mirror`).
"""

import atexit
import importlib.util
import os
import shutil
import tempfile
import time
from pathlib import Path

from plum_jax.errors import UserError

SCHEME = "gs://"
PUBLISH_SECONDS = 60.0  # between two uploads of files that grow


def is_remote(path):
    """Whether a path lies in a bucket."""
    return os.fspath(path).startswith(SCHEME)


def as_path(path):
    """Text or path -> pathlib.Path, or epath.Path of gs://. UserError for other schemes, and where gcsfs is missing."""
    text = os.fspath(path)
    if not is_remote(text):
        if "://" in text:
            raise UserError(f"{text}: is neither a local path nor {SCHEME}BUCKET/...; give one of those")
        return Path(text)
    if not text.removeprefix(SCHEME).strip("/"):
        raise UserError(f"{text}: names no bucket; write {SCHEME}BUCKET/FOLDER")
    if importlib.util.find_spec("gcsfs") is None:
        raise UserError(f"{text}: needs the package gcsfs; run pip install 'plum_jax[gcs]'")
    import fsspec
    from etils import epath

    # Other processes write to the same folder: what was listed a while ago says nothing.
    fsspec.config.conf.setdefault("gs", {}).setdefault("use_listings_cache", False)
    return epath.Path(text)


def absolute(path):
    """`as_path(path)`, made absolute; a bucket has no working folder."""
    path = as_path(path)
    return path if is_remote(path) else path.absolute()


def check_local(path, why):
    """UserError for a path in a bucket where only local files will do. `why`: what to do instead."""
    if is_remote(path):
        raise UserError(f"{path}: must be a local folder here; {why}")


def check_bucket(path):
    """UserError when a gs:// path cannot be listed: no such bucket, no permission, no credentials."""
    bucket = as_path("/".join(os.fspath(path).split("/")[:3]))
    try:
        found = bucket.exists()
    except Exception as error:  # whatever gcsfs, google-auth and aiohttp raise for a bucket that is out of reach
        what = f"{type(error).__name__}: {next(iter(str(error).splitlines()), '')[:160]}"
        raise UserError(
            f"{path}: cannot be reached ({what}); check its name and `gcloud auth application-default login`, or the service "
            "account of the machine"
        ) from error
    if not found:
        raise UserError(
            f"{path}: there is no such bucket, or it may not be read; gcloud storage buckets create {bucket} makes one"
        )


def write_whole(path, content):
    """Writes bytes so that a reader never sees half of them: under a temporary name, then renamed; an object appears whole."""
    path = as_path(path)
    if is_remote(path):
        path.write_bytes(content)
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        temporary.write_bytes(content)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def files_below(folder):
    """Sorted names of all files below a folder, relative to it, with slashes."""
    folder = as_path(folder)
    if not is_remote(folder):
        return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
    found = []
    for path in folder.iterdir():
        if path.is_dir():
            found += [f"{path.name}/{name}" for name in files_below(path)]
        elif path.name:  # not the empty object that some tools put in the place of a folder
            found.append(path.name)
    return sorted(found)


def move_folder(source, target):
    """Moves a folder; in a bucket its files are copied one by one, then deleted."""
    if not is_remote(source):
        os.replace(source, target)
        return
    for name in files_below(source):
        (target / name).write_bytes((source / name).read_bytes())
    source.rmtree()


def remove_folder(folder):
    """Deletes a folder with all it holds; one that is not there is no fault."""
    if is_remote(folder):
        folder.rmtree(missing_ok=True)
    else:
        shutil.rmtree(folder, ignore_errors=True)


def fetched(folder):
    """A local folder as it is; a small one of a bucket as a temporary copy, for libraries that read local files only."""
    if not is_remote(folder):
        return folder
    copy = _temporary()
    for name in files_below(folder):
        _copy(as_path(folder) / name, copy / name)
    return copy


class Mirror:
    """Files that grow, for a folder that may lie in a bucket: `local` is the folder itself, or a temporary one to write to.

    `publish` uploads the files that have changed since the last time, each as a whole, and deletes those that were deleted;
    it does nothing for a local folder.
    """

    def __init__(self, folder, keep=()):
        """keep: names of files and folders that are continued, and therefore fetched first."""
        self.folder = as_path(folder)
        self.remote = is_remote(self.folder)
        self.local = _temporary() if self.remote else self.folder
        self.uploaded, self.when = {}, time.monotonic()
        for name in keep if self.remote else ():
            inside = [f"{name}/{inner}" for inner in files_below(self.folder / name)] if (self.folder / name).is_dir() else []
            for each in inside or ([name] if (self.folder / name).exists() else []):
                _copy(self.folder / each, self.local / each)
                self.uploaded[each] = _state(self.local / each)

    def publish(self, *, now=True):
        """Uploads what has changed. `now=False`: only when the last time is PUBLISH_SECONDS ago."""
        if not self.remote or not (now or time.monotonic() - self.when >= PUBLISH_SECONDS):
            return
        found = {name: _state(self.local / name) for name in files_below(self.local)}
        for name, state in found.items():
            if self.uploaded.get(name) != state:
                (self.folder / name).write_bytes((self.local / name).read_bytes())
        for name in self.uploaded.keys() - found.keys():
            (self.folder / name).unlink(missing_ok=True)
        self.uploaded = found
        self.when = time.monotonic()

    def close(self):
        """Uploads the rest."""
        self.publish()


def _copy(source, target):
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_bytes(source.read_bytes())


def _temporary():
    """A folder that is gone when the program ends."""
    folder = Path(tempfile.mkdtemp(prefix="plum_"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder


def _state(path):
    found = path.stat()
    return found.st_size, found.st_mtime_ns
