"""The switches between what is right and what the reference does, by name (docs/faithful.md says why, M 10.6, D 7.4).

A checkpoint written before a switch existed does not name it and gets its default.
"""

from plum_jax.errors import UserError

SWITCHES = {  # the first value is the default
    "data.tokenizer_flavour": ("fast", "slow"),
    "data.clip_view": ("pad", "center_crop"),
    "data.span_source": ("constructed", "string_search"),
    "data.span_pairing": ("name", "rank"),
    "data.resize_mismatched_masks": ("error", "nearest", "linear_area"),
    "loss.tag_positions": ("text", "all"),
    "loss.average": ("step", "micro_batch"),
    "loss.tversky_clamp": (True, False),
    "optim.schedule": ("clean", "reference_0shot", "reference_ft"),
    "optim.accumulate_dtype": ("float32", "bfloat16"),
    "train.nonfinite": ("stop", "skip"),
    "eval.feedback": (True, False),
    "eval.span_scope": ("assistant", "all"),
    "eval.mc_score": ("answer_mean", "answer_sum", "full_mean"),
    "eval.mc_dtype": ("float32", "bfloat16"),
    "eval.tie": ("wrong", "first"),
    "eval.empty_union": ("one", "zero", "skip"),
    "eval.grounding": ("pred_answer_pred_spans", "gt_answer_pred_spans", "gt_answer_gt_spans"),
    "eval.match": ("paired_strict", "paired", "greedy", "hungarian", "union"),
    "eval.all_span_occurrences": (False, True),
    "eval.ignore255_as_fg": (False, True),
    "vqa.metric": ("official", "contains"),
}


def switch(part, name):
    """switch(config.eval, "eval.tie") -> its value. UserError when it is none of those that are known."""
    known = SWITCHES[name]
    value = part.get(name.partition(".")[2], known[0])
    if value not in known:
        raise UserError(f"config.{name}: {value!r} is not known; use {' or '.join(map(str, known))}")
    return value


def check_switches(config):
    """UserError for the first switch with an unknown value."""
    for name in SWITCHES:
        switch(config.get(name.partition(".")[0], {}), name)
