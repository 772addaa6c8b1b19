"""Peak memory of `plum convert` against the size of what it converts: it must not grow with the model.

Writes merged PLUM folders with the shapes of 13B at a quarter of its width (SAM and CLIP small), of two depths, in shards;
converts each in a process of its own and asks the operating system for its peak. Needs about 5 GB of disk.

    python tools/bench_convert.py [--depths 10,40] [--width 1280] [--form safetensors] [--json FILE]
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import ml_dtypes
import numpy as np

from data_pipelines.tokenizer import ASSETS
from plum_jax.convert.keys import rules
from plum_jax.convert.shards import ShardWriter
from plum_jax.models.plum import PlumConfig, build

SHARD_BYTES = 400_000_000
VOCABULARY = 32002


def model(width, depth):
    """PlumConfig with the proportions of 13B: head size 128, MLP 2.7 times the width, as many layers as asked for."""
    return PlumConfig.from_dict(dict(
        dtype="bfloat16",
        llama=dict(
            vocab_size=VOCABULARY, width=width, depth=depth, heads=width // 128, mlp=width * 27 // 10 // 64 * 64,
            rope_theta=10000.0, epsilon=1e-5, lora_rank=0, lora_alpha=16.0, lora_dropout=0.0,
        ),
        clip=dict(image_size=28, patch=14, width=64, depth=1, heads=2, mlp=64, epsilon=1e-5),
        sam=dict(
            image_size=64, patch=8, width=32, depth=2, heads=2, mlp=64, window=3, global_blocks=(1,), epsilon=1e-6, out_width=64
        ),
        decoder=dict(depth=2, heads=8, mlp=64, attention_downsample=2, mask_channels=16, pe_dtype="float32"),
        tagger=dict(heads=8, mlp=64, epsilon=1e-5, dropout=0.1), feedback=True, feedback_heads=8, remat="full",
    ))  # fmt: skip


def tensors(config):
    """Yields (PyTorch name, bfloat16 array), one at a time, of random numbers."""
    from flax.traverse_util import flatten_dict

    shapes = {path: x.shape for path, x in flatten_dict(build(config)[1], sep="/").items()}
    rng, seen = np.random.default_rng(0), {}
    for rule in rules(config):
        for layer, name in rule.items():
            shape = shapes[rule.path] if layer is None else shapes[rule.path][1:]
            if rule.vocabulary:
                shape = tuple(VOCABULARY if size == config.llama.padded_vocab else size for size in shape)
            if rule.piece == (0, 1):
                yield name, rule.to_torch((0.02 * rng.standard_normal(shape, np.float32)).astype(ml_dtypes.bfloat16))
            else:  # packed queries, keys and values
                seen.setdefault(name, []).append(rule.to_torch(np.full(shape, 0.01, ml_dtypes.bfloat16)))
    for name, pieces in seen.items():
        yield name, np.concatenate(pieces)


def write_source(folder, config, form):
    """A merged folder and a CLIP folder -> their sizes in bytes."""
    heads = dict(num_attention_heads=config.llama.heads, rms_norm_eps=config.llama.epsilon, mm_vision_select_layer=-1)
    with ShardWriter(folder / "plum", SHARD_BYTES, form=form) as plum, ShardWriter(folder / "clip") as clip:
        for name, array in tensors(config):
            (clip if name.startswith("vision_model.") else plum).add(name, array)
        plum.finish()
        clip.finish()
    (folder / "plum" / "config.json").write_text(json.dumps(heads))
    (folder / "clip" / "config.json").write_text(json.dumps(dict(num_attention_heads=config.clip.heads, layer_norm_eps=1e-5)))
    for file in (ASSETS / "tokenizer_tiny").iterdir():
        shutil.copy(file, folder / "plum" / file.name)
    return sum(p.stat().st_size for p in folder.rglob("*") if p.is_file())


def convert(folder):
    """Runs the command -> (seconds, peak bytes of its resident memory)."""
    command = [sys.executable, "-m", "plum_jax.cli", "convert", "--plum", str(folder / "plum"), "--clip", str(folder / "clip")]
    began = time.monotonic()
    process = subprocess.Popen([*command, "--out", str(folder / "base")], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    error = process.stderr.read()
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        raise SystemExit(f"plum convert failed: {error.decode()}")
    return time.monotonic() - began, usage.ru_maxrss * 1024


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--depths", default="10,40", help="layers of the language models (default 10,40)")
    parser.add_argument("--width", type=int, default=1280, help="of the language model (default 1280, a quarter of 13B's)")
    parser.add_argument("--form", choices=("safetensors", "bin"), default="bin", help="of the shards (default bin)")
    parser.add_argument("--json", metavar="FILE", help="write the figures there too")
    args = parser.parse_args()
    rows = []
    for depth in map(int, args.depths.split(",")):
        with tempfile.TemporaryDirectory() as work:
            config = model(args.width, depth)
            size = write_source(Path(work), config, args.form)
            seconds, peak = convert(Path(work))
        rows.append(dict(depth=depth, width=args.width, source_bytes=size, peak_bytes=peak, seconds=round(seconds, 1)))
        print(f"{depth:3d} layers: {size / 1e9:5.2f} GB of source, peak {peak / 1e9:5.2f} GB, {seconds:5.1f} s", flush=True)
    if len(rows) > 1:
        source, peak = (rows[-1][key] / rows[0][key] for key in ("source_bytes", "peak_bytes"))
        print(f"source x {source:.2f}, peak memory x {peak:.2f}")
    if args.json:
        Path(args.json).write_text(json.dumps(dict(form=args.form, shard_bytes=SHARD_BYTES, rows=rows), indent=2) + "\n")


if __name__ == "__main__":
    main()
