"""The whole model against its PyTorch transcription (tests/reference/torch_plum.py) on random weights and batches."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from batch_fixtures import KINDS, random_batches, torch_batch
from model_fixtures import micro
from torch_fixtures import parity_config, random_model, to_params

from plum_jax import generate, objective
from plum_jax.evaluation.spans import decode_spans
from plum_jax.models.plum import PlumConfig, bind, build, take_positions
from plum_jax.resize import to_original
from plum_jax.spans import pool_spans, slots_of
from tests.reference.published_names import numbers

torch = pytest.importorskip("torch")
from tests.reference import torch_losses, torch_plum, torch_sam  # noqa: E402  they import torch

pytestmark = pytest.mark.usefixtures("quick_compilation", "exact_products")
PARTS = "one conversation, many parts"
LOSSES = dict(language="ce_loss", tag="seg_cls_loss", reference="kl_loss", shape="mask_dice_loss", bce="mask_bce_loss")
VARIANTS = {  # Switches of the transcription, config.loss, config.model, whether there is a teacher
    "paper": (dict(dice_scale=1e5), dict(dice_scale=1e5), {}, True),  # a scale whose epsilon shows on small masks
    "other": (
        dict(shape="focal_tversky", class_weights=None, feedback=False, bidirectional=False),
        dict(shape="focal_tversky", tversky_clamp=False, tag_class_weights=(1.0, 1.0, 1.0), reference=0.0),
        dict(feedback=False, projector="mlp", tagger=dict(heads=4, mlp=52, epsilon=1e-5, dropout=0.0, bidirectional=False)),
        False,
    ),
}


@pytest.fixture(scope="module")
def exact_products():
    """Float32 products on both sides; one thread of torch, for which these tensors are too small to share."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    with jax.default_matmul_precision("highest"):
        yield
    torch.set_num_threads(threads)


@functools.cache
def model(variant="paper"):
    """-> (config, PlumConfig, graph definition, parameters, tensors of the transcription)."""
    _, loss, changes, _ = VARIANTS[variant]
    config = parity_config(**changes)
    config.loss.update(dict(tag=8.0, reference=0.1, shape_weight=8.0, tag_positions="all", patch=0.0) | loss)
    plum = PlumConfig.from_dict(config.model)
    graphdef, _ = build(plum)
    arrays, params = random_model(plum)
    return config, plum, graphdef, params, {name: torch.from_numpy(x) for name, x in arrays.items()}


@functools.cache
def batches(kind):
    theirs, ours = random_batches(parity_config(), kind)
    return torch_batch(theirs), ours


def close(got, want, relative, name=""):
    """Largest difference at most `relative` times the largest value."""
    got, want = np.asarray(got), np.asarray(want)
    assert got.shape == want.shape, name
    np.testing.assert_allclose(got, want, rtol=0, atol=relative * np.abs(want).max(), err_msg=name)


@functools.cache
def ours():
    """-> batch -> every output of our model."""
    config, _, graphdef, params, _ = model()

    @jax.jit
    def run(params, batch):
        plum = bind(graphdef, params)
        tokens, valid, where = (x.reshape(-1, *x.shape[2:]) for x in (batch.tokens, batch.token_valid, batch.image_position))
        count, rows = batch.tokens.shape[1], len(tokens)
        image_tokens = plum.image_tokens(batch.clip_pixels)
        embeds, position = plum.embed(tokens, where, jnp.repeat(image_tokens, count, 0))
        lengths = plum.spliced_lengths(valid, where)
        hidden = plum.hidden(embeds, lengths)
        slots = jax.vmap(lambda s: slots_of(s, batch.span_valid.shape[-1]))(batch.span_of_token.reshape(tokens.shape))
        spans = jax.vmap(pool_spans)(plum.project(take_positions(hidden, position)), slots)
        embeddings = plum.image_embeddings(batch.sam_pixels, batch.resized_hw)
        low_res, iou = plum.decode_masks(jnp.repeat(embeddings, count, 0), spans, batch.span_valid.reshape(rows, -1))
        sizes = jnp.repeat(batch.resized_hw, count, 0), jnp.repeat(batch.original_hw, count, 0)
        original = functools.partial(to_original, image_size=config.model.sam.image_size, canvas=batch.masks.shape[-2:])
        return dict(
            clip=plum.clip(torch_clip_input(batch.clip_pixels)), image_tokens=image_tokens, sam=embeddings, embeds=embeds,
            hidden=hidden, logits=plum.logits(hidden)[..., : config.model.llama.vocab_size], spans=spans, low_res=low_res,
            tags=plum.tag_logits(hidden, jnp.arange(hidden.shape[1]) < lengths[:, None]), iou=iou,
            masks=jax.vmap(original)(low_res, *sizes),
        )  # fmt: skip

    return functools.cache(lambda kind: jax.device_get(run(params, batches(kind)[1])))


