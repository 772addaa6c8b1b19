"""The programs of an answer as StableHLO: what each takes and gives, with symbols for the sizes that vary.

`attention` leaves them to XLA, on all platforms and whatever the machine that exports: their batch size is a symbol.
"""

import inspect
from typing import NamedTuple

import jax
import jax.export

from plum_jax import generate
from plum_jax.models.plum import PlumConfig, bind, build
from plum_jax.sharding import path_name
from plum_jax.switches import switch


class Program(NamedTuple):
    """One exported function of a bound model and named arrays."""

    run: object  # (Plum, **arrays) -> {name: array}
    parts: tuple  # of the parameters: the top-level names that it reads
    inputs: dict  # name -> (shape as text, with symbols; dtype)


def export_programs(loaded, platforms):
    """Yields (name, Program, jax.export.Exported). Only shapes of the parameters are looked at.

    The other parts of the parameters are filled with shapes: a program that read one of them would fail here.
    """
    config = PlumConfig.from_dict(loaded.config.model.to_dict())
    graphdef, abstract = build(config)
    shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), loaded.params)
    for name, program in programs(config, bool(switch(loaded.config.eval, "eval.feedback"))).items():
        scope = jax.export.SymbolicScope()
        inputs = {
            key: jax.ShapeDtypeStruct(jax.export.symbolic_shape(shape, scope=scope), dtype)
            for key, (shape, dtype) in program.inputs.items()
        }

        def run(parts, arrays, program=program):
            return program.run(bind(graphdef, {**abstract, **parts}), **arrays)

        parts = {key: shapes[key] for key in program.parts if key in shapes}
        yield name, program, jax.export.export(jax.jit(run), platforms=platforms)(parts, inputs)


def programs(config, use_feedback):
    """PlumConfig, config.eval.feedback -> {name: Program}: what an answer needs, in the order in which it runs.

    Symbols: b rows, i images, t tokens of the padded prompt, m tokens that an answer may have, c positions of the cache,
    s positions of the prompt once the image is in it (t - 1 + P), n span slots.
    """
    llama, width, prompt = config.llama, config.llama.width, config.decoder.width
    patches, grid, dtype = config.clip.grid**2, config.decoder.grid, config.dtype

    def cache(positions):
        shape = f"{llama.depth}, b, {llama.heads}, {positions}, {width // llama.heads}"
        return dict(keys=(shape, dtype), values=(shape, dtype))

    images = {"clip_pixels": (f"b, {config.clip.image_size}, {config.clip.image_size}, 3", "uint8")}
    sam = {"sam_pixels": (f"b, {config.sam.image_size}, {config.sam.image_size}, 3", "uint8"), "resized_hw": ("b, 2", "int32")}
    prompts = {
        "image_tokens": (f"b, {patches}, {width}", dtype),
        "tokens": ("b, t", "int32"),
        "token_count": ("b", "int32"),
        "image_position": ("b", "int32"),
        **cache(f"t + {patches - 1} + m"),
    }
    step = {"token": ("b", "int32"), "active": ("b", "bool"), **cache("c"), "length": ("b", "int32")}
    sequence = {
        "hidden": (f"b, s, {width}", dtype),
        "states": (f"b, m, {width}", dtype),
        "length": ("b", "int32"),
        "count": ("b", "int32"),
    }
    spans = {
        "image_embeddings": (f"i, {grid}, {grid}, {prompt}", dtype),
        "image": ("b", "int32"),
        "span_embeds": (f"b, n, {prompt}", "float32"),
        "span_valid": ("b, n", "bool"),
    }
    return {
        "encode_clip": Program(encode_clip, ("clip", "projector"), images),
        "encode_sam": Program(encode_sam, ("sam_encoder",), sam),
        "prefill": Program(prefill, ("llama",), prompts),
        "decode_step": Program(decode_step, ("llama",), step),
        "read_sequence": Program(read_sequence, ("span_tagger", "span_projector"), sequence),
        "decode_masks": Program(decode_masks, ("prompt_encoder", "mask_decoder", "feedback"), spans)
        if use_feedback
        else Program(decode_masks_alone, ("prompt_encoder", "mask_decoder"), spans),
    }


def encode_clip(model, clip_pixels):
    """What the language model sees of an image."""
    return {"image_tokens": model.image_tokens(clip_pixels)}


def encode_sam(model, sam_pixels, resized_hw):
    """What the mask decoder sees of an image; resized_hw is the size of the image inside the square."""
    return {"image_embeddings": model.image_embeddings(sam_pixels, resized_hw)}


def prefill(model, **inputs):
    """The prompts, right-padded, through the language model; keys and values come in as zeros and set the room for answers."""
    hidden, token, (keys, values, length) = generate.prefill(model, **inputs)
    return {"hidden": hidden, "token": token, "keys": keys, "values": values, "length": length}


def decode_step(model, token, active, keys, values, length):
    """One more token in the rows that are active; `state` is that of the token that came in."""
    token, state, (keys, values, length) = generate.decode_step(model, token, active, (keys, values, length))
    return {"token": token, "state": state, "keys": keys, "values": values, "length": length}


def read_sequence(model, **inputs):
    """Span tags and projected span features of prompt and answer: tokens [length, length + count) are the answer's."""
    return generate.read_sequence(model, **inputs)._asdict()


def decode_masks(model, image_embeddings, image, span_embeds, span_valid):
    """Mask logits of the spans of each row in text order, each seeing the masks before it; zeros where span_valid is False."""
    return {"low_res": generate.masks_of(model, image_embeddings, image, span_embeds, span_valid)}


def decode_masks_alone(model, image_embeddings, image, span_embeds, span_valid):
    """Mask logits of the spans of each row, each decoded on its own; zeros where span_valid is False."""
    return {"low_res": generate.masks_of(model, image_embeddings, image, span_embeds, span_valid, use_feedback=False)}


def describe(file, program, exported):
    """A program as the manifest tells of it: arguments in the order of the StableHLO function, then its results."""
    arguments = jax.tree.unflatten(exported.in_tree, exported.in_avals)[0]
    outputs = jax.tree.unflatten(exported.out_tree, exported.out_avals)
    array = lambda x: {"shape": [d if isinstance(d, int) else str(d) for d in x.shape], "dtype": x.dtype.name}  # noqa: E731
    return {
        "file": file,
        "about": inspect.getdoc(program.run),
        "parameters": [path_name(path) for path, _ in jax.tree_util.tree_leaves_with_path(arguments[0])],
        "inputs": {name: array(x) for name, x in sorted(arguments[1].items())},
        "outputs": {name: array(x) for name, x in sorted(outputs.items())},
    }
