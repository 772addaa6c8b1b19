"""A model that compiles in seconds for the benchmarks of the model: a config file, and what `tools.bench_model` makes of it."""

import argparse

from model_fixtures import small_config

from plum_jax.sharding import make_mesh
from tools.bench_model import Bench
from tools.sizes import SIZES

FILE = """from bench_fixtures import train_config


def get_config(arg=""):
    return train_config()
"""


def train_config():
    """`small_config` with what a training step needs beside it: eight images, of which four have masks."""
    config = small_config(decoder=dict(
        depth=2, heads=2, mlp=16, attention_downsample=2, mask_channels=8, pe_dtype="float32"
    ), logits_dtype="float32")  # fmt: skip
    config.train = dict(steps=10)
    config.optim.schedule, config.optim.accumulate_dtype = "clean", "float32"
    config.loss.update(average="step", tversky_clamp=True)
    config.data.update(
        global_batch=16, conversations=1, grounded=(1, 2), max_tokens=24, max_spans=3, max_masks=3, canvas=(20, 24)
    )  # fmt: skip
    return config


def config_file(folder):
    """The path of a file for --config."""
    file = folder / "small.py"
    file.write_text(FILE)
    return file


def small_bench():
    """`tools.bench_model.Bench` with one row for each of two devices."""
    import jax

    args = argparse.Namespace(seed=0, images=2, rows=2, positions=8, new_tokens=2, spans=[3])
    return Bench(args, SIZES["tiny"], train_config(), make_mesh(dict(data=2, fsdp=1, tensor=1), jax.devices()[:2]))
