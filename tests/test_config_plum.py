"""The full sizes: parameter counts of the published model from shapes alone, and what `reference=1` changes."""

import functools
import re
from pathlib import Path
from types import SimpleNamespace

import pytest
from flax.traverse_util import flatten_dict
from model_fixtures import small_config

from configs.common import faithful
from plum_jax.config_io import config_from_json, config_json, flatten, load_config
from plum_jax.errors import UserError
from plum_jax.initial import adopt
from plum_jax.models.plum import PlumConfig, build
from plum_jax.params import count, partition
from plum_jax.settings import check_settings
from plum_jax.switches import SWITCHES, check_switches

ROOT = Path(__file__).resolve().parent.parent
VOCABULARY, GAUSSIAN = 32002, 2 * 128


@functools.cache
def model(size):
    """-> (config, shapes of all parameters)."""
    config = load_config(f"configs/plum.py:size={size}")
    return config, build(PlumConfig.from_dict(config.model))[1]


def padding(config):
    """Parameters of the rows that pad the token table or the head."""
    llama = PlumConfig.from_dict(config.model).llama
    return (llama.padded_vocab - VOCABULARY) * llama.width


TRAINED = {  # M 1.1: what is trained -> scalars at 13B, at 7B
    r"^llama/embed": (163_850_240, 131_080_192),
    r"^llama/lm_head/": (163_850_240, 131_080_192),
    r"lora_": (6_553_600, 4_194_304),
    r"^span_tagger/encoder/": (125_877_248, 83_924_992),
    r"^span_tagger/(hidden|out)/": (26_234_883, 16_793_603),
    r"^span_projector/": (27_530_496, 17_830_144),
    r"^mask_decoder/": (4_058_340, 4_058_340),
    r"^prompt_encoder/": (6_220, 6_220),
    r"^feedback/": (1_453_608, 1_453_608),
}


@pytest.mark.parametrize("column, size, total", [(0, "13b", 519_414_875), (1, "7b", 390_421_595)])
def test_the_trained_part_is_the_published_one(column, size, total):
    config, shapes = model(size)
    flat = flatten_dict(partition(shapes, config.trainable)[0], sep="/")
    assert sum(x.size for x in flat.values()) - 2 * padding(config) == total
    for pattern, wanted in TRAINED.items():
        found = sum(x.size for path, x in flat.items() if re.search(pattern, path))
        assert found - padding(config) * pattern.startswith(("^llama/embed", "^llama/lm_head")) == wanted[column], pattern
    assert sum(wanted[column] for wanted in TRAINED.values()) == total  # nothing is trained that the table does not name


@pytest.mark.parametrize("size, llama", [("13b", 13_015_864_320), ("7b", 6_738_415_616)])
def test_the_frozen_parts_have_the_published_sizes(size, llama):
    config, shapes = model(size)
    flat = flatten_dict(shapes, sep="/")
    assert count(shapes["sam_encoder"]) == 637_026_048
    last_layer = 4 * (1024**2 + 1024) + 2 * 1024 * 4096 + 4096 + 1024 + 4 * 1024
    assert count(shapes["clip"]) == 303_179_776 - last_layer - 2 * 1024  # without the layer and the norm that nobody reads
    width = config.model.llama.width
    assert count(shapes["projector"]) == 1024 * width + width
    lora = sum(x.size for path, x in flat.items() if "lora_" in path)
    assert count(shapes["llama"]) - lora - 2 * padding(config) == llama + 2 * 2 * width  # two tokens more, in table and head
    if size == "13b":  # M 1.1, which counts CLIP's unused layer and norm and no row of the two tokens
        ours = count(shapes) - GAUSSIAN - 2 * padding(config) - 2 * 2 * width
        assert ours + last_layer + 2 * 1024 == 14_153_032_539


def test_shapes_of_the_13b_model():
    flat = {path: x.shape for path, x in flatten_dict(model("13b")[1], sep="/").items()}
    wanted = {
        "llama/embed": (32256, 5120), "llama/layers/q_proj/kernel": (40, 5120, 5120), "projector/kernel": (1024, 5120),
        "llama/layers/down_proj/kernel": (40, 13824, 5120), "llama/layers/v_proj/lora_a": (40, 5120, 8),
        "clip/position_embed": (257, 1024), "clip/layers/linear1/kernel": (23, 1024, 4096),
        "sam_encoder/position_embed": (64, 64, 1280), "sam_encoder/neck2": (3, 3, 256, 256),
        "sam_encoder/window_blocks/attention/rel_pos_h": (28, 27, 80), "prompt_encoder/gaussian_matrix": (2, 128),
        "sam_encoder/global_blocks/attention/rel_pos_w": (4, 127, 80),
        "mask_decoder/layers/token_to_image/q_proj/kernel": (2, 256, 128), "feedback/queries": (4096, 256),
        "span_tagger/out/kernel": (5120, 3), "span_projector/out/kernel": (5120, 256),
    }  # fmt: skip
    assert {path: flat.get(path) for path in wanted} == wanted


def test_schema_is_that_of_tiny():
    """The same keys with the same types, so that every override and every tool works on all."""
    tiny = flatten(load_config("tiny"))
    for spec in ("plum", "plum:size=13b,reference=1", "partonomy", "partonomy:size=13b,reference=1"):
        plum = load_config(spec)
        assert config_from_json(config_json(plum)) == plum
        plum = flatten(plum)
        free = lambda keys: {k for k in keys if not k.startswith("data.question_weights.")}  # noqa: E731
        assert free(plum) == free(tiny)
        assert {k: type(plum[k]) for k in free(tiny)} == {k: type(tiny[k]) for k in free(tiny)}


