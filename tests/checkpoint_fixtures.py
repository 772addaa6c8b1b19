"""Small checkpoints in the formats that `plum convert` reads, written from random parameters of ours."""

import argparse
import json
import shutil

import numpy as np
from flax.traverse_util import flatten_dict
from model_fixtures import random_params, small_config

from data_pipelines.tokenizer import ASSETS
from plum_jax.convert.keys import POOLER_COPIES, SAM
from plum_jax.models.plum import PlumConfig, build
from tests.reference.published_names import tensors_of

CLIP_LAYERS = 2  # of which the language model sees the first


def plum_config(**model):
    """Like `small_config`, with the head counts that the reference fixes and no adapters, as in a merged folder."""
    config = small_config(**model).model
    config.llama.update(vocab_size=1024, vocab_multiple=256, lora_rank=0, lora_alpha=16.0, lora_dropout=0.05)
    config.sam.update(out_width=32)
    config.decoder.update(heads=8)
    config.tagger.update(heads=8, dropout=0.1)
    config.update(feedback_heads=8, remat="full")
    return PlumConfig.from_dict(config)


def parameters(config, seed=0):
    """{path: float32 array} of random parameters; the padding of the vocabulary is zero."""
    flat = flatten_dict(random_params(build(config)[1], seed, adapters=True), sep="/")
    flat["llama/embed"][config.llama.vocab_size :] = 0
    flat["llama/lm_head/kernel"][:, config.llama.vocab_size :] = 0
    return flat


def with_copies(tensors):
    """Adds what a merged folder holds twice, and its derived buffers."""
    copies = {
        copy + name.removeprefix(original): array
        for copy, original in POOLER_COPIES.items()
        for name, array in tensors.items()
        if name.startswith(original)
    }
    return tensors | copies | {"model.layers.0.self_attn.rotary_emb.inv_freq": np.ones(4, np.float32)}


def split(tensors):
    """-> (language model with heads and SAM, SAM by Meta's names, CLIP with a layer that PLUM does not use)."""
    clip = {name: array for name, array in tensors.items() if name.startswith("vision_model.")}
    last = f"vision_model.encoder.layers.{CLIP_LAYERS - 2}."
    unused = {
        name.replace(last, f"vision_model.encoder.layers.{CLIP_LAYERS - 1}."): a for name, a in clip.items() if last in name
    }
    sam = {name.removeprefix(SAM): array for name, array in tensors.items() if name.startswith(SAM)}
    return {n: a for n, a in tensors.items() if n not in clip}, sam, {"logit_scale": np.ones(1, np.float32), **clip, **unused}


def save(tensors, file):
    """.safetensors, or what torch.save writes."""
    if file.suffix == ".safetensors":
        from safetensors.numpy import save_file

        save_file(tensors, file)
        return
    import torch

    torch.save({name: torch.from_numpy(array.copy()) for name, array in tensors.items()}, file)


def save_shards(tensors, folder, count=2, suffix="bin"):
    """pytorch_model-0000k-of-0000m.bin (or model-...safetensors) with their index."""
    stem, weight_map = "pytorch_model" if suffix == "bin" else "model", {}
    for k in range(count):
        name = f"{stem}-{k + 1:05d}-of-{count:05d}.{suffix}"
        shard = dict(list(tensors.items())[k::count])
        save(shard, folder / name)
        weight_map.update(dict.fromkeys(shard, name))
    index = {"metadata": {"total_size": 0}, "weight_map": weight_map}
    (folder / f"{stem}.{suffix}.index.json").write_text(json.dumps(index))


def llama_facts(config):
    """The config.json of a merged folder."""
    c = config.llama
    return dict(
        architectures=["PLUMForCausalLM"], model_type="llava", hidden_size=c.width, num_attention_heads=c.heads,
        num_key_value_heads=c.heads, num_hidden_layers=c.depth, intermediate_size=c.mlp, rms_norm_eps=c.epsilon,
        hidden_act="silu", vocab_size=c.vocab_size, mm_vision_select_layer=-2, mm_vision_select_feature="patch",
        pretraining_tp=1,
    )  # fmt: skip


def folder_of(root, name, tensors, facts, *, tokenizer=False, suffix="safetensors"):
    """A folder with one file of weights, config.json and, where asked for, the tiny tokenizer."""
    folder = root / name
    folder.mkdir(parents=True)
    save(tensors, folder / ("model.safetensors" if suffix == "safetensors" else "pytorch_model.bin"))
    (folder / "config.json").write_text(json.dumps(facts))
    if tokenizer:
        for file in (ASSETS / "tokenizer_tiny").iterdir():
            shutil.copy(file, folder / file.name)
    return folder


def write_sources(root, config, seed=0):
    """-> ({path: array} that must come out, {flag: path}): a merged folder, and the parts that PLUM is built from."""
    flat = parameters(config, seed)
    plum, sam, clip = split(tensors_of(config, flat))
    heads = ("model.token_to_mask_fcs.", "model.text_hidden_fcs.", "bio_encoder.", "mask_pooler.", SAM)
    llava = {name: array for name, array in plum.items() if not name.startswith(heads)}
    eye = dict(num_attention_heads=config.clip.heads, layer_norm_eps=config.clip.epsilon, hidden_act="quick_gelu")
    (root / "sam").mkdir(parents=True)
    save(sam, root / "sam" / "sam_vit.pth")
    return flat, {
        "plum": folder_of(root, "plum", with_copies(plum), llama_facts(config), tokenizer=True),
        "llava": folder_of(root, "llava", llava, llama_facts(config), tokenizer=True),
        "clip": folder_of(root, "clip", clip, {"vision_config": eye}),
        "sam": root / "sam" / "sam_vit.pth",
    }


def arguments(out, **given):
    """What `plum convert` parses from its flags; the rest as by default."""
    defaults = dict(
        plum=None, llava=None, sam=None, clip=None, adapter=None, merge_adapter=False, dtype="float32", verify=False,
        tokenizer=None, hf_config=None, tagger_heads=8, lora_alpha=16.0, no_feedback=False, ignore=None, checkpoint=None,
        to=None,
    )  # fmt: skip
    return argparse.Namespace(
        out=str(out), **{**defaults, **{k: str(v) if hasattr(v, "joinpath") else v for k, v in given.items()}}
    )
