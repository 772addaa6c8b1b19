"""A second's worth of outputs that base weights must give again after they are loaded: a layer of each tower on a few fixed
inputs, and all heads. Written by `plum convert`, compared by whoever loads the folder."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from flax.traverse_util import flatten_dict, unflatten_dict

from plum_jax.errors import UserError
from plum_jax.models import plum
from plum_jax.models.layers import run_stack

TOKENS = 8
WORDS = 128  # rows of the token table and columns of the head that take part
TOLERANCE = 2e-3  # of the largest value: another processor adds in another order; a changed weight shows far above


def small(config):
    """PlumConfig with one layer of the decoder, two of each vision tower and few words; float32."""
    words = min(WORDS, config.llama.vocab_size)
    return dataclasses.replace(
        config,
        llama=dataclasses.replace(config.llama, depth=1, vocab_size=words, vocab_multiple=words),
        clip=dataclasses.replace(config.clip, depth=2),
        sam=dataclasses.replace(config.sam, depth=2, global_blocks=(1,)),
        dtype="float32",
        remat="none",
    )


STACKS = ("llama/layers/", "clip/layers/", "sam_encoder/window_blocks/", "sam_encoder/global_blocks/")


def layers_of(config, path):
    """Which layers of a parameter the check reads; None for the whole of an unstacked one or of a short stack."""
    if not path.startswith(STACKS):
        return None
    if path.startswith("clip/"):
        return 0, config.clip.depth - 1
    last = config.llama.depth if path.startswith("llama/") else len(config.sam.global_blocks)
    return (0,) if "window_blocks" in path else (last - 1,)


def _words_of(config, path, x):
    """The rows of the token table or the columns of the head that take part; any other parameter as it is."""
    words = min(WORDS, config.llama.vocab_size)
    if path == "llama/embed":
        return x[:words]
    return x[:, :: config.llama.vocab_size // words][:, :words] if path == "llama/lm_head/kernel" else x


def parameters(config, missing):
    """Paths of the parameters that the check reads: not those of parts that start random, no adapters."""
    flat = flatten_dict(plum.build(small(config))[1], sep="/")
    return [path for path in flat if path.partition("/")[0] not in missing and "/lora_" not in path]


def outputs(config, missing, params, *, chosen):
    """Runs the check.

    Args:
      config: PlumConfig. missing: parts that start random, which are left out.
      params: {path: array} with the paths of `parameters`.
      chosen: whether stacked parameters hold the layers of `layers_of` alone; False: they are whole.

    Returns:
      {name: float32 array}.
    """
    graphdef, abstract = plum.build(small(config))
    shapes = tuple((path, x.shape) for path, x in flatten_dict(abstract, sep="/").items())
    picks = tuple((path, None if chosen else layers_of(config, path)) for path in parameters(config, missing))
    return jax.device_get(_run(graphdef, config, tuple(missing), shapes, picks, params))


@functools.partial(jax.jit, static_argnums=(0, 1, 2, 3, 4))
def _run(graphdef, config, missing, shapes, picks, params):
    flat = {path: jnp.zeros(shape) for path, shape in shapes}
    for path, layers in picks:
        x = params[path] if layers is None else jnp.stack([params[path][i] for i in layers])
        flat[path] = _words_of(config, path, x).astype(jnp.float32)
    params = unflatten_dict(flat, sep="/")
    model = plum.bind(graphdef, params)
    c = model.config
    with jax.default_matmul_precision("highest"):
        tokens = jnp.arange(1, TOKENS + 1)[None] % c.llama.vocab_size
        hidden = model.hidden(model.llama.embed[...][tokens], jnp.array([TOKENS]), adapter=False)
        found = {"hidden": hidden, "logits": model.logits(hidden)}
        patches = _wave(1, c.clip.grid**2 + 1, c.clip.width)
        found["clip"] = run_stack(model.clip.layers, model.clip.norm(patches + model.clip.position_embed[...]))[:, ::16]
        found["sam"] = _sam(model, c.sam)
        if "projector" not in missing:
            found["projector"] = model.projector(_wave(1, TOKENS, c.clip.width))
        if "span_tagger" not in missing:
            found["tags"] = model.tag_logits(hidden, jnp.ones((1, TOKENS), bool))
        embeds = _wave(1, 2, c.decoder.width)
        if "span_projector" not in missing:
            embeds = model.project(hidden)[:, :2]
            found["features"] = embeds
        if "feedback" not in missing:
            images = _wave(1, c.decoder.grid**2, c.decoder.width).reshape(1, c.decoder.grid, c.decoder.grid, -1)
            masks, iou = model.decode_masks(images, embeds, jnp.ones((1, 2), bool))
            found.update(masks=masks[:, :, ::8, ::8], iou=iou)
    return found


def _sam(model, config):
    """One window through the two kinds of block (the global one without attention, which costs seconds), and the neck."""
    encoder, size = model.sam_encoder, config.window
    x = _wave(1, size * size, config.width).reshape(1, size, size, -1)
    x = x + encoder.position_embed[...][:size, :size][: config.grid, : config.grid].mean((0, 1))
    x = run_stack(encoder.window_blocks, x)
    graphdef, params = nnx.split(encoder.global_blocks)
    block = nnx.merge(graphdef, jax.tree.map(lambda p: p[0], params))
    x = x + block.linear2(jax.nn.relu(block.linear1(block.norm2(x))))
    tables = sum(jnp.abs(table[...]).sum() for table in (block.attention.rel_pos_h, block.attention.rel_pos_w))
    return encoder.neck_norm1(encoder.neck1(x)) + 1e-3 * jnp.sin(tables)


def _wave(rows, length, width):
    """A fixed float32[rows, length, width] input without repetition."""
    t = jnp.arange(rows * length)[:, None] * 0.61 + jnp.arange(width) * 1.37
    return jnp.sin(t).reshape(rows, length, width)


def compare(found, stored, folder):
    """UserError when outputs are not those that were stored; both {name: array}."""
    for name, want in stored.items():
        got, scale = found.get(name), float(np.abs(want).max())
        if got is None or got.shape != want.shape or not np.abs(got - want).max() <= TOLERANCE * max(scale, 1e-6):
            raise UserError(
                f"{folder}: the weights do not give the outputs that were stored with them ({name}); its files are damaged, "
                "convert again"
            )
