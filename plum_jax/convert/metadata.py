"""The JSON files beside exported weights: what transformers, PEFT and the published program read to build the model."""

import shutil
from pathlib import Path

from plum_jax.errors import UserError
from plum_jax.models.sam_decoder import MAP_EPSILON, MASK_TOKENS, TWO_WAY_EPSILON
from plum_jax.run_record import write_json

TOKENS = dict(bos_token_id=1, eos_token_id=2, pad_token_id=0)
ROPE_THETA = 10000.0  # of transformers 4.31, which reads no other
INITIALIZER_RANGE = 0.02
CLIP_NAME = "openai/clip-vit-large-patch14"  # M 1.3
VERSION = "4.31.0"  # of transformers: what the published program runs with
TOKENIZER_FILES = (
    "tokenizer.json", "tokenizer.model", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json",
)  # fmt: skip


def check_plum(config):
    """UserError for a PlumConfig that the published program would compute otherwise."""
    if config.llama.rope_theta != ROPE_THETA:
        raise UserError(
            f"config.model.llama.rope_theta: {config.llama.rope_theta} is not {ROPE_THETA}, PLUM's only; export with --to hf"
        )


def write_plum(folder, config, *, dtype, clip=CLIP_NAME, max_positions=4096):
    """config.json and generation_config.json of a merged PLUM checkpoint (M 9.1).

    Args:
      config: PlumConfig.
      dtype: of the language model's weights, "bfloat16" or "float32".
      clip: name or folder of the CLIP model, which a merged checkpoint does not hold.
      max_positions: the longest sequence; our rotary embedding has no table, so the config does not say.

    Raises:
      UserError: the published program would compute something else.
    """
    check_plum(config)
    llama = config.llama
    projector = {"mm_projector_type": "mlp2x_gelu"} if config.projector == "mlp" else {}  # LLaVA-1.5's word for two layers
    entries = dict(
        _llama(llama, dtype, max_positions),
        architectures=["PLUMForCausalLM"],
        freeze_mm_mlp_adapter=True,
        image_aspect_ratio="square",
        image_grid_pinpoints=None,
        mm_hidden_size=config.clip.width,
        mm_use_im_patch_token=False,
        mm_use_im_start_end=True,
        mm_vision_select_feature="patch",
        mm_vision_select_layer=-2,
        mm_vision_tower=clip,
        model_type="llava",
        out_dim=config.decoder.width,
        pretrain_mm_mlp_adapter=None,
        rope_scaling=None,
        train_mask_decoder=True,
        train_mask_prompt_encoder=True,
        transformers_version=VERSION,
        tune_mm_mlp_adapter=False,
        use_cache=False,
        use_mm_proj=True,
        vision_tower=clip,
        **projector,
    )
    write_json(Path(folder) / "config.json", dict(sorted(entries.items())))
    _write_generation(folder)


def write_llama(folder, config, *, dtype, max_positions=4096):
    """config.json and generation_config.json of transformers' LlamaForCausalLM, for the decoder of a PlumConfig."""
    theta = config.llama.rope_theta
    entries = dict(
        _llama(config.llama, dtype, max_positions),
        architectures=["LlamaForCausalLM"],
        attention_bias=False,
        attention_dropout=0.0,
        mlp_bias=False,
        model_type="llama",
        rope_parameters={"rope_type": "default", "rope_theta": theta},  # where transformers 5 looks
        rope_theta=theta,  # where 4 looks
        use_cache=True,
    )
    write_json(Path(folder) / "config.json", dict(sorted(entries.items())))
    _write_generation(folder)


def _llama(llama, dtype, max_positions):
    """What all configs of the decoder say; `vocab_size` is without our padding."""
    return dict(
        hidden_act="silu", hidden_size=llama.width, initializer_range=INITIALIZER_RANGE, intermediate_size=llama.mlp,
        max_position_embeddings=max_positions, num_attention_heads=llama.heads, num_hidden_layers=llama.depth,
        num_key_value_heads=llama.heads, pretraining_tp=1, rms_norm_eps=llama.epsilon, tie_word_embeddings=False,
        torch_dtype=dtype, vocab_size=llama.vocab_size, **TOKENS,
    )  # fmt: skip


