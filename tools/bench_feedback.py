"""Time of mask decoding with feedback against the number of spans: the linear form and one that recomputes past masks.

    python tools/bench_feedback.py [--width 64 --grid 12 --rows 2 --spans 4 8 16] [--json FILE]

Prints a table and one JSON object. The target is time(16 spans) <= 4.5 x time(4 spans) in the linear form.
"""

import argparse
import functools
import json
import time

import jax
import jax.numpy as jnp
from flax import nnx

from plum_jax.models import feedback, sam_decoder
from plum_jax.models.attention import attention
from plum_jax.models.layers import merge_heads, split_heads


def decode_recomputing(prompt_encoder, mask_decoder, pooler, image_embeddings, span_embeds, span_valid):
    """As `feedback.decode_spans`, but every span encodes all past masks again and attends to them, as in the reference (M 5.3).

    A scan with a fixed-size list of masks, so that it compiles as fast as the linear form: N^2 mask encodings.
    """
    rows, ranks, width = span_embeds.shape
    g = image_embeddings.shape[1]
    pe = prompt_encoder.dense_pe()
    repeated = span_embeds.reshape(-1, width)

    def pool(masks, seen):
        maps = pooler.encode(prompt_encoder, masks.reshape(-1, 4 * g, 4 * g), repeated)
        keys = (prompt_encoder.conv3(maps) + pe.reshape(-1, width)).reshape(rows, ranks, g * g, width)
        keys = keys.swapaxes(1, 2).reshape(-1, ranks, width)
        q = jnp.tile(pooler.q_proj(pooler.queries[...]), (rows, 1))[:, None]
        q, k, v = (split_heads(x, pooler.heads) for x in (q, pooler.k_proj(keys), pooler.v_proj(keys)))
        allowed = jnp.repeat(seen | ~seen.any(1, keepdims=True), g * g, 0)[:, None, None]
        out = pooler.out_proj(merge_heads(attention(q, k, v, mask=allowed))).reshape(rows, g, g, width)
        return jnp.where(seen.any(1)[:, None, None, None], out, prompt_encoder.no_mask_embed[...])

    def body(carry, span):
        masks, seen = carry
        rank, embed, keep = span
        low_res, iou = mask_decoder(image_embeddings, embed[:, None], pool(masks, seen), pe)
        low_res = jnp.where(keep[:, None, None], low_res, 0.0)
        return (masks.at[:, rank].set(low_res), seen.at[:, rank].set(keep)), (low_res, iou)

    first = jnp.zeros((rows, ranks, 4 * g, 4 * g)), jnp.zeros((rows, ranks), bool)
    spans = jnp.arange(ranks), span_embeds.swapaxes(0, 1), span_valid.T
    low_res, iou = jax.lax.scan(jax.checkpoint(body, prevent_cse=False), first, spans)[1]
    return low_res.swapaxes(0, 1), iou.T


def seconds(run, *args, repeats):
    """(seconds of the fastest call, result); the first call compiles and is not counted. The minimum resists a busy machine."""
    result = jax.block_until_ready(run(*args))
    times = []
    for _ in range(repeats):
        begin = time.perf_counter()
        jax.block_until_ready(run(*args))
        times.append(time.perf_counter() - begin)
    return min(times), result


def build(options):
    """-> (graphdefs, params) of prompt encoder, mask decoder and feedback."""
    config = sam_decoder.MaskDecoderConfig(
        width=options.width, grid=options.grid, depth=2, heads=options.heads, mlp=options.mlp, attention_downsample=2,
        mask_channels=16, pe_dtype="float32",
    )  # fmt: skip
    rngs = nnx.Rngs(0)
    parts = (
        sam_decoder.PromptEncoder(config, rngs=rngs),
        sam_decoder.MaskDecoder(config, rngs=rngs),
        feedback.Feedback(options.width, options.grid, options.heads, 16, rngs=rngs),
    )
    return tuple(zip(*(nnx.split(part) for part in parts), strict=True))


def measure(form, graphdefs, params, options, ranks):
    """-> (forward seconds, forward and backward seconds, masks) for `ranks` spans in every row."""
    keys = jax.random.split(jax.random.key(1), 2)
    images = jax.random.normal(keys[0], (options.rows, options.grid, options.grid, options.width))
    embeds = jax.random.normal(keys[1], (options.rows, ranks, options.width))
    valid = jnp.ones((options.rows, ranks), bool)

    def masks(params, images, embeds):
        return form(*(nnx.merge(g, p) for g, p in zip(graphdefs, params, strict=True)), images, embeds, valid)[0]

    forward, result = seconds(jax.jit(masks), params, images, embeds, repeats=options.repeats)
    gradient = jax.jit(jax.grad(lambda *args: jnp.tanh(masks(*args)).sum(), (0, 1, 2)))
    return forward, seconds(gradient, params, images, embeds, repeats=options.repeats)[0], result


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in dict(width=64, grid=12, heads=4, mlp=256, rows=2, repeats=5).items():
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--spans", type=int, nargs="+", default=[4, 8, 16])
    parser.add_argument("--json", help="also write the JSON object to this file")
    options = parser.parse_args(argv)
    graphdefs, params = build(options)
    forms = dict(linear=functools.partial(feedback.decode_spans, remat=True), recompute=decode_recomputing)
    results = dict(device=jax.devices()[0].device_kind, **{k: v for k, v in vars(options).items() if k != "json"})
    for name in forms:
        results[name] = dict(forward={}, forward_backward={})
    print(f"{'spans':>5} {'form':>10} {'forward ms':>11} {'+ backward ms':>14}")
    for ranks in options.spans:
        masks = {}
        for name, form in forms.items():
            forward, both, masks[name] = measure(form, graphdefs, params, options, ranks)
            results[name]["forward"][ranks], results[name]["forward_backward"][ranks] = forward, both
            print(f"{ranks:5d} {name:>10} {forward * 1e3:11.1f} {both * 1e3:14.1f}", flush=True)
        results["largest_difference"] = float(jnp.abs(masks["linear"] - masks["recompute"]).max())
    low, high = min(options.spans), max(options.spans)
    results["ratio"] = {n: {k: t[high] / t[low] for k, t in results[n].items()} for n in forms}
    for name, ratio in results["ratio"].items():
        both = ratio["forward_backward"]
        print(f"{name}: time({high}) / time({low}) = {ratio['forward']:.2f} forward, {both:.2f} with backward")
    print(json.dumps(results))
    if options.json:
        with open(options.json, "w") as file:
            json.dump(results, file, indent=1)


if __name__ == "__main__":
    main()
