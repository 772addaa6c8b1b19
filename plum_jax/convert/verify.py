"""`plum convert --verify`: the source under PyTorch and the converted weights under JAX, on the same random inputs.

Layer by layer: one layer's tensors are read from each side, both run in float32, the next layer follows. Memory is that of a
few layers, so the 13B model is compared on machines that could not hold it once. Every group starts both sides from the same
input, so a wrong tensor shows in its own group and nowhere else. Parameters that PLUM does not run (point embeddings, three
of SAM's four hypernetworks) are not compared.
"""

import dataclasses
import io
from typing import NamedTuple

import jax
import numpy as np

from plum_jax import console
from plum_jax.convert import oracle, ours
from plum_jax.models import feedback, sam_decoder
from plum_jax.models.clip import Clip, ClipLayer
from plum_jax.models.layers import Linear, RMSNorm
from plum_jax.models.llama import LlamaLayer
from plum_jax.models.plum import MlpProjector
from plum_jax.models.sam_encoder import SamBlock, SamEncoder
from plum_jax.models.span_tagger import SpanProjector, SpanTagger

TOLERANCE = 1e-4  # of the largest value of what is compared: float32 on both sides adds in different orders, about 1e-6 a layer
TEXT, PATCHES = 32, 16  # tokens and image features that the decoder sees
SPANS = 3  # span embeddings that prompt the mask decoder


class Row(NamedTuple):
    """How far one group of outputs is from the source; None where the source has no such part and ours starts random."""

    group: str
    max_abs: float | None
    max_rel: float | None  # the largest difference over the largest value
    tolerance: float  # of max_rel
    passed: bool
    where: str = ""  # where in the group max_rel is


class Job(NamedTuple):
    """What all groups share."""

    source: dict  # {name of keys.py: Tensor}
    config: object  # PlumConfig
    params: object  # (prefix, layer=None) -> nested dictionary of ours
    rng: object
    advance: object  # called once for every layer and part

    def reader(self, params):
        return oracle.Reader(self.source, params)

    def has(self, prefix):
        return any(name.startswith(prefix) for name in self.source)

    def normal(self, *shape):
        return self.rng.standard_normal(shape).astype(np.float32)


class Difference:
    """The largest differences of a group, over everything that is added to it."""

    def __init__(self, group):
        self.group, self.max_abs, self.max_rel, self.where = group, 0.0, 0.0, ""

    def add(self, got, want, where=""):
        got, want = np.asarray(got, np.float32), np.asarray(want, np.float32)
        largest = float(np.abs(got - want).max()) if got.shape == want.shape else np.inf
        relative = largest / max(float(np.abs(want).max()), 1e-30)
        self.max_abs = max(self.max_abs, largest) if largest == largest else largest
        if not relative <= self.max_rel:  # not a number counts as a difference
            self.max_rel, self.where = relative, where

    def row(self):
        return Row(self.group, self.max_abs, self.max_rel, TOLERANCE, self.max_rel <= TOLERANCE, self.where)


def verify(source, config, read_params, *, seed=0, log=None):
    """Compares converted weights with the checkpoint that they come from.

    Args:
      source: {name of keys.py: Tensor}; other names are not read.
      config: PlumConfig of the converted weights.
      read_params: (prefix, layer=None) -> our nested dictionary of NumPy arrays below a path such as "mask_decoder", or the
        array itself where the path is that of a parameter; with `layer`, of one layer of a stack, without the layer axis.
      seed: of the inputs. log: stream for progress, None for silence.

    Returns:
      [Row], one per group.
    """
    import torch

    exact = dataclasses.replace(config, dtype="float32", decoder=dataclasses.replace(config.decoder, pe_dtype="float32"))
    steps = exact.clip.depth + exact.llama.depth + exact.sam.depth + 7 + exact.feedback
    bar = console.Progress(total=steps, label="verify", unit="layer", stream=log or io.StringIO())
    job = Job(source, exact, read_params, np.random.default_rng(seed), bar.update)
    rows = []
    with torch.no_grad(), jax.default_matmul_precision("highest"), bar:
        features = _clip(job, rows)
        image_tokens = _projector(job, rows, features)
        hidden = _decoder(job, rows, image_tokens)
        _tags(job, rows, hidden)
        embeds = _span_embeddings(job, rows, hidden)
        images = _sam(job, rows)
        _masks(job, rows, images, embeds)
    return rows