def torch_clip_input(pixels):
    """The input of the tower, from constants that are written down a second time."""
    mean, std = (np.asarray(x) for x in (torch_plum.CLIP_MEAN, torch_plum.CLIP_STD))
    return (pixels.astype(jnp.float32) / 255 - mean) / std


@functools.cache
def theirs(kind, variant="paper"):
    """-> the dictionary of `torch_losses.train_forward`, and the gradient of its loss by name."""
    _, plum, _, _, tensors = model(variant)
    switches, _, _, with_teacher = VARIANTS[variant]
    w = {name: x.clone().requires_grad_("gaussian_matrix" not in name) for name, x in tensors.items()}
    teacher = torch_plum.without_adapters(w) if with_teacher else None
    out = torch_losses.train_forward(w, numbers(plum), batches(kind)[0], torch_losses.Switches(**switches), teacher)
    names = [name for name in w if w[name].requires_grad]
    grads = torch.autograd.grad(out["loss"], [w[name] for name in names], allow_unused=True)
    found = {name: x for name, x in zip(names, grads, strict=True) if x is not None}
    return out, {name: found.get(name, torch.zeros_like(x)).detach().numpy() for name, x in w.items()}


def conversations(kind):
    """Rows of ours, which has three slots per image, that hold a conversation; in the order of the transcription."""
    return [3 * image + c for image, (_, spans) in enumerate(KINDS[kind]) for c in range(len(spans))]


def spans_of(kind):
    """(row, slot) of every span whose mask is decoded, in the order of the transcription."""
    spans = [count for _, image in KINDS[kind] for count in image]
    return tuple(np.array([(row, slot) for row, n in zip(conversations(kind), spans, strict=True) for slot in range(n)]).T)


def test_features():
    _, plum, _, _, w = model()
    batch, n = batches(PARTS)[0], numbers(plum)
    got = ours()(PARTS)
    with torch.no_grad():
        clip = torch_plum.clip_features(w, n, batch["images_clip"])
        close(got["clip"], clip, 1e-5)
        close(got["image_tokens"], torch_plum.project(w, clip), 1e-5)
        embedding, _ = torch_sam.image_encoder(w, n, batch["images"])
        close(got["sam"], embedding.permute(0, 2, 3, 1), 1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_forward(kind):
    got, (want, _), rows = ours()(kind), theirs(kind), conversations(kind)
    close(got["embeds"][rows], want["embeds"].detach(), 1e-6)
    close(got["hidden"][rows], want["states"][-1].detach(), 1e-5)
    close(got["logits"][rows], want["logits"].detach(), 1e-5)
    tags = want["tag_logits"].detach().numpy()
    close(got["tags"][rows], tags, 1e-5)
    np.testing.assert_array_equal(got["tags"][rows].argmax(-1), tags.argmax(-1))
    assert len(np.unique(tags.argmax(-1))) == 3


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "text"])
def test_masks(kind):
    got, (want, _), at = ours()(kind), theirs(kind), spans_of(kind)
    close(got["spans"][at], torch.stack(want["span_embeds"]).detach(), 1e-5)
    low_res = torch.stack(want["low_res"]).detach().numpy()
    assert np.abs(low_res).max() > 1
    np.testing.assert_allclose(got["low_res"][at], low_res, atol=1e-4)
    np.testing.assert_allclose(got["iou"][at], torch.stack(want["iou"]).detach(), atol=1e-4)
    for mask, z in zip(got["masks"][at], want["masks"], strict=True):
        h, w = z.shape
        np.testing.assert_allclose(mask[:h, :w], z.detach(), atol=1e-4)


@pytest.mark.parametrize("earlier", [0, 1, 2, 5])
def test_a_mask_after_earlier_masks(earlier):
    """The mask of each rank, and that it is another one without the masks before it."""
    _, plum, _, _, w = model()
    out, _ = theirs(PARTS)
    embeds = [x.detach() for x in out["span_embeds"][:6]]
    with torch.no_grad():
        image, _ = torch_sam.image_encoder(w, numbers(plum), batches(PARTS)[0]["images"][:1])
        with_masks, _ = torch_plum.decode_spans(w, numbers(plum), image, embeds)
        alone, _ = torch_plum.decode_spans(w, numbers(plum), image, embeds[earlier : earlier + 1])
    np.testing.assert_allclose(ours()(PARTS)["low_res"][0, earlier], with_masks[earlier], atol=1e-4)
    assert (float((with_masks[earlier] - alone[0]).abs().max()) > 1e-2) == (earlier > 0)


