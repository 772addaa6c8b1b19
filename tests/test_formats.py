"""Checkpoints as other programs write them -> base weights: transformers' own classes, DeepSpeed, SAM of every size."""

import json
import shutil

import checkpoint_fixtures as fixtures
import numpy as np
import pytest
from convert_fixtures import write_zero

from data_pipelines.tokenizer import ASSETS
from plum_jax import base
from plum_jax.convert.keys import SAM
from plum_jax.convert.pipeline import convert
from plum_jax.convert.plan import make_plan
from plum_jax.convert.sizes import model_config
from plum_jax.convert.sources import open_clip, open_language, open_sam
from plum_jax.convert.tensors import Tensor
from plum_jax.errors import UserError

torch = pytest.importorskip("torch")


@pytest.fixture(scope="module")
def sources(tmp_path_factory):
    config = fixtures.plum_config()
    return config, *fixtures.write_sources(tmp_path_factory.mktemp("sources"), config)


def stored(folder, keys):
    opened = base.open_base(folder)
    return base.read_slices(folder / "params", opened.about["parameters"], keys)


def test_deepspeed_checkpoint_gives_the_float32_masters(sources, tmp_path):
    """Trained tensors from the flat vector of two ranks, frozen ones in bfloat16, adapters kept, CLIP from its folder."""
    import dataclasses

    plain, _, paths = sources
    config = dataclasses.replace(plain, llama=dataclasses.replace(plain.llama, lora_rank=2))
    flat = fixtures.parameters(config, seed=3)
    tensors = fixtures.tensors_of(config, flat)
    named = {}
    for name, array in tensors.items():
        name = name.replace("lora_A.weight", "lora_A.default.weight").replace("lora_B.weight", "lora_B.default.weight")
        name = name.replace("vision_model.", "model.vision_tower.vision_tower.vision_model.")
        named[f"base_model.model.{name}"] = array
    trained = ("lora_", "embed_tokens", "prompt_encoder.", "mask_decoder.", "_fcs.", "lm_head", "bio_encoder.", "mask_pooler.")
    masters = {n: a for n, a in named.items() if any(word in n for word in trained) and "gaussian" not in n}
    frozen = {n: a for n, a in named.items() if n not in masters}
    aliases = {
        f"base_model.model.{copy}weight": f"base_model.model.{original}weight"
        for copy, original in fixtures.POOLER_COPIES.items()
        if not copy.endswith("prompt_encoder.")
    }
    write_zero(tmp_path / "run", masters, frozen, aliases=aliases, world=2)
    (tmp_path / "config.json").write_text(json.dumps(fixtures.llama_facts(config)))
    given = dict(clip=paths["clip"], tokenizer=ASSETS / "tokenizer_tiny", hf_config=tmp_path / "config.json")
    convert(fixtures.arguments(tmp_path / "base", plum=tmp_path / "run", **given))
    keys = [
        ("llama/embed", None),
        ("llama/layers/q_proj/lora_a", 1),
        ("feedback/queries", None),
        ("llama/layers/up_proj/kernel", 0),
    ]
    found = stored(tmp_path / "base", keys)
    np.testing.assert_array_equal(found[keys[0]], flat["llama/embed"])
    np.testing.assert_array_equal(found[keys[1]], flat["llama/layers/q_proj/lora_a"][1])
    np.testing.assert_array_equal(found[keys[2]], flat["feedback/queries"])
    rounded = torch.from_numpy(flat["llama/layers/up_proj/kernel"][0].copy()).bfloat16().float().numpy()
    np.testing.assert_array_equal(found[keys[3]], rounded)
    assert base.open_base(tmp_path / "base").config.model.llama.lora_rank == 2


def test_deepspeed_without_what_no_file_holds(sources, tmp_path):
    config, want, _ = sources
    tensors = {f"base_model.model.{n}": a for n, a in fixtures.tensors_of(config, want).items()}
    write_zero(tmp_path / "run", tensors, {})
    with pytest.raises(UserError, match="holds no tokenizer.json or tokenizer.model"):
        make_plan(fixtures.arguments(tmp_path / "base", plum=tmp_path / "run"))
    with pytest.raises(UserError, match="does not say num_attention_heads"):
        make_plan(fixtures.arguments(tmp_path / "base", plum=tmp_path / "run", tokenizer=ASSETS / "tokenizer_tiny"))


