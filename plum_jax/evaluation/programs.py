"""What an evaluation runs on the devices: the programs of `generate`, with the images split over all devices.

Every device has the whole model and its own images, with the questions about them: nothing is exchanged, and the program of a
device is that of one device alone. Arrays have the devices' parts one after the other; indices in them count within a part.
"""

import functools
from typing import NamedTuple

import jax
from jax.sharding import PartitionSpec as P

from plum_jax import generate
from plum_jax.sharding import make_mesh, replicated
from plum_jax.switches import switch

SPLIT = P("data")
PREFIX = generate.Prefix(hidden=SPLIT, keys=P(None, "data"), values=P(None, "data"), nll=SPLIT, count=P())


class Place(NamedTuple):
    """Where an image, or a row about it, is."""

    device: int
    index: int  # within the part of the device


class Programs:
    """The programs of one model, on one device or several.

    Args:
      model: inference.Model with live programs. devices: jax devices; None for the first one.
    """

    def __init__(self, model, devices=None):
        self.graphdef, self.params = model.graphdef, model.params
        self.dtype = switch(model.config.eval, "eval.mc_dtype")
        self.use_feedback = bool(switch(model.config.eval, "eval.feedback"))
        self.count, self.mesh = len(devices) if devices else 1, None
        if self.count > 1:
            self.mesh = make_mesh({"data": self.count, "fsdp": 1, "tensor": 1}, devices)
            self.params = jax.device_put(self.params, replicated(self.mesh))

    def share(self, total):
        """How many of `total` rows or images one device has."""
        return -(-total // self.count)

    def places(self, count):
        """Place of each of `count` images: in turn over the devices, so that all have about as many."""
        return [Place(i % self.count, i // self.count) for i in range(count)]

    def rounds(self, items, place, total):
        """Batches of at most `total` rows, in which every row is on the device of its image.

        Args:
          items: things about an image; place: item -> Place of that image.

        Yields:
          [(row in the batch, item)]; a batch has `share(total)` rows for every device.
        """
        share, queues = self.share(total), [[] for _ in range(self.count)]
        for item in items:
            queues[place(item).device].append(item)
        for at in range(0, max(map(len, queues)), share):
            yield [
                (device * share + i, item)
                for device, queue in enumerate(queues)
                for i, item in enumerate(queue[at : at + share])
            ]

    def encode_images(self, clip_pixels, sam_pixels, resized_hw):
        """As generate.encode_images."""
        return self._run(generate.encode_images, (SPLIT, SPLIT, SPLIT), SPLIT)(clip_pixels, sam_pixels, resized_hw)

    def image_tokens(self, clip_pixels):
        """As generate.image_tokens."""
        return self._run(generate.image_tokens, (SPLIT,), SPLIT)(clip_pixels)

    def prefix(self, image_tokens, tokens):
        """As generate.run_prefix."""
        return self._run(generate.run_prefix, (SPLIT, P()), PREFIX, dtype=self.dtype)(image_tokens, tokens)

    def score(self, prefix, questions):
        """As generate.score_choices."""
        return self._run(generate.score_choices, (PREFIX, SPLIT), SPLIT, dtype=self.dtype)(prefix, questions)

    def read(self, prefix, questions, scores, group, choice):
        """As generate.read_rows."""
        specs = PREFIX, SPLIT, SPLIT, SPLIT, SPLIT
        return self._run(generate.read_rows, specs, SPLIT)(prefix, questions, scores, group, choice)

    def decode(self, image_embeddings, image, embeds, valid):
        """As generate.decode_masks."""
        run = self._run(generate.decode_masks, (SPLIT,) * 4, SPLIT, use_feedback=self.use_feedback)
        return run(image_embeddings, image, embeds, valid)

    def answer(self, image_tokens, image, tokens, count, position, **options):
        """As generate.generate, about images int32[R] of `image_tokens`."""
        return self._run(_answer, (SPLIT,) * 5, SPLIT, **options)(image_tokens, image, tokens, count, position)

    def _run(self, program, inputs, outputs, **options):
        """The program as a function of its arrays; inputs, outputs: how they are split."""
        if self.mesh is None:
            return functools.partial(program, self.graphdef, self.params, **options)
        split = _split(program, self.graphdef, self.mesh, inputs, outputs, tuple(sorted(options.items())))
        return functools.partial(split, self.params)


@functools.lru_cache(maxsize=64)
def _split(program, graphdef, mesh, inputs, outputs, options):
    """The program on each device's part of the arrays."""
    local = functools.partial(program, graphdef, **dict(options))
    return jax.jit(jax.shard_map(local, mesh=mesh, in_specs=(P(), *inputs), out_specs=outputs, check_vma=False))


@functools.partial(jax.jit, static_argnames=("graphdef", "max_new_tokens", "end_token", "whole_rows"))
def _answer(graphdef, params, image_tokens, image, tokens, count, position, **options):
    return generate.generate(graphdef, params, image_tokens[image], tokens, count, position, **options)
