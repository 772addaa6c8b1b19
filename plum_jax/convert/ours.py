"""The JAX side of `plum convert --verify`: parts and single layers of our model as functions of their parameters."""

import functools

import jax
import jax.numpy as jnp
from flax import nnx

from plum_jax.models import feedback


def describe(make):
    """Graph definition of the module that `make(rngs)` describes; nothing is computed."""
    return nnx.split(nnx.eval_shape(lambda: make(nnx.Rngs(0))))[0]


def compiled(make, call):
    """`call(module, *inputs)` as a function of (parameters of the module, *inputs); compiled once for all layers alike."""
    return functools.partial(_apply, describe(make), call)


@functools.partial(jax.jit, static_argnums=(0, 1))
def _apply(graphdef, call, params, *inputs):
    return call(nnx.merge(graphdef, params), *inputs)


def call_module(module, *inputs):
    return module(*inputs)


def embed(tower, pixels):
    return tower.embed(pixels)


def neck(encoder, x):
    return encoder.neck(x)


def causal(layer, x):
    """A decoder layer on one row, all of it valid."""
    length = x.shape[1]
    return layer(x, jnp.full(1, length), jnp.arange(length)[None], True)


def tag(tagger, x):
    return tagger(x, jnp.ones(x.shape[:2], bool))


def prompts(prompt, masks):
    return prompt.conv3(prompt.mask_maps(masks)), prompt.dense_pe(), prompt.no_mask_embed[...]


@functools.partial(jax.jit, static_argnums=(0, 1))
def pool(pooler_def, prompt_def, params, prompt_params, masks, embeds):
    """The dense prompt of all masks [n, 4g, 4g] with their embeddings [n, W] -> [P, W]."""
    pooler, prompt = nnx.merge(pooler_def, params), nnx.merge(prompt_def, prompt_params)
    folded = pooler.fold(prompt)
    state = feedback.start(1, folded)
    for mask, span in zip(masks[:, None], embeds[:, None], strict=True):
        state = feedback.append(state, folded, pooler.encode(prompt, mask, span), jnp.ones(1, bool))
    return feedback.dense(state, folded, prompt.no_mask_embed[...])[0]
