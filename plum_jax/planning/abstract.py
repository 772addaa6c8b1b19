"""Arguments of the programs as shapes with their places on a mesh: nothing is allocated, no data and no weights are read."""

import jax
import numpy as np
from flax.traverse_util import unflatten_dict

from data_pipelines.sources import grounded_pair
from plum_jax.batch import Batch
from plum_jax.initial import initial_shapes
from plum_jax.params import partition
from plum_jax.sharding import batch_sharding, tree_sharding


def host_batch(config):
    """The global batch that `data_pipelines` makes for this config, as a Batch of shapes with NumPy's types."""
    data, model = config.data, config.model
    images, conversations, tokens = data.global_batch, data.conversations, data.max_tokens
    n, m = grounded_pair(data)
    grounded, view, sam = images * n // m, model.clip.image_size, model.sam.image_size
    array = lambda dtype, *shape: jax.ShapeDtypeStruct(shape, np.dtype(dtype))  # noqa: E731
    text = (images, conversations, tokens)
    patches = config.loss.patch > 0 and not data.get("sources")
    return Batch(
        sam_pixels=array("uint8", grounded, sam, sam, 3),
        clip_pixels=array("uint8", images, view, view, 3),
        resized_hw=array("int32", grounded, 2),
        original_hw=array("int32", grounded, 2),
        tokens=array("int32", *text),
        token_valid=array("bool", *text),
        loss_weight=array("float32", *text),
        image_position=array("int32", images, conversations),
        bio=array("int8", *text),
        span_of_token=array("int8", *text),
        span_valid=array("bool", images, conversations, data.max_spans),
        span_mask_index=array("int8", images, conversations, data.max_spans),
        masks=array("uint8", grounded, data.max_masks, *data.canvas),
        mask_valid=array("bool", grounded, data.max_masks),
        sample_id=array("int64", images),
        patch_part=array("int16", images, (view // model.clip.patch) ** 2) if patches else None,
    )


def device_batch(config, mesh):
    """`host_batch` as `put_batch` places it: [micro, rows, ...], rows split over the mesh."""
    sharding, micro = batch_sharding(mesh), config.data.micro_batches
    return jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(
            (micro, x.shape[0] // micro, *x.shape[1:]), jax.dtypes.canonicalize_dtype(x.dtype), sharding=sharding
        ),
        host_batch(config),
    )


def placed(shapes, shardings):
    """Trees of shapes and of shardings -> one tree of both."""
    return jax.tree.map(lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), shapes, shardings)


def parameters(config, abstract, mesh):
    """All parameters at step 0, by the one table of rules: nested dictionary of shapes with their places."""
    return unflatten_dict(initial_shapes(config, tree_sharding(abstract, mesh)), sep="/")


def train_arguments(config, plan, mesh):
    """Arguments of the step of `plum_jax.train`: (state, frozen parameters, batches, key)."""
    _, frozen = partition(parameters(config, plan.abstract, mesh), config.trainable)
    key = jax.eval_shape(lambda: jax.random.key(0))
    return placed(plan.shapes, plan.sharding), frozen, device_batch(config, mesh), key


def bytes_per_device(tree):
    """Bytes that the arrays of a tree of placed shapes have on one device."""
    return sum(int(np.prod(x.sharding.shard_shape(x.shape))) * x.dtype.itemsize for x in jax.tree.leaves(tree) if x.sharding)