def randomise(model, seed):
    from tests.reference.torch_weights import randomise

    return randomise(model, seed)


@pytest.fixture(scope="module")
def llava(tmp_path_factory):
    """LLaVA-1.5 of transformers with its tower and a projector of two layers, saved by save_pretrained."""
    from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig, LlavaForConditionalGeneration

    folder = tmp_path_factory.mktemp("llava") / "hf"
    vision = CLIPVisionConfig(
        hidden_size=8, intermediate_size=16, num_hidden_layers=2, num_attention_heads=2, image_size=12, patch_size=4
    )
    text = LlamaConfig(
        vocab_size=1030, hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=2, rms_norm_eps=1e-5
    )
    model = randomise(
        LlavaForConditionalGeneration(LlavaConfig(vision_config=vision, text_config=text, image_token_index=1029)), 0
    )
    model.save_pretrained(folder)
    for file in (ASSETS / "tokenizer_tiny").iterdir():
        shutil.copy(file, folder / file.name)
    return model, folder


def test_llava_of_transformers_with_its_own_tower(sources, llava, tmp_path):
    model, folder = llava
    _, _, paths = sources
    convert(fixtures.arguments(tmp_path / "base", llava=folder, sam=paths["sam"]))
    opened = base.open_base(tmp_path / "base")
    config = opened.config.model
    assert config.projector == "mlp" and config.clip.depth == 1 and config.llama.vocab_size == 1030
    state = {name.removeprefix("model."): value.numpy() for name, value in model.state_dict().items()}
    keys = [("projector/linear2/kernel", None), ("llama/layers/down_proj/kernel", 1), ("clip/layers/linear1/bias", 0)]
    found = stored(tmp_path / "base", keys)
    np.testing.assert_array_equal(found[keys[0]], state["multi_modal_projector.linear_2.weight"].T)
    np.testing.assert_array_equal(found[keys[1]], state["language_model.layers.1.mlp.down_proj.weight"].T)
    bias = next(value for name, value in state.items() if name.endswith("encoder.layers.0.mlp.fc1.bias"))
    np.testing.assert_array_equal(found[keys[2]], bias)


def test_names_of_older_llava_files(llava):
    """What transformers wrote before 5: language_model.model.*, multi_modal_projector.*, vision_tower.vision_model.*"""
    from plum_jax.convert.sources import LLAVA_HF, rename

    _, folder = llava
    now = open_language(folder, "--llava").tensors
    old = {}
    for name, tensor in now.items():
        new = name.replace("model.mm_projector.0.", "multi_modal_projector.linear_1.")
        new = new.replace("model.mm_projector.2.", "multi_modal_projector.linear_2.").replace(
            "lm_head", "language_model.lm_head"
        )
        new = f"vision_tower.{new}" if new.startswith("vision_model.") else new
        old[f"language_model.{new}" if new.startswith(("model.layers", "model.norm", "model.embed")) else new] = tensor
    assert rename(old, LLAVA_HF).keys() == now.keys()


def test_clip_of_transformers_with_and_without_its_text_model(tmp_path):
    from transformers import CLIPConfig, CLIPModel, CLIPVisionConfig, CLIPVisionModel

    vision = dict(hidden_size=8, intermediate_size=16, num_hidden_layers=2, num_attention_heads=2, image_size=12, patch_size=4)
    text = dict(hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=2, vocab_size=9)
    CLIPModel(CLIPConfig(text_config=text, vision_config=vision)).save_pretrained(tmp_path / "whole")
    CLIPVisionModel(CLIPVisionConfig(**vision)).save_pretrained(tmp_path / "vision")
    whole, alone = open_clip(tmp_path / "whole"), open_clip(tmp_path / "vision")
    ours = {n for n in whole.tensors if not n.endswith("position_ids")}
    assert ours == {n for n in alone.tensors if not n.endswith("position_ids")} and "vision_model.pre_layrnorm.bias" in ours
    assert whole.facts["num_attention_heads"] == alone.facts["num_attention_heads"] == 2