@pytest.mark.parametrize("arg", ["size=70b", "stage=ft", "reference=maybe", "depth=3"])
@pytest.mark.parametrize("name", ["plum", "partonomy"])
def test_wrong_arguments_name_what_is_allowed(name, arg):
    with pytest.raises(UserError, match=f"{arg.partition('=')[0]}.*; change what follows the colon"):
        load_config(f"{name}:{arg}")


COUNTS = [  # images of an update, micro-batches, updates: docs/recipe.md
    ("plum.py", 128, 8, 12500), ("partonomy.py", 128, 8, 500),
    ("plum.py:reference=1", 1200, 100, 1250), ("partonomy.py:reference=1", 120, 10, 500),
]  # fmt: skip


@pytest.mark.parametrize("spec, images, micro, steps", COUNTS)
def test_counts_of_the_stages(spec, images, micro, steps):
    config = load_config(spec, ["data.root=data", "tokenizer=tiny"])
    assert (config.data.global_batch, config.data.micro_batches, config.train.steps) == (images, micro, steps)
    check_settings(config)
    PlumConfig.from_dict(config.model)
    table = (ROOT / "docs" / "recipe.md").read_text(encoding="utf-8")
    row = next(line for line in table.splitlines() if line.startswith(f"| `configs/{spec}` |"))
    assert [f"{x:,}" for x in (images, micro, steps, images * steps)] == [cell.strip() for cell in row.split("|")[2:6]]


@pytest.mark.parametrize("name, schedule, shape", [("plum", "0shot", "dice"), ("partonomy", "ft", "focal_tversky")])
def test_the_reference_preset_of_a_stage(name, schedule, shape):
    plain, config = load_config(name), load_config(f"{name}:reference=1")
    assert (config.optim.schedule, config.loss.shape) == (f"reference_{schedule}", shape)
    assert (plain.optim.schedule, plain.loss.shape) == ("clean", "focal_tversky")
    assert plain.model.llama == config.model.llama and plain.trainable == config.trainable


def test_the_stages_share_everything_but_their_data_and_their_length():
    first, second = flatten(load_config("plum:size=13b")), flatten(load_config("partonomy:size=13b"))
    own = {"name", "train.steps", "data.sources", "data.grounded", "data.max_spans", "data.max_masks"}
    assert {key for key in first if first[key] != second[key]} == own


def test_the_reference_preset_sets_every_switch():
    """Every switch away from its default, except where the reference does what is right: its template and its tokenizer."""
    plain, changed = load_config("partonomy"), load_config("partonomy:reference=1")
    same = {"data.tokenizer_flavour", "data.clip_view", "eval.empty_union"}
    for name, values in SWITCHES.items():
        part, key = name.split(".")
        assert (changed[part][key] == values[0]) == (name in same - {"data.clip_view"}), name
        if name != "data.clip_view":
            assert plain[part][key] == values[0], name
    for name in ("dtype", "logits_dtype"):
        assert changed.model[name] == "bfloat16"
    assert (changed.model.decoder.pe_dtype, changed.optim.clip_norm) == ("bfloat16", 0.0)


def test_faithful_touches_only_switches_and_is_documented():
    plain, changed = load_config("tiny"), load_config("tiny")
    faithful(changed, "ft")
    plain, changed = flatten(plain), flatten(changed)
    touched = {key for key in plain if plain[key] != changed[key]}
    table = (ROOT / "docs" / "faithful.md").read_text(encoding="utf-8")
    documented = set(re.findall(r"^\| `([a-z_.0-9]+)`", table, re.M))
    assert touched | set(SWITCHES) <= documented
    assert documented <= set(plain) and len(touched) > 15
    for name, values in SWITCHES.items():  # every value of a switch is in its row
        row = next(line for line in table.splitlines() if line.startswith(f"| `{name}`"))
        assert all(f"`{str(value).lower() if isinstance(value, bool) else value}`" in row for value in values), row


@pytest.mark.parametrize("name", SWITCHES)
def test_unknown_values_are_one_sentence(name):
    config = small_config()
    check_switches(config)  # a config from before there were switches
    config[name.split(".")[0]] = {**config.get(name.split(".")[0], {}), name.split(".")[1]: "nonsense"}
    with pytest.raises(UserError, match=rf"config\.{name}: 'nonsense' is not known; use {SWITCHES[name][0]} or "):
        check_switches(config)


@pytest.mark.parametrize(
    "override, message",
    [
        ("optim.clip_norm=-1.0", "config.optim.clip_norm: -1.0 is not a norm"),
        ("eval.tie=last", "config.eval.tie: 'last' is not known; use wrong or first"),
    ],
)
def test_settings_that_cannot_work(override, message):
    with pytest.raises(UserError, match=re.escape(message)):
        check_settings(load_config("tiny", ["data.folder=data", override]))


@pytest.mark.parametrize("reference, dtype", [(0, "float32"), (1, "bfloat16")])
def test_a_base_gives_sizes_and_the_run_keeps_its_switches(reference, dtype):
    """What the weights are comes from the base, what is done with them from the config of the run."""
    config, base = load_config(f"plum:reference={reference}"), load_config("plum:size=13b")
    base.model.llama.epsilon = 1e-6
    del base.model.logits_dtype  # a base from before there was such a switch
    adopt(config, SimpleNamespace(config=base, folder=Path("base"), sha256="0"))
    assert (config.model.llama.width, config.model.llama.epsilon) == (5120, 1e-6)
    assert (config.model.logits_dtype, config.model.decoder.pe_dtype) == (dtype, dtype)
    assert config.data.span_pairing == ("rank" if reference else "name")
    PlumConfig.from_dict(config.model)