def _write_generation(folder):
    entries = dict(_from_model_config=True, **TOKENS, transformers_version=VERSION)
    write_json(Path(folder) / "generation_config.json", entries)


def write_sam(folder, config, *, dtype):
    """config.json of transformers' SamModel for the encoder and the mask decoder of a PlumConfig.

    SamModel's default of 1e-6 for the norms of the two-way transformer is not SAM's (M 9.3); the config says what is.
    """
    sam, decoder = config.sam, config.decoder
    vision = dict(
        attention_dropout=0.0, global_attn_indexes=list(sam.global_blocks), hidden_act="gelu", hidden_size=sam.width,
        image_size=sam.image_size, layer_norm_eps=sam.epsilon, mlp_dim=sam.mlp, num_attention_heads=sam.heads,
        num_hidden_layers=sam.depth, num_pos_feats=decoder.width // 2, output_channels=sam.out_width, patch_size=sam.patch,
        qkv_bias=True, use_abs_pos=True, use_rel_pos=True, window_size=sam.window, model_type="sam_vision_model",
    )  # fmt: skip
    prompts = dict(
        hidden_act="gelu", hidden_size=decoder.width, image_size=sam.image_size, layer_norm_eps=MAP_EPSILON,
        mask_input_channels=decoder.mask_channels, model_type="sam_prompt_encoder", num_point_embeddings=4,
        patch_size=sam.patch,
    )  # fmt: skip
    masks = dict(
        attention_downsample_rate=decoder.attention_downsample, hidden_act="relu", hidden_size=decoder.width, iou_head_depth=3,
        iou_head_hidden_dim=decoder.width, layer_norm_eps=TWO_WAY_EPSILON, mlp_dim=decoder.mlp,
        num_attention_heads=decoder.heads, num_hidden_layers=decoder.depth, num_multimask_outputs=MASK_TOKENS - 1,
        model_type="sam_mask_decoder",
    )  # fmt: skip
    entries = dict(
        architectures=["SamModel"], initializer_range=INITIALIZER_RANGE, mask_decoder_config=masks, model_type="sam",
        prompt_encoder_config=prompts, torch_dtype=dtype, vision_config=vision,
    )  # fmt: skip
    write_json(Path(folder) / "config.json", entries)


def write_adapter(folder, config, *, base):
    """adapter_config.json of PEFT (M 9.6) for the LoRA matrices of a PlumConfig, which are named `adapter.PREFIX` + name.

    Args:
      base: name or folder of the model that the adapter belongs to.

    Raises:
      UserError: the model has no adapters.
    """
    llama = config.llama
    if not llama.lora_rank:
        raise UserError("config.model.llama.lora_rank: is 0, the model has no adapters; export with --to plum or --to hf")
    modules = [f"model.layers.{i}.self_attn.{name}" for i in range(llama.depth) for name in ("q_proj", "v_proj")]
    entries = dict(
        base_model_name_or_path=str(base), bias="none", fan_in_fan_out=False, inference_mode=True, init_lora_weights=True,
        layers_pattern=None, layers_to_transform=None, lora_alpha=llama.lora_alpha, lora_dropout=llama.lora_dropout,
        modules_to_save=None, peft_type="LORA", r=llama.lora_rank, revision=None, target_modules=modules, task_type="CAUSAL_LM",
    )  # fmt: skip
    write_json(Path(folder) / "adapter_config.json", entries)


def copy_tokenizer(source, folder):
    """Copies the files of a tokenizer from a folder -> their names. UserError when it has none."""
    names = [name for name in TOKENIZER_FILES if (Path(source) / name).is_file()]
    if not {"tokenizer.json", "tokenizer.model"} & set(names):
        raise UserError(f"{source}: no tokenizer.json or tokenizer.model there; give a folder with a tokenizer")
    Path(folder).mkdir(parents=True, exist_ok=True)
    for name in names:
        shutil.copyfile(Path(source) / name, Path(folder) / name)
    return names
