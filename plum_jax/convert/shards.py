"""Writes tensors one by one as the shards of a Hugging Face folder, in safetensors or as PyTorch pickles."""

import os
import re
import warnings
from pathlib import Path

import ml_dtypes  # noqa: F401 - teaches NumPy the word bfloat16
import numpy as np

from plum_jax.convert.pickles import DTYPES, import_torch
from plum_jax.errors import UserError
from plum_jax.run_record import write_json

STEMS = {"safetensors": "model", "bin": "pytorch_model"}  # what transformers looks for


class ShardWriter:
    """Collects tensors and writes a shard whenever the next one would make it too large: one shard is in memory.

        with ShardWriter(folder) as writer:
            for name, array in arrays:
                writer.add(name, array)
            writer.finish()

    Shards have temporary names until `finish`, which knows their number; leaving the block without it removes them. A
    single shard is `model.safetensors` without an index, many are `model-0000k-of-0000m.safetensors` with one. `form="bin"`
    writes `pytorch_model` pickles, for programs that read no safetensors.
    """

    def __init__(self, folder, max_shard_bytes=5_000_000_000, *, form="safetensors", stem=None):
        """`stem`: the name before the extension, `adapter_model` for an adapter.

        Raises:
          UserError: the folder holds weights of this name, which would be mixed with the new ones; it cannot be written.
        """
        if form not in STEMS:
            raise UserError(f"--format: {form!r} is not known; use {' or '.join(STEMS)}")
        self.folder, self.form, self.stem, self.max_shard_bytes = Path(folder), form, stem or STEMS[form], max_shard_bytes
        old = re.compile(rf"{re.escape(self.stem)}(-\d+-of-\d+)?\.{form}(\.index\.json)?")
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            found = sorted(path.name for path in self.folder.iterdir() if old.fullmatch(path.name))
        except OSError as error:
            raise UserError(f"{folder}: cannot be written ({error.strerror}); give another --out") from None
        if found:
            raise UserError(f"{self.folder / found[0]}: is there already; give an empty --out, or remove what is in it")
        self.arrays, self.bytes, self.shards, self.weight_map, self.total = {}, 0, [], {}, 0

    def __enter__(self):
        return self

    def __exit__(self, *_):
        for path in self.shards:
            path.unlink(missing_ok=True)
        self.shards = []

    def add(self, name, array):
        """Takes a NumPy array (ml_dtypes.bfloat16 among them); it must not change before the shard is written."""
        array = np.asarray(array, order="C")
        if name in self.weight_map or array.dtype.name not in DTYPES:
            raise ValueError(f"{name}: was added before, or is {array.dtype.name}, which is not one of {DTYPES}")
        if self.arrays and self.bytes + array.nbytes > self.max_shard_bytes:
            self._flush()
        self.arrays[name] = array
        self.weight_map[name] = len(self.shards)
        self.bytes += array.nbytes
        self.total += array.nbytes

    def _flush(self):
        path = self.folder / f".{self.stem}-{len(self.shards)}.{os.getpid()}.tmp"
        self.shards.append(path)
        try:
            self._write(path)
        except Exception as error:  # an OSError, or what safetensors and torch make of it
            raise UserError(f"{self.folder}: cannot be written ({_reason(error)}); make room, or give another --out") from error
        self.arrays, self.bytes = {}, 0

    def _write(self, path):
        if self.form == "safetensors":
            from safetensors.numpy import save_file

            save_file(self.arrays, path, metadata={"format": "pt"})  # transformers refuses files without it
            return
        torch = import_torch(self.folder)
        tensors = {name: _as_torch(torch, array) for name, array in self.arrays.items()}
        torch.save(tensors, path)

    def finish(self, metadata=None):
        """Gives the shards their names and writes the index.

        Args:
          metadata: entries for the `metadata` of the index, beside total_size.

        Returns:
          Path of the index, or of the weights when they are a single file.
        """
        if self.arrays or not self.shards:
            self._flush()
        count = len(self.shards)
        names = [f"{self.stem}-{k:05}-of-{count:05}.{self.form}" for k in range(1, count + 1)]
        if count == 1:
            names = [f"{self.stem}.{self.form}"]
        for path, name in zip(self.shards, names, strict=True):
            os.replace(path, self.folder / name)
        self.shards = []
        if count == 1:
            return self.folder / names[0]
        index = self.folder / f"{self.stem}.{self.form}.index.json"
        weight_map = {name: names[shard] for name, shard in self.weight_map.items()}
        write_json(index, {"metadata": {**(metadata or {}), "total_size": self.total}, "weight_map": weight_map})
        return index


def _as_torch(torch, array):
    """Shares the memory of the array. PyTorch cannot take bfloat16 from NumPy: it takes the bytes."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of arrays that may not be written to; nobody does
        if not array.size:
            return torch.zeros(array.shape, dtype=getattr(torch, array.dtype.name))
        content = torch.from_numpy(array.reshape(-1).view(np.uint8))
    return content.view(getattr(torch, array.dtype.name)).reshape(array.shape)


def _reason(error):
    return getattr(error, "strerror", None) or next(iter(str(error).splitlines()), type(error).__name__)
