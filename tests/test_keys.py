import checkpoint_fixtures as fixtures
import numpy as np
import pytest
from flax.traverse_util import flatten_dict

from plum_jax.config_io import load_config
from plum_jax.convert.keys import SAM, original_of, rules
from plum_jax.models.plum import PlumConfig, build


@pytest.mark.parametrize("model", [{}, {"projector": "mlp"}, {"feedback": False}])
def test_every_parameter_has_one_rule(model):
    config = fixtures.plum_config(**model)
    assert sorted(rule.path for rule in rules(config)) == sorted(flatten_dict(build(config)[1], sep="/"))


def test_a_rule_and_back_changes_no_bit():
    config = fixtures.plum_config()
    flat = fixtures.parameters(config)
    tensors = fixtures.tensors_of(config, flat)
    size = config.llama.vocab_size
    for rule in rules(config):
        for layer, name in rule.items():
            ours = flat[rule.path] if layer is None else flat[rule.path][layer]
            if rule.vocabulary:
                ours = ours[:size] if rule.path == "llama/embed" else ours[:, :size]
            np.testing.assert_array_equal(rule.to_ours(tensors[name]), ours, err_msg=rule.path)


def test_number_of_tensors_is_that_of_the_published_files():
    """594 tensors of SAM ViT-H; 1017 of a merged 13B folder, of which 27 are second copies (M 9.1, 9.2)."""
    model = load_config("plum.py:size=13b").model
    model.llama.lora_rank = 0
    names = {name for rule in rules(PlumConfig.from_dict(model)) for _, name in rule.items()}
    assert sum(name.startswith(SAM) for name in names) == 594
    assert sum(not name.startswith("vision_model.") for name in names) == 1017 - 27


def test_copies_of_the_pooler_name_their_original():
    assert original_of("mask_pooler.block2.0.3.weight") == f"{SAM}prompt_encoder.mask_downscaling.3.weight"
    assert original_of("mask_pooler.prompt_encoder.no_mask_embed.weight") == f"{SAM}prompt_encoder.no_mask_embed.weight"
    assert original_of("mask_pooler.queries") is None