def test_sam_of_transformers_gives_what_meta_s_file_gives(sources, tmp_path):
    """A SamModel with our sizes, saved by transformers, against the .pth of the same weights."""
    from transformers import SamConfig, SamModel

    from plum_jax.convert.metadata import write_sam

    config, _, paths = sources
    write_sam(tmp_path, config, dtype="float32")
    model = randomise(SamModel(SamConfig.from_pretrained(tmp_path)), 1)
    with torch.no_grad():  # tied, but saved as two tensors
        model.prompt_encoder.shared_embedding.positional_embedding.copy_(model.shared_image_embedding.positional_embedding)
    model.save_pretrained(tmp_path / "sam")
    found, meta = open_sam(tmp_path / "sam"), open_sam(paths["sam"])
    assert found.tensors.keys() == meta.tensors.keys()
    assert {n: t.shape for n, t in found.tensors.items()} == {n: t.shape for n, t in meta.tensors.items()}
    given = dict(llava=paths["llava"], clip=paths["clip"])
    convert(fixtures.arguments(tmp_path / "base", sam=tmp_path / "sam", **given))
    key = ("mask_decoder/hypernetworks/linear3/kernel", 2)
    want = model.mask_decoder.output_hypernetworks_mlps[2].proj_out.weight.numpy().T
    np.testing.assert_array_equal(stored(tmp_path / "base", [key])[key], want)


SAM_SIZES = {  # width, depth, heads, global blocks (Meta's build_sam)
    "b": (768, 12, 12, (2, 5, 8, 11)),
    "l": (1024, 24, 16, (5, 11, 17, 23)),
    "h": (1280, 32, 16, (7, 15, 23, 31)),
}


@pytest.mark.parametrize("size", SAM_SIZES)
def test_sizes_of_every_sam_are_read_from_its_shapes(sources, size):
    width, depth, heads, wide = SAM_SIZES[size]
    _, _, paths = sources
    small = open_sam(paths["sam"])
    shapes = {
        "pos_embed": (1, 64, 64, width), "patch_embed.proj.weight": (width, 3, 16, 16), "neck.0.weight": (256, width, 1, 1),
        "blocks.0.mlp.lin1.weight": (4 * width, width),
        **{f"blocks.{i}.attn.rel_pos_h": (127 if i in wide else 27, width // heads) for i in range(depth)},
    }  # fmt: skip
    encoder = f"{SAM}image_encoder."
    tensors = {n: t for n, t in small.tensors.items() if not n.startswith(encoder)}
    tensors |= {f"{encoder}{name}": Tensor(shape, "float32", paths["sam"], None) for name, shape in shapes.items()}
    language, clip = open_language(paths["plum"], "--plum"), open_clip(paths["clip"])
    config = model_config(language, small._replace(tensors=tensors), clip, vocab=1024, lora={})
    assert config["sam"] == dict(
        image_size=1024, patch=16, width=width, depth=depth, heads=heads, mlp=4 * width, window=14, global_blocks=wide,
        epsilon=1e-6, out_width=256,
    )  # fmt: skip


@pytest.mark.parametrize(
    "given, sentence",
    [
        (dict(llava="llava", clip="clip", sam="clip"), "is no SAM checkpoint"),
        (dict(plum="plum", clip="plum"), "is no CLIP vision tower"),
        (dict(plum="llava", clip="clip"), "has no span tagger .token_to_mask_fcs., it is not PLUM"),
        (dict(plum="clip", clip="clip"), "holds no Llama decoder"),
        (dict(plum="plum", clip="clip", sam="sam"), "holds its own SAM, whose decoder was trained"),
        (dict(plum="plum"), "holds no CLIP vision tower; give one to --clip"),
    ],
)
def test_a_checkpoint_at_the_wrong_flag_is_named(sources, tmp_path, given, sentence):
    paths = {flag: sources[2][name] for flag, name in given.items()}
    with pytest.raises(UserError, match=sentence):
        make_plan(fixtures.arguments(tmp_path / "base", **paths))
