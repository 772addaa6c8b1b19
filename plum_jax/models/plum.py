"""PLUM: CLIP -> projector -> Llama -> span tagger and projector -> SAM's mask decoder with feedback. Composes, nothing else."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
from flax import nnx

from plum_jax.errors import UserError
from plum_jax.models import clip, feedback, sam_decoder, sam_encoder
from plum_jax.models.layers import Linear, gelu
from plum_jax.models.llama import Llama, LlamaConfig
from plum_jax.models.span_tagger import SpanProjector, SpanTagger, TaggerConfig
from plum_jax.precision import DTYPES
from plum_jax.sharding import split_rows


@dataclasses.dataclass(frozen=True)
class PlumConfig:
    """Sizes of every part.

    remat: "none" keeps activations, "full" recomputes each layer, "dots" keeps matrix products.
    projector: "linear" as in PLUM's base (M 1.1), or "mlp", the two layers of LLaVA-1.5 (arXiv 2310.03744).
    logits_dtype: of the head's product and of the per-token losses; "bfloat16" rounds both, as a bf16 run of the
      reference does (M D38).
    grounding: "span" tags the words that have a mask (M 3). "seg_token" has no tagger: the answer holds a <seg> token, the
      last of the vocabulary, behind each of them, whose state is the mask's prompt (`plum_jax.seg_token`).
    """

    llama: LlamaConfig
    clip: clip.ClipConfig
    sam: sam_encoder.SamEncoderConfig
    decoder: sam_decoder.MaskDecoderConfig
    tagger: TaggerConfig
    feedback: bool
    feedback_heads: int
    dtype: str
    remat: str = "full"
    projector: str = "linear"
    logits_dtype: str = "float32"
    grounding: str = "span"

    @property
    def seg_token(self):
        """Id of <seg>; None where spans are tagged."""
        return self.llama.vocab_size - 1 if self.grounding == "seg_token" else None

    @classmethod
    def from_dict(cls, config):
        """The `model` part of a config file -> PlumConfig. The decoder's width and grid follow from SAM's.

        Raises:
          UserError: a key is unknown, missing or of another type, or the sizes do not fit each other.
        """
        values = {name: dict(x) if hasattr(x, "items") else x for name, x in config.items()}
        if isinstance(values.get("sam"), dict) and "global_blocks" in values["sam"]:
            values["sam"]["global_blocks"] = tuple(values["sam"]["global_blocks"])  # a list once it went through JSON
        parts = dict(
            llama=LlamaConfig, clip=clip.ClipConfig, sam=sam_encoder.SamEncoderConfig, decoder=sam_decoder.MaskDecoderConfig,
            tagger=TaggerConfig,
        )  # fmt: skip
        _check_fields("config.model", cls, values, parts)
        for name, part in parts.items():
            derived = {"width": values["sam"].out_width, "grid": values["sam"].grid} if name == "decoder" else {}
            values[name] = _part(f"config.model.{name}", part, {**values[name], **derived})
        config = cls(**values)
        _check_sizes(config)
        return config


def _check_fields(name, cls, values, parts=()):
    """UserError unless `values` has the fields of the dataclass: names, types, and sizes of at least one."""
    fields = {field.name: field for field in dataclasses.fields(cls)}
    missing = [x for x, field in fields.items() if x not in values and field.default is dataclasses.MISSING]
    for wrong, what in ((sorted(values.keys() - fields.keys()), "is not known"), (missing, "is missing")):
        if wrong:
            raise UserError(f"{name}.{wrong[0]}: {what}; it takes {', '.join(fields)}")
    for key, value in values.items():
        kind = dict if key in parts else fields[key].type
        if kind is float and type(value) is int:
            continue
        if type(value) is not kind:
            raise UserError(f"{name}.{key}: {value!r} is not of type {kind.__name__}; write one")
        least = 0 if key == "lora_rank" else 1
        if kind is int and value < least:
            raise UserError(f"{name}.{key}: {value} is too small; set it to {least} or more")


def _part(name, cls, values):
    _check_fields(name, cls, values)
    try:
        return cls(**values)
    except ValueError as error:
        raise UserError(f"{name}: {error}; change one of them") from error


def _check_sizes(config):
    """UserError where a size does not divide into what it is split into, or a word is not one of those that are known."""
    llama, eye, sam, decoder = config.llama, config.clip, config.sam, config.decoder
    inner = decoder.width // decoder.attention_downsample
    for name, size, divisor, of in (
        ("clip.patch", eye.image_size, eye.patch, "config.model.clip.image_size"),
        ("sam.patch", sam.image_size, sam.patch, "config.model.sam.image_size"),
        ("llama.heads", llama.width, 2 * llama.heads, "config.model.llama.width into heads of an even size"),
        ("clip.heads", eye.width, eye.heads, "config.model.clip.width"),
        ("sam.heads", sam.width, sam.heads, "config.model.sam.width"),
        ("decoder.attention_downsample", decoder.width, decoder.attention_downsample, "config.model.sam.out_width"),
        ("decoder.heads", inner, decoder.heads, "config.model.sam.out_width after attention_downsample"),
        ("decoder.heads", decoder.width, decoder.heads, "config.model.sam.out_width"),
        ("tagger.heads", llama.width, config.tagger.heads, "config.model.llama.width"),
        ("feedback_heads", decoder.width, config.feedback_heads, "config.model.sam.out_width"),
    ):
        if size % divisor:
            value = functools.reduce(getattr, name.split("."), config)
            raise UserError(f"config.model.{name}: {value} does not divide {of} ({size}); change one of them")
    for name, size, multiple in (("sam.out_width", sam.out_width, 8), ("decoder.mask_channels", decoder.mask_channels, 4)):
        if size % multiple:
            raise UserError(f"config.model.{name}: {size} is not a multiple of {multiple}; make it one")
    for name, value, known in (
        ("dtype", config.dtype, DTYPES),
        ("remat", config.remat, ("none", "full", "dots")),
        ("projector", config.projector, ("linear", "mlp")),
        ("logits_dtype", config.logits_dtype, DTYPES),
        ("grounding", config.grounding, ("span", "seg_token")),
        ("decoder.pe_dtype", decoder.pe_dtype, DTYPES),
    ):
        if value not in known:
            raise UserError(f"config.model.{name}: {value!r} is not known; use {' or '.join(known)}")
    for name, rate in (("llama.lora_dropout", llama.lora_dropout), ("tagger.dropout", config.tagger.dropout)):
        if not 0 <= rate < 1:
            raise UserError(f"config.model.{name}: {rate} is not a dropout rate; set it to 0 or more and below 1")


class MlpProjector(nnx.Module):
    """Linear, exact GELU, linear: [..., D of CLIP] -> [..., D]."""

    def __init__(self, d_in, d_out, *, rngs):
        self.linear1 = Linear(d_in, d_out, bias=True, rngs=rngs)
        self.linear2 = Linear(d_out, d_out, bias=True, rngs=rngs)

    def __call__(self, x):
        return self.linear2(gelu(self.linear1(x)))


class Plum(nnx.Module):
    """The whole model. Rows R are conversations; images are encoded once each and repeated by the caller."""

    def __init__(self, config, rngs):
        self.config = config
        width = config.llama.width
        self.clip = clip.Clip(config.clip, rngs=rngs)
        projector = MlpProjector if config.projector == "mlp" else functools.partial(Linear, bias=True)
        self.projector = projector(config.clip.width, width, rngs=rngs)
        self.llama = Llama(config.llama, rngs)
        self.span_tagger = SpanTagger(width, config.tagger, rngs) if config.grounding == "span" else None
        self.span_projector = SpanProjector(width, config.decoder.width, rngs)
        self.sam_encoder = sam_encoder.SamEncoder(config.sam, rngs=rngs)
        self.prompt_encoder = sam_decoder.PromptEncoder(config.decoder, rngs=rngs)
        self.mask_decoder = sam_decoder.MaskDecoder(config.decoder, rngs=rngs)
        pooler = functools.partial(feedback.Feedback, config.decoder.width, config.decoder.grid, config.feedback_heads)
        self.feedback = pooler(mask_channels=config.decoder.mask_channels, rngs=rngs) if config.feedback else None

    @property
    def num_image_tokens(self):
        return (self.config.clip.image_size // self.config.clip.patch) ** 2

    def image_tokens(self, clip_pixels):
        """uint8[B, I, I, 3] -> [B, P, D], what the language model sees of an image."""
        return split_rows(self.projector(self.clip(clip.normalise(clip_pixels, self.config.dtype))))

    def image_embeddings(self, sam_pixels, resized_hw):
        """uint8[M, S, S, 3], int32[M, 2] -> [M, g, g, W], what the mask decoder sees of an image."""
        return split_rows(self.sam_encoder(sam_encoder.normalise(sam_pixels, resized_hw, self.config.dtype)))

    def embed(self, tokens, image_position, image_tokens):
        """Token embeddings with the image features in place of the placeholder.

        Args:
          tokens: int32[R, T]. image_position: int32[R], index of the placeholder or -1 for a row without image.
          image_tokens: [R, P, D].

        Returns:
          (embeds [R, S, D] with S = T - 1 + P, position int32[R, T]): where each token went; the placeholder's position is
          that of the first image feature. A row without image holds its T tokens first.
        """
        length, patches = tokens.shape[1], image_tokens.shape[1]
        text = split_rows(self.llama.token_embeddings(tokens).astype(self.config.dtype))
        start = image_position[:, None]
        s = jnp.arange(length - 1 + patches)
        has_image = start >= 0
        token_index = jnp.clip(jnp.where(has_image & (s >= start), s - patches + 1, s), 0, length - 1)
        image_index = jnp.clip(s - start, 0, patches - 1)
        from_image = has_image & (s >= start) & (s < start + patches)
        embeds = jnp.where(
            from_image[..., None],
            jnp.take_along_axis(image_tokens.astype(text.dtype), image_index[..., None], 1),
            jnp.take_along_axis(text, token_index[..., None], 1),
        )
        t = jnp.arange(length)
        return split_rows(embeds), jnp.where(has_image & (t > start), t - 1 + patches, t)

    def spliced_lengths(self, token_valid, image_position):
        """bool[R, T], int32[R] -> int32[R]: valid positions after splicing."""
        return token_valid.sum(-1) + jnp.where(image_position >= 0, self.num_image_tokens - 1, 0)

    def hidden(self, embeds, lengths, *, adapter=True, key=None):
        """[R, S, D], int32[R] -> decoder states [R, S, D] after the final norm (M 2)."""
        policy = jax.checkpoint_policies.dots_with_no_batch_dims_saveable if self.config.remat == "dots" else None
        return self.llama(embeds, lengths, adapter=adapter, key=key, policy=policy, remat=self.config.remat != "none")

    def logits(self, hidden):
        """[..., D] -> float32[..., V] next-token logits."""
        return self.llama.logits(hidden, self.config.logits_dtype)

    def tag_logits(self, hidden, valid, *, key=None):
        """[R, S, D], bool[R, S] -> float32[R, S, 3] logits of O, B, I."""
        return self.span_tagger(hidden, valid, key=key)

    def project(self, hidden):
        """[..., D] -> [..., W], to be averaged over the tokens of a span."""
        return self.span_projector(hidden)

    def prompt_slots(self, slots, tokens):
        """Span slots bool[R, N, T] of tokens int32[R, T] -> (the tokens whose features are a mask's prompt, the words).

        Both are the whole span where spans are tagged; with <seg> tokens the one is <seg>, the other the words before it.
        """
        if self.config.seg_token is None:
            return slots, slots
        is_seg = (tokens == self.config.seg_token)[:, None]
        return slots & is_seg, slots & ~is_seg

    def decode_masks(self, image_embeddings, span_embeds, span_valid, *, use_feedback=True):
        """[R, g, g, W], [R, N, W], bool[R, N] -> (low-resolution logits float32[R, N, 4g, 4g], predicted IoU [R, N]).

        use_feedback: False decodes every span alone, also in a model that has the feedback loop (M D20).
        """
        pooler = self.feedback if use_feedback else None
        low_res, iou = feedback.decode_spans(
            self.prompt_encoder, self.mask_decoder, pooler, image_embeddings, span_embeds, span_valid
        )
        return low_res.astype(jnp.float32), iou


def take_positions(hidden, position):
    """hidden [R, S, D], position int32[R, T] -> [R, T, D]."""
    return jnp.take_along_axis(hidden, position[..., None], 1)


@functools.cache
def build(config):
    """PlumConfig -> (graph definition, abstract parameters as a nested dictionary, not to be changed). Allocates nothing."""
    graphdef, state = nnx.split(nnx.eval_shape(lambda: Plum(config, nnx.Rngs(0))))
    return graphdef, nnx.to_pure_dict(state)


def init_params(config, seed):
    """PlumConfig, seed -> random parameters, a nested dictionary of float32 (with llama.int8 also int8) arrays.

    Jit it with out_shardings to shard.
    """
    return nnx.to_pure_dict(nnx.state(Plum(config, nnx.Rngs(seed)), nnx.Param))


def bind(graphdef, params):
    """Graph definition and nested dictionary of arrays -> Plum."""
    return nnx.merge(graphdef, params)
