import json

import checkpoint_fixtures as fixtures
import ml_dtypes
import numpy as np
import pytest
from flax.traverse_util import flatten_dict

from plum_jax import base, loading
from plum_jax.convert.export import export
from plum_jax.convert.pipeline import convert
from plum_jax.convert.tensors import read_folder
from plum_jax.errors import UserError

pytest.importorskip("torch")


@pytest.fixture(scope="module")
def sources(tmp_path_factory):
    config = fixtures.plum_config()
    return config, *fixtures.write_sources(tmp_path_factory.mktemp("sources"), config)


@pytest.fixture(scope="module", params=["float32", "bf16"])
def converted(request, sources, tmp_path_factory):
    out = tmp_path_factory.mktemp("converted") / "base"
    convert(fixtures.arguments(out, plum=sources[2]["plum"], clip=sources[2]["clip"], dtype=request.param))
    return request.param, out


def stored(folder):
    """{(path, layer): array} of base weights, as they lie on disk."""
    opened = base.open_base(folder)
    parameters = opened.about["parameters"]
    keys = [(p, i) for p, x in parameters.items() for i in (range(x["shape"][0]) if x["stacked"] else [None])]
    return base.read_slices(folder / "params", parameters, keys)


@pytest.mark.parametrize("form", ["safetensors", "bin"])
def test_convert_export_convert_is_the_identity(sources, converted, tmp_path, form):
    dtype, folder = converted
    assert export(folder, "plum", tmp_path / "plum", form=form) == 0
    convert(fixtures.arguments(tmp_path / "base", plum=tmp_path / "plum", clip=sources[2]["clip"], dtype=dtype))
    first, second = stored(folder), stored(tmp_path / "base")
    assert first.keys() == second.keys()
    for key, array in first.items():
        assert array.dtype == second[key].dtype and array.tobytes() == second[key].tobytes(), key


def test_a_merged_folder_has_the_names_and_values_of_the_source(sources, converted, tmp_path):
    dtype, folder = converted
    _, _, paths = sources
    export(folder, "plum", tmp_path / "plum")
    want, got = read_folder(paths["plum"]), read_folder(tmp_path / "plum")
    rotary = {name for name in got if name.endswith("inv_freq")}
    assert len(rotary) == 2 and got.keys() - rotary == {n for n in want if not n.endswith("inv_freq")}
    for name in got.keys() - rotary:
        array = want[name].read()
        if got[name].dtype == "bfloat16":
            array = array.astype(ml_dtypes.bfloat16)
        np.testing.assert_array_equal(got[name].read(), array, err_msg=name)
    facts = json.loads((tmp_path / "plum" / "config.json").read_text())
    assert facts["architectures"] == ["PLUMForCausalLM"] and facts["vocab_size"] == 1024
    assert facts["torch_dtype"] == {"bf16": "bfloat16", "float32": "float32"}[dtype]


def test_llama_and_sam_load_in_transformers_and_compute_the_same(sources, converted, tmp_path):
    import torch
    from transformers import AutoTokenizer, LlamaForCausalLM, SamModel

    dtype, folder = converted
    export(folder, "hf", tmp_path / "hf")
    llama, info = LlamaForCausalLM.from_pretrained(tmp_path / "hf" / "llama", output_loading_info=True, dtype=torch.float32)
    assert not any(info[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    sam, info = SamModel.from_pretrained(tmp_path / "hf" / "sam", output_loading_info=True)
    assert not any(info[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    assert AutoTokenizer.from_pretrained(tmp_path / "hf" / "llama").convert_tokens_to_ids("<im_end>") > 0
    opened = stored(folder)
    np.testing.assert_array_equal(
        llama.model.layers[1].mlp.up_proj.weight.detach(), opened["llama/layers/up_proj/kernel", 1].T.astype(np.float32)
    )
    np.testing.assert_array_equal(
        sam.mask_decoder.upscale_conv1.weight.detach(),
        opened["mask_decoder/upscale1/kernel", None].transpose(2, 3, 0, 1).astype(np.float32),
    )
    heads = read_folder(tmp_path / "hf")
    assert "bio_encoder.encoder.layers.0.linear1.weight" in heads and not any(n.startswith("model.layers") for n in heads)


def test_heads_that_were_never_trained_are_not_exported(sources, tmp_path):
    _, _, paths = sources
    convert(fixtures.arguments(tmp_path / "base", **{flag: paths[flag] for flag in ("llava", "sam", "clip")}))
    with pytest.raises(UserError, match="span tagger, span projector, mask feedback never trained"):
        export(tmp_path / "base", "plum", tmp_path / "plum")
    assert not (tmp_path / "plum").exists() and not (tmp_path / ".plum.partial").exists()
    export(tmp_path / "base", "hf", tmp_path / "hf")
    assert (tmp_path / "hf" / "llama" / "model.safetensors").is_file()


def test_adapters_come_back_and_are_folded_into_a_merged_folder(sources, tmp_path):
    config, want, paths = sources
    adapted = fixtures.plum_config()
    import dataclasses

    adapted = dataclasses.replace(adapted, llama=dataclasses.replace(adapted.llama, lora_rank=2, lora_alpha=6.0))
    flat = fixtures.parameters(adapted, seed=1)
    lora = {path: array for path, array in flat.items() if "/lora_" in path}
    names = fixtures.tensors_of(adapted, flat)
    folder = tmp_path / "adapter"
    folder.mkdir()
    fixtures.save({f"base_model.model.{n}": a for n, a in names.items() if "lora_" in n}, folder / "adapter_model.safetensors")
    facts = dict(peft_type="LORA", r=2, lora_alpha=6, lora_dropout=0.1, bias="none", target_modules=["q_proj", "v_proj"])
    (folder / "adapter_config.json").write_text(json.dumps(facts))
    given = dict(plum=paths["plum"], clip=paths["clip"], adapter=folder)
    convert(fixtures.arguments(tmp_path / "kept", **given))
    loaded = loading.load_model(tmp_path / "kept")
    assert loaded.config.model.llama.lora_alpha == 6 and loaded.config.model.llama.lora_dropout == 0.1
    got = flatten_dict(loaded.params, sep="/")
    for path, array in lora.items():
        np.testing.assert_array_equal(got[path], array)

    export(tmp_path / "kept", "peft", tmp_path / "again")
    first, second = (read_folder(f) for f in (folder, tmp_path / "again"))
    assert first.keys() == second.keys()
    assert all(first[n].read().tobytes() == second[n].read().tobytes() for n in first)

    convert(fixtures.arguments(tmp_path / "merged", merge_adapter=True, **given))
    export(tmp_path / "kept", "plum", tmp_path / "plum")
    folded = read_folder(tmp_path / "plum")
    for layer in range(2):
        path = "llama/layers/v_proj/kernel"
        whole = want[path][layer] + 3 * lora["llama/layers/v_proj/lora_a"][layer] @ lora["llama/layers/v_proj/lora_b"][layer]
        np.testing.assert_allclose(stored(tmp_path / "merged")[path, layer], whole, atol=1e-6)
        np.testing.assert_allclose(folded[f"model.layers.{layer}.self_attn.v_proj.weight"].read().T, whole, atol=1e-6)
