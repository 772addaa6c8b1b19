"""What the settings of a training run must satisfy, found before anything is read or written."""

import math
import re

from data_pipelines.conversation import seg_id
from data_pipelines.sources import entries, grounded_pair
from plum_jax.errors import UserError
from plum_jax.switches import check_switches

AT_LEAST_ONE = (
    "train.steps", "train.log_every", "train.save_every", "train.keep", "train.max_skipped", "data.global_batch",
    "data.micro_batches", "data.conversations", "data.max_tokens", "data.max_spans", "data.max_masks",
)  # fmt: skip
INT8 = 127  # spans and masks of a batch are numbered in int8


def check_settings(config):
    """UserError for a value that no data and no mesh make right; the model's sizes are checked by `PlumConfig`."""
    data, mesh = config.data, config.mesh
    _check_data(config)
    for name in AT_LEAST_ONE:
        part, key = name.split(".")
        if config[part][key] < 1:
            raise UserError(f"config.{name}: {config[part][key]} is not a positive number; set it to 1 or more")
    for name in ("max_spans", "max_masks"):
        if data[name] > INT8:
            raise UserError(f"config.data.{name}: {data[name]} is too large; set it to {INT8} or less")
    for name in ("data", "fsdp", "tensor"):
        if mesh[name] < 1 and mesh[name] != -1:
            raise UserError(
                f"config.mesh.{name}: {mesh[name]} is not a number of devices; set it to 1 or more, or -1 for the rest"
            )
    if data.workers < 0:
        raise UserError(f"config.data.workers: {data.workers} is negative; set it to 0 or more")
    _check_pair("canvas", data.canvas, "height and width in pixels, such as (128, 128)", all(x > 0 for x in data.canvas))
    pair = grounded_pair(data)
    grounded = len(pair) == 2 and 0 < pair[0] <= pair[1]
    _check_pair("grounded", pair, "(n, m) with 1 <= n <= m: n of every m images have masks", grounded)
    check_switches(config)
    if not 0 < config.optim.lr < math.inf:
        raise UserError(f"config.optim.lr: {config.optim.lr} is not a learning rate; set it to a positive number")
    if not 0 <= config.optim.clip_norm < math.inf:
        raise UserError(
            f"config.optim.clip_norm: {config.optim.clip_norm} is not a norm; set it to a positive number, or 0 for none"
        )
    try:
        re.compile(config.trainable)
    except re.error as error:
        raise UserError(
            f"config.trainable: {config.trainable!r} is not a regular expression ({error}); correct it, or use .* for all"
        ) from error


def _check_data(config):
    """One source of data: a PARTONOMY folder, or a mixture whose dictionaries are right."""
    data = config.data
    sources = entries(data) if data.get("sources") else []
    if not sources and not data.folder:
        raise UserError("config.data.folder: is empty; run plum data make --out DIR and pass --config.data.folder=DIR")
    if sources and data.folder:
        raise UserError(
            f"config.data.folder: {data.folder!r} is given together with config.data.sources; pass --config.data.sources=() to "
            "train on the folder, or --config.data.root=DIR without a folder to train on the sources"
        )
    if sources and config.loss.patch > 0:
        raise UserError(
            f"config.loss.patch: {config.loss.patch} needs one list of parts for all data; set it to 0 with config.data.sources"
        )


def _check_pair(name, value, form, good):
    if len(value) != 2 or not good:
        raise UserError(f"config.data.{name}: {tuple(value)} is wrong; give {form}")


def check_gradients(config, trainable):
    """UserError when a trainable parameter (of a nested dictionary of shapes) is int8: such weights have no gradient."""
    from flax.traverse_util import flatten_dict

    paths = [path for path, x in flatten_dict(trainable, sep="/").items() if x.dtype == "int8"]
    if paths:
        raise UserError(
            f"config.trainable: {config.trainable!r} matches {paths[0]}, which is int8 and has no gradient; name adapters and "
            "heads only, such as 'lora_|span_tagger|feedback', or set config.model.llama.int8 to False"
        )


def check_split(config, mesh):
    """UserError unless the images of a micro-batch, and those of them with masks, divide among the devices."""
    data, shards, (n, m) = config.data, mesh.shape["data"] * mesh.shape["fsdp"], grounded_pair(config.data)
    rows, least = data.global_batch // data.micro_batches, data.micro_batches * shards * m // math.gcd(n, m)
    for images, what in ((rows, "images"), (rows * n // m, "images with masks")):
        if images % shards or images == 0:
            fits = -(-data.global_batch // least) * least
            raise UserError(
                f"config.data.global_batch: {data.global_batch} in {data.micro_batches} micro-batches with grounded {(n, m)} "
                f"gives {images} {what} at a time, which {shards} devices (data x fsdp) do not divide; set it to {fits}, or "
                "change one of them or config.mesh"
            )


def check_vocabulary(config, tokenizer):
    """UserError when the tokenizer has tokens that the model has no row for: their embeddings would be those of others."""
    seg, last = seg_id(tokenizer), config.model.llama.vocab_size - 1
    if config.model.get("grounding", "span") == "seg_token" and seg != last:
        raise UserError(
            f"config.model.llama.vocab_size: {last + 1} does not end with <seg>, which config.model.grounding adds as word "
            f"{seg + 1} of config.tokenizer {config.tokenizer!r}; set it to {seg + 1}"
        )
    if len(tokenizer) > config.model.llama.vocab_size:
        raise UserError(
            f"config.model.llama.vocab_size: {config.model.llama.vocab_size} is too small for the {len(tokenizer)} tokens of "
            f"config.tokenizer {config.tokenizer!r}; set it to {len(tokenizer)}"
        )
