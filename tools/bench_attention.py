"""Attention of SAM's blocks at the sizes of ViT-H: forms of the relative positions, side by side on this machine.

    python -m tools.bench_attention [--images 1] [--rounds 5] [--dtype float32] [--json FILE]

`chosen` is what `grid_attention` does here; `at once` adds the bias to the logits of all heads together; `widened` puts the
bias into the dot product, with XLA's operations in place of a kernel. Forms take turns, so that a busy machine slows all of
them; a ratio is that of the fastest runs. Prints a table and one JSON object.
"""

import argparse
import functools
import json
import time

import jax

from plum_jax.models import grid_attention

BLOCKS = {"window": (25, 14), "global": (1, 64)}  # squares of an image, and their sides
HEADS, HEAD = 16, 80


def forms(side):
    """{name: function(q, k, v, rel_h, rel_w)}."""
    wide = -(-(HEAD + 2 * side) // 8) * 8

    def kernel(q, k, v):
        v = jax.numpy.pad(v, [(0, 0)] * 3 + [(0, wide - HEAD)])
        return jax.nn.dot_product_attention(q, k, v, scale=1.0, implementation="xla")[..., :HEAD]

    return {
        "chosen": grid_attention.grid_attention,
        "at once": functools.partial(grid_attention.with_bias, loop_from=float("inf")),
        "widened": grid_attention.widened(kernel, wide),
    }


def measure(block, options):
    """-> {form: seconds of the fastest run, its ratio to `chosen`, MiB of temporary arrays}."""
    squares, side = BLOCKS[block]
    keys = jax.random.split(jax.random.key(0), 5)
    shape = squares * options.images, side, side, HEADS
    arrays = [jax.random.normal(k, (*shape, w), options.dtype) for k, w in zip(keys, (HEAD,) * 3 + (side,) * 2, strict=True)]
    programs = {name: jax.jit(form).lower(*arrays).compile() for name, form in forms(side).items()}
    seconds = {name: [] for name in programs}
    for _ in range(options.rounds + 1):
        for name, program in programs.items():
            began = time.perf_counter()
            jax.block_until_ready(program(*arrays))
            seconds[name].append(time.perf_counter() - began)
    fastest = {name: min(taken[1:]) for name, taken in seconds.items()}
    return {
        name: {
            "seconds": round(fastest[name], 4),
            "ratio": round(fastest[name] / fastest["chosen"], 3),
            "temporary_mib": program.memory_analysis().temp_size_in_bytes >> 20,
        }
        for name, program in programs.items()
    }


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--dtype", default="float32", choices=("float32", "bfloat16"))
    parser.add_argument("--json", help="also write the JSON object to this file")
    options = parser.parse_args(argv)
    device = jax.devices()[0].device_kind
    results = {"device": device, "dtype": options.dtype, "images": options.images, "rounds": options.rounds}
    print(f"{'block':<8} {'form':<9} {'seconds':>9} {'ratio':>7} {'temporary MiB':>14}")
    for block in BLOCKS:
        results[block] = measure(block, options)
        for name, found in results[block].items():
            print(
                f"{block:<8} {name:<9} {found['seconds']:9.3f} {found['ratio']:7.2f} {found['temporary_mib']:14,}", flush=True
            )
    print(json.dumps(results))
    if options.json:
        with open(options.json, "w") as file:
            json.dump(results, file, indent=1)


if __name__ == "__main__":
    main()
