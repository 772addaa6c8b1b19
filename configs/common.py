"""Pieces that several experiment families share. A config is data: nothing here imports plum_jax."""

REFERENCE_SCHEDULES = {"0shot": "reference_0shot", "ft": "reference_ft"}


def parse_arg(arg, **defaults):
    """'size=13b,fast=1' -> a namespace of the defaults with these values, each of its default's type.

    A default that is a tuple lists the words that are allowed, the default first.

    Raises:
      ValueError: a key that has no default, a value of another type, a word that is not allowed.
    """
    values = {key: value[0] if isinstance(value, tuple) else value for key, value in defaults.items()}
    for item in filter(None, arg.split(",")):
        key, _, value = item.partition("=")
        if key not in defaults:
            raise ValueError(f"config argument {key!r} is not one of {sorted(defaults)}")
        kind = type(values[key])
        values[key] = _bool(key, value) if kind is bool else kind(value)
        if isinstance(defaults[key], tuple) and values[key] not in defaults[key]:
            raise ValueError(f"config argument {key} is {value!r}, not one of {', '.join(defaults[key])}")
    return type("Options", (), values)


def _bool(key, value):
    words = {"1": True, "true": True, "yes": True, "0": False, "false": False, "no": False}
    if value.lower() not in words:
        raise ValueError(f"config argument {key} is {value!r}; write 1 or 0")
    return words[value.lower()]


def faithful(config, stage):
    """Sets every switch of docs/faithful.md to what the reference's runs did, in place; sizes and weights stay.

    Args:
      config: one with the keys of configs/tiny.py.
      stage: "0shot", pre-training on the mixture, or "ft", fine-tuning on PARTONOMY: they accumulate over different numbers
        of micro-batches, have different learning rates and different losses of the mask's shape (M 7.4, 7.5, 7.7).
    """
    config.model.update(dtype="bfloat16", logits_dtype="bfloat16")
    config.model.decoder.pe_dtype = "bfloat16"
    config.data.update(tokenizer_flavour="fast", clip_view="center_crop", template="llava_v1")
    config.data.update(span_source="string_search", span_pairing="rank", resize_mismatched_masks="linear_area")
    config.data.micro_batches = 100 if stage == "0shot" else 10
    # The pre-training script never passes --dice_type, so that runs named after focal Tversky trained with Dice (M D15).
    config.loss.shape = "dice" if stage == "0shot" else "focal_tversky"
    config.loss.update(tag_positions="all", average="micro_batch", tversky_clamp=False)
    config.optim.update(schedule=REFERENCE_SCHEDULES[stage], accumulate_dtype="bfloat16", clip_norm=0.0)
    config.train.nonfinite = "skip"  # as DeepSpeed does (M 7.3)
    config.eval.update(
        mc_score="full_mean",
        mc_dtype="bfloat16",
        tie="first",
        empty_union="one",
        span_scope="all",
        feedback=False,
        ignore255_as_fg=True,
        grounding="gt_answer_gt_spans",
        match="paired",
        all_span_occurrences=True,
    )
    config.vqa.metric = "contains"