@functools.cache
def differentiate(variant):
    """-> batch -> (loss, {name: (sum, weight)}, gradients)."""
    config, _, graphdef, params, _ = model(variant)
    loss_fn, count = objective.make_loss(graphdef, config)

    @jax.jit
    def run(params, batch):
        (loss, sums), grads = jax.value_and_grad(loss_fn, has_aux=True)(params, {}, batch, count(micro(batch)), None)
        return loss, sums, grads

    return lambda batch: jax.device_get(run(params, batch))


@pytest.mark.parametrize("variant, kind", [*(("paper", kind) for kind in KINDS), ("other", PARTS)])
def test_losses_and_gradients(variant, kind):
    """Every loss, their sum, and the gradient with respect to every parameter.

    Measured against float64, both sides are off by up to 1e-4 in the gradient of the layers that encode earlier masks.
    """
    _, plum, _, _, _ = model(variant)
    out, gradients = theirs(kind, variant)
    loss, sums, grads = differentiate(variant)(batches(kind)[1])
    for name, theirs_name in LOSSES.items():
        if name in sums:
            total, weight = sums[name]
            np.testing.assert_allclose(total / max(weight, 1e-9), out[theirs_name].item(), rtol=1e-5, atol=1e-9, err_msg=name)
    np.testing.assert_allclose(loss, out["loss"].item(), rtol=1e-5)
    assert not gradients["model.embed_tokens.weight"][torch_plum.PAD].any()
    table = grads["llama"]["embed"].copy()
    table[torch_plum.PAD] = 0  # ours trains the padding token where the tag loss covers padding
    grads["llama"]["embed"] = table
    want = jax.tree_util.tree_leaves_with_path(to_params(gradients, plum))
    largest = max(np.abs(x).max() for _, x in want)
    for (path, x), got in zip(want, jax.tree.leaves(grads), strict=True):
        tolerance = 3e-4 * np.abs(x).max() + 1e-7 * largest  # the rest: what is zero in theory, as biases of keys
        np.testing.assert_allclose(got, x, rtol=0, atol=tolerance, err_msg=jax.tree_util.keystr(path))


# Inference


PREFIX = np.array([1, 9, 68, -200])  # <s>, a word, <im_start>, the image


def images():
    """Both views of two images: (torch, ours)."""
    return batches(PARTS)


def encoded():
    _, _, graphdef, params, _ = model()
    batch = images()[1]
    return generate.encode_images(graphdef, params, batch.clip_pixels, batch.sam_pixels, batch.resized_hw)


def torch_image(index):
    """-> what the inference functions of the transcription take of an image."""
    batch = images()[0]
    one = slice(index, index + 1)
    return batch["images_clip"][one], batch["images"][one], batch["resize"][index], batch["original_size"][index]


def masks_of(embeddings, image, readout, labels, row, first=0):
    """Our spans in `labels` and their masks, for one row of a readout: -> ([(start, end)], float32[n, 4g, 4g])."""
    _, _, graphdef, params, _ = model()
    spans = decode_spans(labels)
    embeds = np.zeros((1, 24, readout.features.shape[-1]), np.float32)
    for i, (a, b) in enumerate(spans):
        embeds[0, i] = readout.features[row, a:b].mean(0)
    valid = np.arange(24)[None] < len(spans)
    low_res = generate.decode_masks(graphdef, params, embeddings, np.array([image]), embeds, valid)
    return [(a + first, b + first) for a, b in spans], np.asarray(low_res)[0, : len(spans)]


@pytest.fixture(scope="module")
def questions():
    """Two questions about different images with three choices each, and the whole rows."""
    rng = np.random.default_rng(3)
    shared, sizes = [5, 7], [[4, 2, 6], [1, 5, 3]]
    q = generate.Questions(
        np.array([1, 0]), np.zeros((2, 8), np.int32), np.array(shared), np.zeros((2, 8), bool), np.zeros((2, 3, 6), np.int32),
        np.array(sizes), np.ones((2, 3, 6), bool),
    )  # fmt: skip
    rows = []
    for g in range(2):
        q.tokens[g, : shared[g]] = common = rng.integers(3, 68, shared[g])
        for c in range(3):
            q.choice_tokens[g, c, : sizes[g][c]] = rest = rng.integers(3, 68, sizes[g][c])
            rows.append(np.concatenate([PREFIX, common, rest]))
    return q, rows


