"""Sources -> base weights: assign every tensor to a parameter, then stream them, file by file, into the folder."""

import re
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict

from plum_jax.base import PARTS
from plum_jax.convert.keys import original_of, rules
from plum_jax.errors import UserError
from plum_jax.models import plum

TOWERS = ("llama/", "clip/", "sam_encoder/", "projector/")  # stored in bfloat16 by --dtype bf16; the heads stay float32
IGNORED = (  # tensors that carry nothing, and why
    (r"rotary_emb\.inv_freq$", "follows from rope_theta"),
    (r"^seg_h_ref$|^teacher_llm\.", "copies made in training"),
    (r"^vision_model\.embeddings\.position_ids$", "counts from 0"),
    (r"^vision_model\.post_layernorm\.", "behind the layer that PLUM takes"),
)
NEW_ROW_STD = 0.02  # of the embeddings of tokens that the source does not have (M 1.5)


class Job(NamedTuple):
    """One PyTorch tensor and the parameters that come from it: three where queries, keys and values are packed."""

    name: str
    tensor: object  # Tensor
    targets: list  # [(Rule, number of the layer or None)]


class Assignment(NamedTuple):
    jobs: list  # in the order of files, so that each is opened once
    copies: list  # [(name, Tensor, Tensor that it must equal)]
    missing: list  # parts of PARTS that no source has
    ignored: dict  # {reason: number of tensors}


def assign(config, tensors, copies=(), ignore=None):
    """Every parameter to a tensor and every tensor to a parameter.

    Args:
      config: PlumConfig. tensors: {name of the table: Tensor}.
      copies: [(name, Tensor, name that it must equal)] found by the readers.
      ignore: regular expression of tensors that the user wants left out.

    Raises:
      UserError: names the tensors that have no parameter, or the parameters that have no tensor.
    """
    targets = {}
    for rule in rules(config):
        for layer, name in rule.items():
            targets.setdefault(name, []).append((rule, layer))
    missing, absent = _missing(targets, tensors)
    if absent:
        raise UserError(f"the sources lack {len(absent)} tensors ({_few(absent)}); {_where(absent)}")
    copies, ignored, rest = list(copies), {}, []
    for name in sorted(tensors.keys() - targets.keys()):
        reason = _reason(name, config, ignore)
        if original_of(name) in tensors:
            copies.append((name, tensors[name], original_of(name)))
        elif reason:
            ignored[reason] = ignored.get(reason, 0) + 1
        else:
            rest.append(name)
    if rest:
        raise UserError(
            f"{tensors[rest[0]].file}: {len(rest)} tensors have no place in PLUM ({_few(rest)}); leave them out with --ignore "
            "REGEX if they are not needed"
        )
    jobs = [Job(name, tensors[name], found) for name, found in targets.items() if name in tensors]
    jobs.sort(key=lambda job: (str(job.tensor.file), job.name))
    return Assignment(jobs, [(n, t, tensors[original]) for n, t, original in copies], missing, ignored)


def _missing(targets, tensors):
    """-> (parts that are wholly absent and may be, names that are absent)."""
    by_part = {}
    for name, found in targets.items():
        by_part.setdefault(found[0][0].path.partition("/")[0], []).append(name)
    missing = [part for part in PARTS if part in by_part and not any(name in tensors for name in by_part[part])]
    absent = [n for part, names in by_part.items() if part not in missing for n in names if n not in tensors]
    return missing, absent


def _reason(name, config, ignore):
    layer = re.match(r"vision_model\.encoder\.layers\.(\d+)\.", name)
    if layer and int(layer.group(1)) >= config.clip.depth:
        return "behind the layer that PLUM takes"
    if ignore and re.search(ignore, name):
        return "--ignore"
    if name.startswith("mask_pooler.") and not config.feedback:
        return "feedback is switched off"
    return next((reason for pattern, reason in IGNORED if re.search(pattern, name)), None)


def _where(absent):
    for prefix, fix in (
        ("vision_model.", "give a CLIP folder to --clip"), ("model.visual_model.", "give SAM to --sam"),
        ("model.layers.", "the decoder is incomplete: download its shards again"),
    ):  # fmt: skip
        if absent[0].startswith(prefix):
            return fix
    return "the checkpoint is incomplete or of another architecture"


def _few(names):
    return ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")


def check_copies(copies):
    """UserError unless every second copy of a tensor is bit-equal to the first: which one is right could not be told."""
    for name, tensor, original in copies:
        a, b = tensor.read(), original.read()
        if a.dtype != b.dtype or a.tobytes() != b.tobytes():
            raise UserError(
                f"{tensor.file}: {name} differs from the tensor that it is a copy of; the checkpoint is inconsistent"
            )


def stream(config, jobs, writer, dtype, advance):
    """Reads every tensor once, in file order, and writes its parameters.

    Args:
      config: PlumConfig. jobs: of `assign`. writer: BaseWriter. dtype: "bf16" or "float32".
      advance: called with the bytes of every tensor.

    Returns:
      Number of token rows that the source did not have.
    """
    shapes = {path: x.shape for path, x in flatten_dict(plum.build(config)[1], sep="/").items()}
    new_rows = 0
    for job in jobs:
        array = job.tensor.read()
        for rule, layer in job.targets:
            ours = _turned(rule, array, job)
            if rule.vocabulary:
                new_rows = max(new_rows, config.llama.vocab_size - len(array))
                ours = _grown(rule, ours, config.llama)
            want = shapes[rule.path] if layer is None else shapes[rule.path][1:]
            if ours.shape != want:
                raise UserError(
                    f"{job.tensor.file}: {job.name} gives {rule.path} of shape {ours.shape}, not {want}; it is of another model"
                )
            stored = (
                jnp.bfloat16 if dtype == "bf16" and rule.path.startswith(TOWERS) and "/lora_" not in rule.path else np.float32
            )
            with np.errstate(over="ignore"):  # what float64 has and float32 has not is infinite, and refused
                ours = ours.astype(stored)
            if not np.isfinite(ours).all():
                raise UserError(
                    f"{job.tensor.file}: {job.name} holds NaN, infinity or a number too large for {ours.dtype}; it is damaged, "
                    "or its training diverged"
                )
            writer.add(rule.path, ours, layer, None if layer is None else len(rule.layers))
        advance(array.nbytes)
    return new_rows


def _turned(rule, array, job):
    if not jnp.issubdtype(array.dtype, jnp.floating):
        raise UserError(f"{job.tensor.file}: {job.name} is of type {array.dtype}; quantised checkpoints cannot be converted")
    try:
        return rule.to_ours(array)
    except (ValueError, IndexError, TypeError) as error:
        raise UserError(
            f"{job.tensor.file}: {job.name} has shape {array.shape}, which is not that of {rule.path}; it is of another model"
        ) from error


def _grown(rule, array, llama):
    """Table or head with the rows of tokens that the source does not have (drawn), then of padding (zero)."""
    axis = 0 if rule.path.endswith("embed") else 1
    rows = array.shape[axis]
    if rows > llama.padded_vocab:
        return array  # refused by its shape
    rng = np.random.default_rng([0, axis])
    shape = list(array.shape)
    shape[axis] = max(llama.vocab_size - rows, 0)
    drawn = (NEW_ROW_STD * rng.standard_normal(shape)).astype(array.dtype)
    shape[axis] = llama.padded_vocab - rows - shape[axis]
    return np.concatenate([array, drawn, np.zeros(shape, array.dtype)], axis)
