"""PLUM at its published sizes (arXiv 2505.20759): the constants of its parts, its recipe, and the first of its two stages.

The weights come from `config.base`, a folder that `plum convert` wrote: LLaVA Llama-2 chat, CLIP ViT-L/14, SAM ViT-H.
"""

import ml_collections

from configs.common import faithful, parse_arg

LLAMA = {"7b": dict(width=4096, depth=32, heads=32, mlp=11008), "13b": dict(width=5120, depth=40, heads=40, mlp=13824)}
IMAGES = 12  # of a micro-batch of the reference: 6 on each of 2 GPUs in its log
EPOCHS, EPOCH = 25, 500  # of stage 1, and the updates that its script calls an epoch, of 10 micro-batches each


def model_config(size):
    """config.model of a size of Llama-2; everything else is the same for both."""
    # fmt: off
    return dict(
        dtype="bfloat16",  # of activations
        logits_dtype="float32",
        llama=dict(
            # Two tokens are added to Llama's 32000. epsilon is 1e-5 in the 13B base; a 7B base may say 1e-6: read its config.
            vocab_size=32002, **LLAMA[size], rope_theta=10000.0, epsilon=1e-5,
            lora_rank=8, lora_alpha=16.0, lora_dropout=0.05,
            int8=False,  # True quantises frozen weights: config.trainable must then name neither kernels nor the token table
        ),
        clip=dict(image_size=224, patch=14, width=1024, depth=23, heads=16, mlp=4096, epsilon=1e-5),  # 23 of 24 layers run
        sam=dict(
            image_size=1024, patch=16, width=1280, depth=32, heads=16, mlp=5120, window=14, global_blocks=(7, 15, 23, 31),
            epsilon=1e-6, out_width=256,
        ),
        decoder=dict(depth=2, heads=8, mlp=2048, attention_downsample=2, mask_channels=16, pe_dtype="float32"),
        tagger=dict(heads=8, mlp=2048, epsilon=1e-5, dropout=0.1),
        feedback=True,
        feedback_heads=8,
        grounding="span",  # or "seg_token": a <seg> token behind every part in place of the tagger (docs/study.md)
        projector="linear",
        remat="full",
    )


def paper_config(size):
    """What both stages of the paper share: the model, what is trained, losses, optimizer, batch, evaluation."""
    config = ml_collections.ConfigDict()
    # fmt: off
    config.name = f"plum_{size}"
    config.seed = 0
    config.tokenizer = ""  # that of the base, unless a folder with tokenizer.json is given
    config.base = ""  # base weights of plum convert to start from; the sizes below are then those of the base
    config.model = model_config(size)
    # What the reference trains (M 1.1): adapters, token table and head, tagger, projector to SAM, its decoder and prompt
    # encoder (whose Gaussian matrix is no parameter there), the mask pooler.
    config.trainable = (
        r"^llama/(embed$|lm_head/|layers/.*lora_)|^(span_tagger|span_projector|mask_decoder|feedback)/|"
        r"^prompt_encoder/(?!gaussian_matrix)"
    )
    # Weights of the one run whose log is public: dice 8, bce 2, tag 2, KL 0.1 (M 6). That run had its teacher switched off,
    # reference=0.0 here; the paper trains with 0.1, and focal Tversky for the shape of a mask.
    config.loss = dict(
        language=1.0, tag=2.0, tag_class_weights=(0.1, 1.0, 1.0), tag_positions="text", reference=0.1, average="step",
        shape="focal_tversky", shape_weight=8.0, dice_scale=1000.0, tversky_alpha=0.7, tversky_beta=0.3, tversky_gamma=0.75,
        tversky_clamp=True, bce=2.0, patch=0.0,
    )
    config.optim = dict(
        name="adamw", lr=3e-4, beta1=0.9, beta2=0.95, epsilon=1e-8, weight_decay=0.0, schedule="clean", warmup_steps=100,
        decay="linear", final_lr=0.0, clip_norm=1.0, accumulate_dtype="float32",
    )
    config.mesh = dict(data=-1, fsdp=1, tensor=1)
    labelled = ("identification_with_label", "positive_with_label", "negative_with_label")  # what is fine-tuned on (M 7.7)
    config.data = dict(
        folder="", root="", sources=(), train_split="train", template="llava_v1", tokenizer_flavour="fast",
        span_source="constructed", span_pairing="name", resize_mismatched_masks="error",
        clip_view="center_crop",  # the view that LLaVA's and PLUM's weights were trained with
        question_weights=dict(dict.fromkeys(labelled, 1.0), default=0.0),
        global_batch=128, micro_batches=8, conversations=1, grounded=(1, 1),
        max_tokens=257,  # 512 positions with the 256 of the image
        max_spans=16, max_masks=16, canvas=(1024, 1024), workers=0, cache=False,
    )
    # A step with a loss or a gradient that is not finite ends the run ("stop"), or leaves everything as it was ("skip") for at
    # most max_skipped steps in a row; either way it is kept in W/nonfinite (docs/numerics.md).
    config.train = dict(steps=500, log_every=10, save_every=100, keep=2, nonfinite="stop", max_skipped=20)
    config.eval = dict(
        mc_score="answer_mean", mc_dtype="float32", tie="wrong", empty_union="one", span_scope="assistant", feedback=True,
        min_score=0.0, max_new_tokens=512, ignore255_as_fg=False,
        grounding="pred_answer_pred_spans", match="paired_strict", all_span_occurrences=False,
        # Validation during training: every how many steps (0: never), on the first images of a split of the folder (that of
        # the training data where it is empty). text_sources are like data.sources: held-out text whose language loss is taken.
        every=0, folder="", split="val", images=32, question_types=(), text_sources=(), text_batches=4,
    )
    config.vqa = dict(metric="official")
    config.checkpoint = dict(best_metric="gmiou_macro", best_mode="max")  # which validated step is kept besides the last ones
    return config


def get_config(arg=""):
    """Stage 1 of the paper, the mixture 9:5:5:1: `--config=configs/plum.py:size=13b --config.base=DIR --config.data.root=DIR`.

    `config.data.root` is the folder of all data sets (docs/mixture.md). Stage 2 is configs/partonomy.py; docs/recipe.md has the
    two runs, and why they have these numbers of updates and images.

    Args:
      arg: size=7b|13b; reference=0|1, 1 does what the reference's code does where that differs from what is right
        (docs/faithful.md).
    """
    options = parse_arg(arg, size=("7b", "13b"), reference=False)
    config = paper_config(options.size)
    weights = dict(semantic=9.0, refer=5.0, vqa=5.0, reason=1.0)
    config.data.sources = tuple(dict(name=name, weight=weight) for name, weight in weights.items())
    config.data.grounded = ()  # 15 of 20 images have masks, as the weights say: (3, 4)
    config.data.max_spans = config.data.max_masks = 1  # one name and one mask in every answer
    config.train.steps = EPOCHS * EPOCH
    if options.reference:
        faithful(config, "0shot")  # which makes 100 micro-batches an update, and so a tenth of the updates
        config.data.global_batch = IMAGES * config.data.micro_batches
        config.data.update(grounded=(1, 1), conversations=5, max_masks=5)  # up to five phrases; SAM sees all
        config.train.steps = EPOCHS * EPOCH // 10
        config.name += "_reference"
    return config
