"""Exported folders: transformers builds the model from our JSON and finds every weight; the other layouts by their names."""

import json

import numpy as np
import pytest
from safetensors.numpy import save_file

from plum_jax.convert import adapter, hf_sam, metadata, tensors
from plum_jax.convert.shards import ShardWriter
from plum_jax.errors import UserError
from plum_jax.models.plum import PlumConfig
from tests.model_fixtures import small_config
from tests.reference.torch_weights import randomise

CONFIG = small_config(projector="linear").model
CONFIG.llama.update(rope_theta=5000.0, epsilon=1e-4, lora_dropout=0.05)
CONFIG = PlumConfig.from_dict(CONFIG)


@pytest.fixture(autouse=True)
def torch():
    yield pytest.importorskip("torch")
    tensors.close()


def export(folder, state, form, rename=lambda name: [name]):
    """Writes a torch state dict in shards of 2 kB under the names that `rename` gives."""
    with ShardWriter(folder, 2000, form=form) as writer:
        for name, value in state.items():
            for new in rename(name):
                writer.add(new, value.numpy())
        writer.finish()


def load(cls, folder):
    """transformers' own from_pretrained, without a word about missing, unexpected or mismatched weights."""
    model, report = cls.from_pretrained(folder, output_loading_info=True, local_files_only=True)
    assert not any(report.values()), report
    return model.eval()


@pytest.mark.parametrize("form", ["safetensors", "bin"])
def test_transformers_loads_llama(tmp_path, form):
    from transformers import AutoConfig, LlamaForCausalLM

    metadata.write_llama(tmp_path, CONFIG, dtype="float32", max_positions=64)
    oracle = randomise(LlamaForCausalLM(AutoConfig.from_pretrained(tmp_path)), 0)
    export(tmp_path, oracle.state_dict(), form)
    assert len(list(tmp_path.glob(f"*.{form}"))) > 3
    model = load(LlamaForCausalLM, tmp_path)
    for name, value in oracle.state_dict().items():
        np.testing.assert_array_equal(model.state_dict()[name], value)
    config, layers = model.config, model.model.layers
    assert (config.vocab_size, config.hidden_size, len(layers), config.num_attention_heads) == (60, 16, 2, 2)
    assert layers[0].mlp.gate_proj.weight.shape == (24, 16) and layers[0].input_layernorm.variance_epsilon == 1e-4
    np.testing.assert_allclose(model.model.rotary_emb.inv_freq, 5000.0 ** (-np.arange(4) / 4), rtol=1e-6)
    assert model.config.max_position_embeddings == 64
    assert model.generation_config.eos_token_id == 2 and model.generation_config.pad_token_id == 0


@pytest.mark.parametrize("form", ["safetensors", "bin"])
def test_transformers_loads_sam_under_our_names(tmp_path, form):
    from transformers import AutoConfig, SamModel

    metadata.write_sam(tmp_path, CONFIG, dtype="float32")
    oracle = randomise(SamModel(AutoConfig.from_pretrained(tmp_path)), 1)
    matrix = "shared_image_embedding.positional_embedding"
    ours = {hf_sam.from_hf(name): value for name, value in oracle.state_dict().items() if name != matrix}
    ours["prompt_encoder.pe_layer.positional_encoding_gaussian_matrix"] = oracle.state_dict()[matrix]
    export(tmp_path, ours, form, hf_sam.to_hf)
    written = set(tensors.read_folder(tmp_path))
    assert {matrix, "prompt_encoder.shared_embedding.positional_embedding"} <= written
    assert len(written) == len(ours) + 1
    model = load(SamModel, tmp_path)
    for name, value in oracle.state_dict().items():
        np.testing.assert_array_equal(model.state_dict()[name], value)
    two_way, final = model.mask_decoder.transformer.layers[0], model.mask_decoder.transformer.layer_norm_final_attn
    assert two_way.layer_norm1.eps == two_way.layer_norm4.eps == final.eps == 1e-5  # SAM's, not the default of transformers
    assert model.mask_decoder.upscale_layer_norm.eps == model.prompt_encoder.mask_embed.layer_norm1.eps == 1e-6
    assert [layer.attn.rel_pos_h.shape[0] for layer in model.vision_encoder.layers] == [5, 7]  # window 3, grid 4