def test_choices(questions):
    """Scores of shared prefixes against whole rows, then tags, spans and masks of every choice."""
    q, rows = questions
    _, plum, graphdef, params, w = model()
    image_tokens, embeddings = encoded()
    prefix = generate.run_prefix(graphdef, params, image_tokens, np.maximum(PREFIX, 0).astype(np.int32))
    scores = generate.score_choices(graphdef, params, prefix, q)
    group, choice = np.repeat(np.arange(2), 3), np.tile(np.arange(3), 2)
    readout = jax.device_get(generate.read_rows(graphdef, params, prefix, q, scores, group, choice))
    for g in range(2):
        ids = np.zeros((3, max(map(len, rows[3 * g : 3 * g + 3]))), np.int64)
        for c in range(3):
            ids[c, : len(rows[3 * g + c])] = rows[3 * g + c]
        ids = torch.from_numpy(ids)
        want = torch_plum.choose(w, numbers(plum), *torch_image(q.image[g])[:2], ids, ids != 0, *torch_image(q.image[g])[2:])
        np.testing.assert_allclose(scores.full_mean[g], want["scores"], rtol=1e-5)
        for c in range(3):
            row, n = 3 * g + c, len(rows[3 * g + c]) - 1 + image_tokens.shape[1]
            np.testing.assert_array_equal(readout.labels[row, :n], want["tag_logits"][c, :n].argmax(-1))
            close(readout.features[row, :n], torch_plum.span_features(w, want["hidden"][c, :n]), 1e-5)
            spans, low_res = masks_of(embeddings, q.image[g], readout, readout.labels[row, :n], row)
            for i, (span, mask) in enumerate(zip(spans, low_res, strict=True)):
                expected = want["rows"][c]
                if span[1] < n:  # the transcription tags padding too, which may prolong the last span
                    assert span == expected["spans"][i]
                    np.testing.assert_allclose(mask, expected["low_res"][i], atol=1e-4)
            assert spans


def test_greedy_generation():
    """Tokens, then spans and masks of the answer, of prompts with and without image; one of them ends by itself."""
    _, plum, graphdef, params, w = model()
    rng, limit = np.random.default_rng(7), 9
    prompts = [np.concatenate([PREFIX, rng.integers(3, 68, n)]) for n in (3, 6)] + [np.array([1, 9, 30, 22])]
    image = np.array([1, 0, 0])
    never = dataclasses.replace(numbers(plum), end=-1)

    def run(row, numbers):
        clip, pixels, resized, original = torch_image(image[row])
        prompt = torch.from_numpy(prompts[row])
        return torch_plum.generate(w, numbers, clip, pixels, prompt, limit, resized, original, state_of_last=True)

    said = [run(row, never)["output_ids"].tolist() for row in range(3)]
    end = said[0][4]
    assert end not in said[0][:4] + said[1]  # the second answer goes on to the limit
    tokens = np.full((3, 12), 4, np.int32)
    for row, prompt in enumerate(prompts):
        tokens[row, : len(prompt)] = np.maximum(prompt, 0)
    image_tokens, embeddings = encoded()
    generated, count, readout = jax.device_get(generate.generate(
        graphdef, params, image_tokens[image], tokens, np.array([len(p) for p in prompts]), np.array([3, 3, -1]),
        max_new_tokens=limit, end_token=end,
    ))  # fmt: skip
    assert (count[:2] == (5, limit)).all()
    for row in range(3):
        want = run(row, dataclasses.replace(numbers(plum), end=end))
        n = count[row]
        np.testing.assert_array_equal(generated[row, :n], want["output_ids"])
        labels = want["tag_logits"][-n:].argmax(-1)
        np.testing.assert_array_equal(readout.labels[row, :n], labels)
        close(readout.features[row, :n], torch_plum.span_features(w, want["hidden"][-n:]), 1e-5)
        spans, low_res = masks_of(embeddings, image[row], readout, readout.labels[row, :n], row)
        assert spans == torch_plum.predicted_spans(labels)
        if row < 2:
            _, pixels, resized, original = torch_image(image[row])
            answer = torch_plum.read_masks(w, numbers(plum), want["hidden"][-n:], spans, pixels, resized, original, True)
            assert spans
            np.testing.assert_allclose(low_res, torch.stack(answer["low_res"]), atol=1e-4)
