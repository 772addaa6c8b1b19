"""A random PLUM in two forms: named tensors as in published checkpoints, and our parameters.

Every axis has its own length, norms are off 1, biases and position tables off 0: a swapped or forgotten tensor shows.
"""

import numpy as np
from checkpoint_fixtures import parameters
from flax.traverse_util import unflatten_dict
from model_fixtures import small_config

from plum_jax.convert.keys import rules
from tests.reference.published_names import tensors_of

LORA = (3, 6.0)


def parity_config(**model):
    """Config with the smallest sizes at which all axes of the model differ; `model` overrides entries of config.model."""
    config = small_config(
        llama=dict(
            vocab_size=70, width=24, depth=3, heads=2, mlp=34, rope_theta=500.0, epsilon=1e-3, lora_rank=LORA[0],
            lora_alpha=LORA[1], lora_dropout=0.0, vocab_multiple=16,
        ),
        clip=dict(image_size=20, patch=5, width=18, depth=2, heads=3, mlp=28, epsilon=1e-5),
        sam=dict(
            image_size=56, patch=8, width=20, depth=4, heads=2, mlp=44, window=3, global_blocks=(1, 3), epsilon=1e-6,
            out_width=40,
        ),
        decoder=dict(depth=2, heads=4, mlp=36, attention_downsample=2, mask_channels=12, pe_dtype="float32"),
        tagger=dict(heads=4, mlp=52, epsilon=1e-5, dropout=0.0),
        feedback_heads=2,
    )  # fmt: skip
    config.model.update(model)
    return config


def random_model(config, seed=0):
    """PlumConfig -> ({PyTorch name: float32 array}, our parameters), adapters included."""
    flat = parameters(config, seed)
    flat["llama/embed"] *= 4  # states that differ, so that all three tags and several tokens occur
    kernel = flat["span_tagger/out/kernel"]
    kernel[:] = 4 * (kernel - kernel.mean(0))
    flat["span_tagger/out/bias"][:] = 0.5, 1.5, -1.0
    return tensors_of(config, flat), unflatten_dict(flat, sep="/")


def to_params(tensors, config):
    """{PyTorch name: array} -> our parameters by the table of names, the padding of the vocabulary zero."""
    flat = {}
    for rule in rules(config):
        arrays = [rule.to_ours(tensors[name]) for _, name in rule.items()]
        array = arrays[0] if rule.layers is None else np.stack(arrays)
        if rule.vocabulary:
            more = (0, config.llama.padded_vocab - config.llama.vocab_size)
            array = np.pad(array, (more, (0, 0)) if rule.path.endswith("embed") else ((0, 0), more))
        flat[rule.path] = array
    return unflatten_dict(flat, sep="/")