def table(rows):
    """Rows -> text for the terminal."""
    lines = ["Converted weights against the source, on random inputs:"]
    for row in rows:
        if row.max_rel is None:
            lines.append(f"  {row.group:<18} random, not compared")
            continue
        verdict = "ok" if row.passed else f"DIFFERS, most at {row.where}" if row.where else "DIFFERS"
        lines.append(f"  {row.group:<18} {row.max_abs:9.1e} absolute {row.max_rel:9.1e} relative  {verdict}")
    return "\n".join([*lines, f"  Tolerance: {TOLERANCE:.0e} of the largest value."])


def _random(job, rows, group):
    rows.append(Row(group, None, None, TOLERANCE, True))
    job.advance()


def _torch(array):
    import torch

    return torch.from_numpy(np.array(array, np.float32))


def _stacked(params):
    """One layer as a stack of one."""
    return jax.tree.map(lambda x: x[None], params)


def _chain(job, difference, depth, got, want, layers):
    """Both sides through a stack, each on its own output; what every layer adds is compared.

    Sums would hide much: the few enormous values in the states of language models dwarf what a layer adds.

    Args:
      layers: number of the layer -> (our function, our parameters, module of PyTorch).
    """
    for i in range(depth):
        run, params, module = layers(i)
        new_got, new_want = run(params, got), module(want)
        difference.add(np.asarray(new_got) - np.asarray(got), new_want - want, f"layer {i}")
        got, want = new_got, new_want
        job.advance()
    return got, want


def _clip(job, rows):
    """-> features of the source [1, P, D]."""
    c, difference = job.config.clip, Difference("CLIP features")
    pixels = job.normal(1, c.image_size, c.image_size, 3)
    parts = ("patch_embed", "class_embed", "position_embed", "norm")
    params = {name: job.params(f"clip/{name}") for name in parts} | {"layers": _stacked(job.params("clip/layers", 0))}
    embed = ours.compiled(lambda r: Clip(dataclasses.replace(c, depth=1), rngs=r), ours.embed)
    got = embed(params, pixels)
    want = oracle.clip_embedding(job.reader(params), c)(_torch(pixels.transpose(0, 3, 1, 2)))
    difference.add(got, want, "embedding")
    run = ours.compiled(lambda r: ClipLayer(c, rngs=r), ours.call_module)

    def layers(i):
        params = job.params("clip/layers", i)
        return run, params, oracle.clip_layer(job.reader(params), c, i)

    got, want = _chain(job, difference, c.depth, got, want, layers)
    difference.add(got[:, 1:], want[:, 1:], "features")
    rows.append(difference.row())
    return want[:, 1:]


def _projector(job, rows, features):
    """-> image tokens of the source [1, P, D]; random ones where there is no projector."""
    c, difference = job.config, Difference("image tokens")
    if not job.has("model.mm_projector."):
        _random(job, rows, difference.group)
        return _torch(job.normal(1, PATCHES, c.llama.width))
    params, sizes = job.params("projector"), (c.clip.width, c.llama.width)
    linear = lambda r: Linear(*sizes, bias=True, rngs=r)  # noqa: E731
    mlp = lambda r: MlpProjector(*sizes, rngs=r)  # noqa: E731
    got = ours.compiled(mlp if c.projector == "mlp" else linear, ours.call_module)(params, features.numpy())
    want = oracle.projector(job.reader(params))(features)
    difference.add(got, want)
    rows.append(difference.row())
    job.advance()
    return want


