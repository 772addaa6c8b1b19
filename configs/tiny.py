"""The whole of PLUM at a size that two CPU cores train in ten minutes on the synthetic data.

The same code as the full model, with every size smaller and everything trained from random weights.
"""

import ml_collections


def get_config(arg=""):
    """Tiny PLUM on a folder that `plum data make` wrote: `--config.data.folder=DIR`."""
    del arg
    config = ml_collections.ConfigDict()
    # fmt: off
    config.name = "tiny"
    config.seed = 0
    config.tokenizer = "tiny"  # a folder with tokenizer.json, or the name of one that ships with the package
    config.base = ""  # base weights of plum convert to start from; the sizes below are then those of the base
    config.model = dict(
        dtype="float32",  # of activations
        logits_dtype="float32",
        llama=dict(
            vocab_size=1024, width=96, depth=2, heads=3, mlp=256, rope_theta=10000.0, epsilon=1e-5,
            lora_rank=4, lora_alpha=8.0, lora_dropout=0.0, int8=False,
        ),
        clip=dict(image_size=96, patch=12, width=96, depth=3, heads=3, mlp=384, epsilon=1e-5),
        sam=dict(
            image_size=96, patch=8, width=96, depth=4, heads=3, mlp=384, window=6, global_blocks=(1, 3), epsilon=1e-6,
            out_width=64,
        ),
        decoder=dict(depth=2, heads=4, mlp=256, attention_downsample=2, mask_channels=16, pe_dtype="float32"),
        tagger=dict(heads=3, mlp=256, epsilon=1e-5, dropout=0.0),
        feedback=True,
        feedback_heads=4,
        grounding="span",  # or "seg_token": a <seg> token behind every part in place of the tagger (docs/study.md)
        projector="linear",
        remat="none",
    )
    config.trainable = r".*"  # a regular expression on parameter paths
    config.loss = dict(
        language=1.0, tag=0.5, tag_class_weights=(0.1, 1.0, 1.0), tag_positions="text", reference=0.0, average="step",
        shape="dice", shape_weight=1.0, dice_scale=1000.0, tversky_alpha=0.7, tversky_beta=0.3, tversky_gamma=0.75,
        tversky_clamp=True, bce=2.0, patch=1.0,
    )
    config.optim = dict(
        name="muon", lr=4e-3, beta1=0.9, beta2=0.95, epsilon=1e-8, weight_decay=0.05, schedule="clean", warmup_steps=60,
        decay="cosine", final_lr=0.02, clip_norm=1.0, accumulate_dtype="float32",
    )
    config.mesh = dict(data=-1, fsdp=1, tensor=1)
    config.data = dict(
        folder="", root="", sources=(), train_split="train", template="brief", tokenizer_flavour="fast",
        span_source="constructed", span_pairing="name", resize_mismatched_masks="error", clip_view="pad",
        question_weights=dict(identification_with_label=4.0, default=1.0),
        global_batch=40, micro_batches=1, conversations=1, grounded=(1, 4), max_tokens=72, max_spans=8, max_masks=8,
        canvas=(128, 128), workers=0, cache=True,
    )
    config.train = dict(steps=600, log_every=20, save_every=200, keep=2, nonfinite="stop", max_skipped=20)
    config.eval = dict(
        mc_score="answer_mean", mc_dtype="float32", tie="wrong", empty_union="one", span_scope="assistant", feedback=True,
        min_score=0.0, max_new_tokens=64, ignore255_as_fg=False,
        grounding="pred_answer_pred_spans", match="paired_strict", all_span_occurrences=False,
        # Validation during training: every how many steps (0: never), on the first images of a split of the folder (that of
        # the training data where it is empty). text_sources are like data.sources: held-out text whose language loss is taken.
        every=0, folder="", split="val", images=32, question_types=(), text_sources=(), text_batches=4,
    )
    config.vqa = dict(metric="official")
    config.checkpoint = dict(best_metric="gmiou_macro", best_mode="max")  # which validated step is kept besides the last ones
    return config
