"""Parameters of ours -> the dictionary of named tensors that the PyTorch transcription takes, and the numbers beside them."""

import numpy as np

from plum_jax.convert.keys import rules


def numbers(config):
    """PlumConfig -> what the transcription must be told beside the tensors."""
    from tests.reference.torch_plum import Numbers

    c = config
    return Numbers(
        llama_heads=c.llama.heads,
        rms_epsilon=c.llama.epsilon,
        rope_theta=c.llama.rope_theta,
        lora_scale=c.llama.lora_alpha / max(c.llama.lora_rank, 1),
        clip_heads=c.clip.heads,
        clip_layers=c.clip.depth,
        sam_heads=c.sam.heads,
        sam_window=c.sam.window,
        sam_global_blocks=tuple(c.sam.global_blocks),
        decoder_heads=c.decoder.heads,
        bio_heads=c.tagger.heads,
        pooler_heads=c.feedback_heads,
        image_start=c.llama.vocab_size - 2,
        end=2,
    )


def tensors_of(config, flat, parts=None):
    """{path: array} of ours -> {PyTorch name: array}; packed pieces are joined, the vocabulary is not padded.

    parts: the modules of Plum that `flat` holds, such as ("mask_decoder",); None for all.
    """
    pieces = {}
    for rule in rules(config):
        if parts is not None and rule.path.partition("/")[0] not in parts:
            continue
        for layer, name in rule.items():
            array = rule.to_torch(flat[rule.path] if layer is None else flat[rule.path][layer])
            array = array[: config.llama.vocab_size] if rule.vocabulary else array
            pieces.setdefault(name, {})[rule.piece[0]] = array
    return {name: np.ascontiguousarray(np.concatenate([found[i] for i in sorted(found)])) for name, found in pieces.items()}