def _decoder(job, rows, image_tokens):
    """Hidden states and logits -> states of the source [1, T, D] after the final norm."""
    import torch

    c, difference = job.config.llama, Difference("hidden states")
    table = job.params("llama/embed")
    theirs = job.reader(table)("model.embed_tokens.weight")
    ids = job.rng.integers(0, len(theirs), TEXT)  # ours may have more rows: of tokens that the source does not know
    difference.add(table[ids], theirs[ids], "embedding")
    x = torch.cat([theirs[ids[: TEXT // 2]], image_tokens[0, :PATCHES], theirs[ids[TEXT // 2 :]]])[None]
    del table, theirs
    run = ours.compiled(lambda r: LlamaLayer(c, r), ours.causal)

    def layers(i):
        params = job.params("llama/layers", i)
        return run, params, oracle.llama_layer(job.reader(params), c, i)

    got, want = _chain(job, difference, c.depth, x.numpy(), x, layers)
    params = job.params("llama/norm")
    got = ours.compiled(lambda _: RMSNorm(c.width, epsilon=c.epsilon), ours.call_module)(params, got)
    want = oracle.final_norm(job.reader(params), c)(want)
    difference.add(got, want, "final norm")
    rows.append(difference.row())

    logits = Difference("logits")
    params = job.params("llama/lm_head")
    head = ours.compiled(lambda r: Linear(c.width, c.padded_vocab, rngs=r), ours.call_module)
    wanted = oracle.linear(job.reader(params), "lm_head", bias=False)(want)
    logits.add(head(params, want.numpy())[..., : wanted.shape[-1]], wanted)
    rows.append(logits.row())
    job.advance()
    return want


def _tags(job, rows, hidden):
    c, difference = job.config, Difference("tags")
    if not job.has("model.token_to_mask_fcs."):
        _random(job, rows, difference.group)
        return
    params = job.params("span_tagger")
    run = ours.compiled(lambda r: SpanTagger(c.llama.width, c.tagger, r), ours.tag)
    difference.add(run(params, hidden.numpy()), oracle.tagger(job.reader(params), c)(hidden))
    rows.append(difference.row())
    job.advance()


def _span_embeddings(job, rows, hidden):
    """-> embeddings of the source [SPANS, W]; random ones where there is no projector."""
    c, difference = job.config, Difference("span embeddings")
    if not job.has("model.text_hidden_fcs."):
        _random(job, rows, difference.group)
        return _torch(job.normal(SPANS, c.decoder.width))
    params = job.params("span_projector")
    run = ours.compiled(lambda r: SpanProjector(c.llama.width, c.decoder.width, r), ours.call_module)
    want = oracle.span_projector(job.reader(params))(hidden)
    difference.add(run(params, hidden.numpy()), want)
    rows.append(difference.row())
    job.advance()
    return want[0, -2 * SPANS :].reshape(SPANS, 2, -1).mean(1)  # spans of two tokens


def _sam(job, rows):
    """-> image embedding of the source [1, W, g, g]."""
    c, difference = job.config.sam, Difference("SAM features")
    pixels = job.normal(1, c.image_size, c.image_size, 3)
    windows = [i for i in range(c.depth) if i not in c.global_blocks]
    parts = ("patch_embed", "position_embed", "neck1", "neck_norm1", "neck2", "neck_norm2")
    params = {name: job.params(f"sam_encoder/{name}") for name in parts}
    stacks = {stack: _stacked(job.params(f"sam_encoder/{stack}", 0)) for stack in ("window_blocks", "global_blocks")}
    short = dataclasses.replace(c, depth=2, global_blocks=(1,))
    embed, neck = (ours.compiled(lambda r: SamEncoder(short, rngs=r), call) for call in (ours.embed, ours.neck))
    embed_torch, neck_torch = oracle.sam_ends(job.reader(params), c)
    got, want = embed({**params, **stacks}, pixels), embed_torch(_torch(pixels.transpose(0, 3, 1, 2)))
    difference.add(got, want, "embedding")
    window, whole = (ours.compiled(lambda r, w=w: SamBlock(c, w, rngs=r), ours.call_module) for w in (c.window, 0))

    def layers(i):
        wide = i in c.global_blocks
        index = c.global_blocks.index(i) if wide else windows.index(i)
        params = job.params("sam_encoder/global_blocks" if wide else "sam_encoder/window_blocks", index)
        return whole if wide else window, params, oracle.sam_block(job.reader(params), c, i)

    got, want = _chain(job, difference, c.depth, got, want, layers)
    want = neck_torch(want)
    difference.add(neck({**params, **stacks}, got), want.permute(0, 2, 3, 1), "neck")
    rows.append(difference.row())
    job.advance()
    return want


def _masks(job, rows, images, embeds):
    """Mask prompts, pooled earlier masks, masks and predicted IoU, each from the inputs that the source gives."""
    import torch

    c, g = job.config, job.config.decoder.grid
    difference, params = Difference("mask prompts"), job.params("prompt_encoder")
    prompts = oracle.prompt_encoder(job.reader(params), c)
    pe, masks = oracle.dense_pe(prompts, g), _torch(4 * job.normal(SPANS, 1, 4 * g, 4 * g))
    run = ours.compiled(lambda r: sam_decoder.PromptEncoder(c.decoder, rngs=r), ours.prompts)
    prompt, none = prompts(None, None, None, masks)[1], prompts(None, None, None, None)[1]
    got = run(params, masks[:, 0].numpy())
    for x, want, where in zip(
        got,
        (prompt.permute(0, 2, 3, 1), pe[0].permute(1, 2, 0), none[0, :, 0, 0]),
        ("masks", "positions", "no mask"),
        strict=True,
    ):
        difference.add(x, want, where)
    rows.append(difference.row())
    job.advance()

    dense = [none, prompt[:1]]
    pooled = _pooled(job, rows, params, prompts, masks, embeds, pe) if c.feedback else None
    if pooled is not None:
        dense.append(pooled.T.reshape(1, -1, g, g))
    _decoded(job, rows, images, embeds[: len(dense), None], torch.cat(dense), pe)


def _pooled(job, rows, prompt_params, prompts, masks, embeds, pe):
    """-> pooled masks of the source [P, W], None where there is no pooler."""
    c, difference = job.config, Difference("feedback")
    if not job.has("mask_pooler."):
        _random(job, rows, difference.group)
        return None
    params, width = job.params("feedback"), c.decoder.width
    pooler_def = ours.describe(
        lambda r: feedback.Feedback(width, c.decoder.grid, c.feedback_heads, c.decoder.mask_channels, rngs=r)
    )
    prompt_def = ours.describe(lambda r: sam_decoder.PromptEncoder(c.decoder, rngs=r))
    got = ours.pool(pooler_def, prompt_def, params, prompt_params, masks[:, 0].numpy(), embeds.numpy())
    want = oracle.pooled_masks(job.reader(params), prompts, masks, embeds, pe, c.feedback_heads)
    difference.add(got, want)
    rows.append(difference.row())
    job.advance()
    return want


def _decoded(job, rows, images, sparse, dense, pe):
    """images [1, W, g, g], sparse [n, 1, W], dense [n, W, g, g], pe [1, W, g, g]."""
    c, count = job.config.decoder, len(sparse)
    params = job.params("mask_decoder")
    decoder = oracle.mask_decoder(job.reader(params), c)
    images = images.expand(count, -1, -1, -1)
    masks, iou = decoder(images, pe.expand(count, -1, -1, -1), sparse[:, None], dense, False)
    run = ours.compiled(lambda r: sam_decoder.MaskDecoder(c, rngs=r), ours.call_module)
    last = lambda x: x.permute(0, 2, 3, 1).numpy()  # noqa: E731  channels last
    got_masks, got_iou = run(params, last(images), sparse.numpy(), last(dense), last(pe)[0])
    for group, got, want in (("low-res masks", got_masks, masks[:, 0, 0]), ("predicted IoU", got_iou, iou[:, 0, 0])):
        difference = Difference(group)
        difference.add(got, want)
        rows.append(difference.row())
    job.advance()
