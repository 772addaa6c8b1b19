"""The sizes that benchmarks of the model know by name, and the flags that they share."""

import argparse
import os
from typing import NamedTuple

import jax

from plum_jax import cli, config_io
from plum_jax.errors import UserError
from plum_jax.sharding import make_mesh

SPLIT = ("mesh.data=1", "mesh.fsdp=-1")  # every device holds its part of the weights
QUARTER = (  # of the widths and of the layers of 7B; images, words and heads as there
    "model.dtype=float32", "model.llama.width=1024", "model.llama.depth=8", "model.llama.heads=8", "model.llama.mlp=2752",
    "model.clip.width=256", "model.clip.depth=6", "model.clip.heads=4", "model.clip.mlp=1024", "model.sam.width=320",
    "model.sam.depth=8", "model.sam.heads=4", "model.sam.mlp=1280", "model.sam.global_blocks=(1,3,5,7)",
)  # fmt: skip


class Size(NamedTuple):
    config: str
    overrides: tuple  # of the config
    train: tuple  # overrides for a training step: one micro-batch
    images: int  # that the encoders see at a time
    rows: int  # conversations that the language model and the mask decoder see at a time
    positions: int  # of a prompt, with those of the image
    new_tokens: int


SIZES = {
    "tiny": Size("tiny", (), (), 8, 8, 128, 32),
    "quarter": Size(
        "partonomy:size=7b", QUARTER, ("data.root=DIR", "data.global_batch=1", "data.micro_batches=1"), 1, 1, 512, 16
    ),
    "7b": Size("partonomy:size=7b", SPLIT, ("data.root=DIR", "data.global_batch=8", "data.micro_batches=1"), 8, 8, 512, 64),
    "13b": Size("partonomy:size=13b", SPLIT, ("data.root=DIR", "data.global_batch=8", "data.micro_batches=1"), 8, 8, 512, 64),
}


def parser_of(description):
    """Parser with what every benchmark of the model takes; the keys of the config can be overridden as in `plum train`."""
    parser = cli.Parser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=SIZES, default="tiny", help="default: tiny")
    parser.add_argument("--config", metavar="FILE.py[:ARG]", help="a config file in place of that of the size")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), help="default: that of the config")
    parser.add_argument("--repeats", type=int, default=9, help="timed runs of each; the median counts (default 9)")
    parser.add_argument("--warmup", type=int, default=2, help="runs before them (default 2)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--no-torch", action="store_true", help="leave PyTorch out")
    parser.add_argument("--note", default="", help="about the machine, for the JSON object")
    parser.add_argument("--json", metavar="FILE", help="also write the JSON object to this file")
    parser.epilog = "Any key of the config can be overridden: --config.model.remat=none --config.mesh.fsdp=4"
    return parser


def parse(parser, argv, *, train=False):
    """-> (options, their Size, config, mesh over all devices); flags win over the size."""
    args, overrides = config_io.parse_args(parser, argv)
    if args.repeats < 1 or args.warmup < 0:
        raise UserError(f"--repeats {args.repeats}, --warmup {args.warmup}: give 1 repeat or more, and 0 or more before them")
    if args.json and not os.path.isdir(os.path.dirname(args.json) or "."):
        raise UserError(f"--json {args.json}: its folder is not there; make it, or give another file")
    if not args.no_torch:
        os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")  # PyTorch shares the accelerator
    size = SIZES[args.size]
    preset = () if args.config else size.overrides + (size.train if train else ())
    dtype = [f"model.dtype={args.dtype}"] if args.dtype else []
    config = config_io.load_config(args.config or size.config, [*preset, *dtype, *overrides])
    return args, size, config, make_mesh(config.mesh, jax.devices())


def whole(rows, mesh):
    """The least number of rows, at least `rows`, that the devices divide."""
    shards = mesh.shape["data"] * mesh.shape["fsdp"]
    return -(-rows // shards) * shards
