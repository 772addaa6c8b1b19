import re

import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict
from model_fixtures import small_config

from plum_jax.errors import UserError
from plum_jax.models.plum import PlumConfig, build
from plum_jax.params import cast, count, merge, partition

PARAMS = {
    "llama": {"embed": np.ones((4, 2)), "layers": {"lora_a": np.zeros(3), "kernel": np.ones(5)}},
    "clip": {"bias": np.ones(1)},
}
PAPER = r"lora_|lm_head|llama/embed$|mask_decoder|prompt_encoder|span_tagger|span_projector|feedback"


def test_partition_by_path_and_back():
    trainable, frozen = partition(PARAMS, r"lora_|embed$")
    assert set(flatten_dict(trainable, sep="/")) == {"llama/embed", "llama/layers/lora_a"}
    assert set(flatten_dict(frozen, sep="/")) == {"llama/layers/kernel", "clip/bias"}
    assert flatten_dict(merge(trainable, frozen)).keys() == flatten_dict(PARAMS).keys()
    assert merge(trainable, frozen)["clip"]["bias"] is PARAMS["clip"]["bias"]


def test_partition_of_everything_and_nothing():
    assert partition(PARAMS, ".*")[1] == {}
    assert partition(PARAMS, "no such name")[0] == {}
    assert merge({}, PARAMS) == PARAMS


def test_count_of_arrays_and_of_shapes():
    assert count(PARAMS) == 8 + 3 + 5 + 1
    _, shapes = build(PlumConfig.from_dict(small_config().model))
    assert count(shapes) == sum(np.prod(x.shape, dtype=int) for x in flatten_dict(shapes).values())


def test_cast_leaves_integers_alone():
    low = cast({"a": jnp.ones(2), "b": jnp.arange(3)}, jnp.bfloat16)
    assert low["a"].dtype == jnp.bfloat16
    assert low["b"].dtype == jnp.int32


def test_the_papers_trainable_part_of_this_model():
    _, shapes = build(PlumConfig.from_dict(small_config().model))
    trainable, frozen = partition(shapes, PAPER)
    assert set(trainable) == {"llama", "mask_decoder", "prompt_encoder", "span_tagger", "span_projector", "feedback"}
    assert set(flatten_dict(trainable["llama"], sep="/")) == {
        "embed", "lm_head/kernel", *(f"layers/{n}_proj/lora_{x}" for n in "qv" for x in "ab")
    }  # fmt: skip
    assert {"clip", "sam_encoder", "projector", "llama"} == set(frozen)


@pytest.mark.parametrize(
    "part, change, message",
    [
        (None, {"colour": 1}, "config.model.colour: is not known"),
        ("llama", {"widht": 1}, "config.model.llama.widht: is not known"),
        ("llama", {"heads": 3}, "config.model.llama.heads: 3 does not divide"),
        ("llama", {"heads": 16}, "heads of an even size"),
        ("clip", {"patch": 5}, "config.model.clip.patch: 5 does not divide config.model.clip.image_size (12)"),
        ("sam", {"patch": 0}, "config.model.sam.patch: 0 is too small"),
        ("sam", {"global_blocks": (0,)}, "config.model.sam: global_blocks (0,)"),
        ("sam", {"out_width": 12}, "is not a multiple of 8"),
        ("decoder", {"heads": 3}, "config.model.decoder.heads: 3 does not divide"),
        ("tagger", {"dropout": 1.0}, "is not a dropout rate"),
        (None, {"remat": "some"}, "use none or full or dots"),
        (None, {"sam": 3}, "config.model.sam: 3 is not of type dict"),
    ],
)
def test_sizes_of_a_model_that_cannot_be_built_are_named(part, change, message):
    config = small_config().model.to_dict()
    (config[part] if part else config).update(change)
    with pytest.raises(UserError, match=re.escape(message)):
        PlumConfig.from_dict(config)


def test_missing_key_of_a_model_is_named():
    config = small_config().model.to_dict()
    del config["clip"]["mlp"]
    with pytest.raises(UserError, match="config.model.clip.mlp: is missing"):
        PlumConfig.from_dict(config)
