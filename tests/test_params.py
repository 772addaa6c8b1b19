import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict
from model_fixtures import small_config

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