def test_names_of_sam_in_full(torch):
    """Every name of SAM ViT-H: 594 of Meta's, 595 of transformers', each the inverse of the other (M 9.2, 9.3)."""
    from transformers import SamConfig, SamModel

    vision = dict(
        hidden_size=1280, num_hidden_layers=32, num_attention_heads=16, mlp_dim=5120, global_attn_indexes=[7, 15, 23, 31]
    )
    with torch.device("meta"):
        names = list(SamModel(SamConfig(vision_config=vision)).state_dict())
    meta = sorted({hf_sam.from_hf(name) for name in names})
    assert (len(names), len(meta)) == (595, 594)
    assert sorted(new for name in meta for new in hf_sam.to_hf(name)) == sorted(names)
    for name in (
        "image_encoder.blocks.31.attn.rel_pos_h", "image_encoder.blocks.3.mlp.lin1.bias", "image_encoder.blocks.9.norm2.bias",
        "image_encoder.neck.3.bias", "image_encoder.patch_embed.proj.weight", "image_encoder.pos_embed",
        "prompt_encoder.pe_layer.positional_encoding_gaussian_matrix", "prompt_encoder.point_embeddings.3.weight",
        "prompt_encoder.not_a_point_embed.weight", "prompt_encoder.no_mask_embed.weight",
        "prompt_encoder.mask_downscaling.6.weight", "mask_decoder.transformer.layers.1.cross_attn_image_to_token.out_proj.bias",
        "mask_decoder.transformer.layers.0.norm4.bias", "mask_decoder.transformer.layers.0.mlp.lin2.weight",
        "mask_decoder.transformer.final_attn_token_to_image.q_proj.weight", "mask_decoder.transformer.norm_final_attn.weight",
        "mask_decoder.iou_token.weight", "mask_decoder.mask_tokens.weight", "mask_decoder.output_upscaling.3.weight",
        "mask_decoder.output_hypernetworks_mlps.3.layers.0.weight", "mask_decoder.output_hypernetworks_mlps.0.layers.1.bias",
        "mask_decoder.iou_prediction_head.layers.2.weight",
    ):  # fmt: skip
        assert name in meta


def test_config_of_a_merged_checkpoint(tmp_path):
    """Key by key what the published program's own save has, at other sizes."""
    config = small_config().model
    config.llama.vocab_size = 62
    config = PlumConfig.from_dict(config)
    metadata.write_plum(tmp_path, config, dtype="bfloat16", clip="clip-tiny", max_positions=2048)
    assert json.loads((tmp_path / "config.json").read_text()) == {
        "architectures": ["PLUMForCausalLM"], "bos_token_id": 1, "eos_token_id": 2, "freeze_mm_mlp_adapter": True,
        "hidden_act": "silu", "hidden_size": 16, "image_aspect_ratio": "square", "image_grid_pinpoints": None,
        "initializer_range": 0.02, "intermediate_size": 24, "max_position_embeddings": 2048, "mm_hidden_size": 8,
        "mm_use_im_patch_token": False, "mm_use_im_start_end": True, "mm_vision_select_feature": "patch",
        "mm_vision_select_layer": -2, "mm_vision_tower": "clip-tiny", "model_type": "llava", "num_attention_heads": 2,
        "num_hidden_layers": 2, "num_key_value_heads": 2, "out_dim": 16, "pad_token_id": 0, "pretrain_mm_mlp_adapter": None,
        "pretraining_tp": 1, "rms_norm_eps": 1e-05, "rope_scaling": None, "tie_word_embeddings": False,
        "torch_dtype": "bfloat16", "train_mask_decoder": True, "train_mask_prompt_encoder": True,
        "transformers_version": "4.31.0", "tune_mm_mlp_adapter": False, "use_cache": False, "use_mm_proj": True,
        "vision_tower": "clip-tiny", "vocab_size": 62,
    }  # fmt: skip
    assert json.loads((tmp_path / "generation_config.json").read_text()) == {
        "_from_model_config": True, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0, "transformers_version": "4.31.0",
    }  # fmt: skip
    two_layers = PlumConfig.from_dict(small_config(projector="mlp").model)
    metadata.write_plum(tmp_path, two_layers, dtype="float32")
    assert json.loads((tmp_path / "config.json").read_text())["mm_projector_type"] == "mlp2x_gelu"
    with pytest.raises(UserError, match="config.model.llama.rope_theta: 5000.0 is not 10000.0"):
        metadata.write_plum(tmp_path, CONFIG, dtype="float32")


def test_an_adapter_folder_is_what_peft_reads(tmp_path):
    metadata.write_adapter(tmp_path, CONFIG, base="liuhaotian/llava")
    written = json.loads((tmp_path / "adapter_config.json").read_text())
    modules = [f"model.layers.{i}.self_attn.{name}" for i in range(2) for name in ("q_proj", "v_proj")]
    assert written == {
        "base_model_name_or_path": "liuhaotian/llava", "bias": "none", "fan_in_fan_out": False, "inference_mode": True,
        "init_lora_weights": True, "layers_pattern": None, "layers_to_transform": None, "lora_alpha": 4.0, "lora_dropout": 0.05,
        "modules_to_save": None, "peft_type": "LORA", "r": 2, "revision": None, "target_modules": modules,
        "task_type": "CAUSAL_LM",
    }  # fmt: skip
    shapes = {"lora_A": (2, 16), "lora_B": (16, 2)}
    arrays = {f"{m}.{x}.weight": np.full(shape, i, np.float32) for i, m in enumerate(modules) for x, shape in shapes.items()}
    with ShardWriter(tmp_path, stem="adapter_model") as writer:
        for name, array in arrays.items():
            writer.add(adapter.PREFIX + name, array)
        assert writer.finish() == tmp_path / "adapter_model.safetensors"
    in_file = tensors.read_file(tmp_path / "adapter_model.safetensors")
    assert "base_model.model.model.layers.1.self_attn.v_proj.lora_B.weight" in in_file and len(in_file) == 8
    found, rank, alpha, dropout = adapter.read_adapter(tmp_path)
    assert found.keys() == arrays.keys() and (rank, alpha, dropout) == (2, 4.0, 0.05)
    without = small_config().model
    without.llama.lora_rank = 0
    with pytest.raises(UserError, match="lora_rank: is 0, the model has no adapters"):
        metadata.write_adapter(tmp_path, PlumConfig.from_dict(without), base="x")


def test_files_of_a_tokenizer(tmp_path):
    (tmp_path / "from").mkdir()
    save_file({"a": np.zeros(1)}, tmp_path / "from" / "model.safetensors")
    (tmp_path / "from" / "tokenizer_config.json").write_text("{}")
    with pytest.raises(UserError, match="from: no tokenizer.json or tokenizer.model there"):
        metadata.copy_tokenizer(tmp_path / "from", tmp_path / "to")
    (tmp_path / "from" / "tokenizer.model").write_bytes(b"\1\2")
    assert metadata.copy_tokenizer(tmp_path / "from", tmp_path / "to") == ["tokenizer.model", "tokenizer_config.json"]
    assert sorted(path.name for path in (tmp_path / "to").iterdir()) == ["tokenizer.model", "tokenizer_config.json"]
    assert (tmp_path / "to" / "tokenizer.model").read_bytes() == b"\1\2"
