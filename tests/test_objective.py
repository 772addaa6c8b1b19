import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from model_fixtures import PARTS, micro, random_batch, small_config, small_model
from reference import losses as plain

from plum_jax import objective
from plum_jax.batch import Batch
from plum_jax.errors import UserError
from plum_jax.models.plum import PlumConfig, bind, build, take_positions

pytestmark = pytest.mark.usefixtures("quick_compilation")
NAMES = ("language", "tag", "shape", "bce", "patch")
FAITHFUL = dict(reference=0.1, tag_positions="all", shape="focal_tversky", tversky_clamp=False)


def evaluator(config, graphdef, *, gradient=False):
    """-> function of batch, parameters and totals -> (loss, sums, gradients or None). Gradients are slow to compile."""
    loss_fn, count = objective.make_loss(graphdef, config, PARTS)

    @jax.jit
    def run(params, batch, totals):
        if not gradient:
            return *loss_fn(params, {}, batch, totals, None), None
        (loss, sums), grads = jax.value_and_grad(loss_fn, has_aux=True)(params, {}, batch, totals, None)
        return loss, sums, grads

    return lambda batch, params=None, totals=None: run(
        small_model()[2] if params is None else params, batch, jax.jit(count)(micro(batch)) if totals is None else totals
    )


@pytest.fixture(scope="module")
def config():
    return small_config()


@pytest.fixture(scope="module")
def evaluate(config):
    return evaluator(config, small_model()[1])


@pytest.fixture(scope="module")
def differentiate(config):
    return evaluator(config, small_model()[1], gradient=True)


@pytest.fixture(scope="module")
def faithful():
    config = small_config()
    config.loss.update(FAITHFUL)
    return config, evaluator(config, small_model()[1])


@pytest.fixture(scope="module")
def batch(config):
    return random_batch(config, text_only=((1, 1),))


@pytest.fixture(scope="module")
def base(differentiate, batch):
    return differentiate(batch)


def close(got, want, rtol=1e-5):
    """The weighted loss itself is the first of the three; its entry among the sums assumes config.data.micro_batches."""
    np.testing.assert_allclose(got[0], want[0], rtol=rtol)
    for name in set(want[1]) - {"loss"}:
        np.testing.assert_allclose(got[1][name], want[1][name], rtol=rtol, atol=1e-6, err_msg=name)


@pytest.fixture(scope="module")
def outputs(config):
    """-> batch -> what the model says, by its methods: hidden, logits, tag logits, masks at original size per row and slot."""

    @jax.jit
    def run(params, batch):
        model = bind(small_model()[1], params)
        rows, count = batch.tokens.reshape(-1, batch.tokens.shape[-1]), batch.tokens.shape[1]
        where = batch.image_position.reshape(-1)
        embeds, position = model.embed(rows, where, jnp.repeat(model.image_tokens(batch.clip_pixels), count, 0))
        lengths = model.spliced_lengths(batch.token_valid.reshape(rows.shape), where)
        hidden = model.hidden(embeds, lengths)
        slots = batch.span_of_token.reshape(*rows.shape, 1) == jnp.arange(1, batch.span_valid.shape[-1] + 1)
        features = model.project(take_positions(hidden, position))
        spans = jnp.einsum("rtn,rtw->rnw", slots, features) / jnp.maximum(slots.sum(1), 1)[..., None]
        images = jnp.repeat(model.image_embeddings(batch.sam_pixels, batch.resized_hw), count, 0)
        low_res, _ = model.decode_masks(images, spans, batch.span_valid.reshape(rows.shape[0], -1))
        sizes = jnp.repeat(batch.resized_hw, count, 0), jnp.repeat(batch.original_hw, count, 0)
        resize = lambda x, r, o: objective.to_original(x, r, o, config.model.sam.image_size, batch.masks.shape[-2:])  # noqa: E731
        valid = jnp.arange(hidden.shape[1]) < lengths[:, None]
        return hidden, position, model.logits(hidden), model.tag_logits(hidden, valid), jax.vmap(resize)(low_res, *sizes)

    return lambda batch: jax.device_get(run(small_model()[2], batch))


def rows_of(batch):
    return [(i, c) for i in range(batch.tokens.shape[0]) for c in range(batch.tokens.shape[1])]


def test_each_loss_is_the_formula_row_by_row(config, batch, base, outputs):
    hidden, position, logits, tag_logits, masks = outputs(batch)
    language, tags, labels, shape, bce = [], [], [], [], []
    for row, (i, c) in enumerate(rows_of(batch)):
        for t in np.flatnonzero(batch.loss_weight[i, c]):
            language.append(plain.nll(logits[row, position[row, t] - 1], batch.tokens[i, c, t]))
        valid = batch.token_valid[i, c]
        tags.append(tag_logits[row][position[row][valid]])
        labels.append(batch.bio[i, c][valid])
        h, w = batch.original_hw[i]
        for slot in np.flatnonzero(batch.span_valid[i, c]):
            target = batch.masks[i, batch.span_mask_index[i, c, slot]][:h, :w]
            shape.append(plain.dice(masks[row, slot, :h, :w], target, 1000.0))
            bce.append(plain.bce(masks[row, slot, :h, :w], target))
    want = dict(
        language=np.mean(language), tag=plain.tag(tags, labels, (0.1, 1.0, 1.0)), shape=np.mean(shape), bce=np.mean(bce)
    )
    for name, value in want.items():
        np.testing.assert_allclose(base[1][name][0] / base[1][name][1], value, rtol=1e-5, err_msg=name)
    assert len(shape) > 3
    total = sum(base[1][n][0] / base[1][n][1] * w for n, w in zip(NAMES, (1.0, 0.5, 1.0, 2.0, 0.5), strict=True))
    np.testing.assert_allclose(base[0], total, rtol=1e-6)


def test_faithful_variants(faithful, outputs, config):
    """Tags at every position with padding, and focal Tversky; all rows have an image, as in the reference."""
    batch = random_batch(config)
    _, sums, _ = faithful[1](batch)
    _, position, _, tag_logits, masks = outputs(batch)
    labels, shape = np.zeros(tag_logits.shape[:2], int), []
    for row, (i, c) in enumerate(rows_of(batch)):
        labels[row, position[row]] = batch.bio[i, c]
        h, w = batch.original_hw[i]
        for slot in np.flatnonzero(batch.span_valid[i, c]):
            target = batch.masks[i, batch.span_mask_index[i, c, slot]][:h, :w]
            shape.append(plain.tversky(masks[row, slot, :h, :w], target, 0.7, 0.3, 0.75))
    np.testing.assert_allclose(sums["tag"][0] / sums["tag"][1], plain.tag(tag_logits, labels, (0.1, 1.0, 1.0)), rtol=1e-5)
    np.testing.assert_allclose(sums["shape"][0] / sums["shape"][1], np.mean(shape), rtol=1e-5)
    loss_fn, count = objective.make_loss(small_model()[1], faithful[0], PARTS)
    totals = count(micro(batch))
    for name in totals:  # the totals, from the labels alone, are the weights that the terms come with
        np.testing.assert_allclose(totals[name], sums[name][1], rtol=1e-6, err_msg=name)


def test_reference_term_is_zero_until_the_adapters_move(faithful, batch):
    params = small_model()[2]
    _, sums, _ = faithful[1](batch, params)
    assert sums["reference"][0] == 0
    assert sums["reference"][1] == batch.span_valid.sum()
    _, sums, _ = faithful[1](batch, small_model(adapters=True)[2])
    assert sums["reference"][0] > 1e-4


def padded(batch):
    """More tokens, span slots, masks, canvas and conversations, all invalid and full of garbage."""
    rng = np.random.default_rng(7)
    wide = dict(tokens=3, token_valid=3, loss_weight=3, bio=3, span_of_token=3, span_valid=2, span_mask_index=2)
    changed = {}
    for name, more in wide.items():
        changed[name] = np.pad(getattr(batch, name), ((0, 0), (0, 1), (0, more)))
    garbage = rng.integers(1, 50, changed["tokens"].shape)
    changed["tokens"] = np.where(changed["token_valid"], changed["tokens"], garbage).astype(np.int32)
    changed["image_position"] = np.pad(batch.image_position, ((0, 0), (0, 1)), constant_values=-1)
    changed["masks"] = np.pad(batch.masks, ((0, 0), (0, 1), (0, 4), (0, 3)), constant_values=1)
    changed["mask_valid"] = np.pad(batch.mask_valid, ((0, 0), (0, 1)))
    return batch._replace(**changed)


def test_padding_changes_nothing(evaluate, batch, base):
    close(evaluate(padded(batch)), base)


def test_micro_batches_add_up(evaluate, config, batch, base):
    totals = objective.make_loss(small_model()[1], config, PARTS)[1](micro(batch, 2))
    one, two = (evaluate(jax.tree.map(lambda x, i=i: x[i], micro(batch, 2)), totals=totals) for i in range(2))
    close((one[0] + two[0], jax.tree.map(jnp.add, one[1], two[1])), base)


def test_an_image_repeated_for_each_conversation(evaluate, batch, base):
    """Two conversations about an image, or the same image twice with one conversation each."""
    per_image = {"sam_pixels", "clip_pixels", "resized_hw", "original_hw", "masks", "mask_valid", "sample_id", "patch_part"}
    fields = {
        name: np.repeat(x, 2, 0) if name in per_image else x.reshape(-1, 1, *x.shape[2:]) for name, x in batch._asdict().items()
    }
    loss, sums, _ = evaluate(Batch(**fields))
    sums = {**sums, "patch": tuple(x / 2 for x in sums["patch"])}  # each image counts twice in both sum and weight
    close((loss, sums), base)


def test_images_without_masks_skip_sam(evaluate):
    grounded = small_config()
    grounded.data.grounded = (1, 2)
    batch = random_batch(grounded, images=4, conversations=1)
    got = evaluator(grounded, small_model()[1])(batch)
    every = {
        name: np.repeat(getattr(batch, name), 2, 0)
        for name in ("sam_pixels", "resized_hw", "original_hw", "masks", "mask_valid")
    }
    close(got, evaluate(batch._replace(**every)))


def test_batches_without_text_spans_or_images_are_finite(differentiate, batch):
    zero = lambda name: np.zeros_like(getattr(batch, name))  # noqa: E731
    no_span = {name: zero(name) for name in ("bio", "span_of_token", "span_valid", "span_mask_index")}
    cases = {
        "no span": no_span,
        "text only": {**no_span, "image_position": np.full_like(batch.image_position, -1)},
        "nothing supervised": {**no_span, "loss_weight": zero("loss_weight"), "token_valid": zero("token_valid")},
        "empty targets": {"masks": zero("masks")},
        "no patch known": {"patch_part": zero("patch_part") - 1},
    }
    for case, changes in cases.items():
        loss, sums, grads = differentiate(batch._replace(**changes))
        assert np.isfinite(loss), case
        assert all(np.isfinite(g).all() for g in jax.tree.leaves(grads)), case
        if "span_valid" in changes:
            assert sums["shape"][0] == sums["bce"][0] == sums["tag"][0] == 0, case


def test_average_over_micro_batches(batch, config, base):
    """The reference's average: a loss counts by its own micro-batch's weight, so a span among few weighs more (M D58)."""
    each = small_config()
    each.loss.average = "micro_batch"
    each.data.micro_batches = 2
    run = evaluator(each, small_model()[1])
    halves = [run(jax.tree.map(lambda x, i=i: x[i], micro(batch, 2)), totals=_ones()) for i in range(2)]
    weights = dict(zip(NAMES, (1.0, 0.5, 1.0, 2.0, 0.5), strict=True))
    for loss, sums, _ in halves:
        want = sum(w * sums[n][0] / max(float(sums[n][1]), 1e-9) / 2 for n, w in weights.items())
        np.testing.assert_allclose(loss, want, rtol=1e-5)
    assert abs(float(halves[0][0] + halves[1][0]) / float(base[0]) - 1) > 1e-4


def _ones():
    return {name: jnp.ones(()) for name in (*NAMES, "reference")}


def test_bfloat16_activations(batch, base):
    low = small_config(dtype="bfloat16")
    graphdef, _ = build(PlumConfig.from_dict(low.model))
    loss, sums, _ = evaluator(low, graphdef)(batch)
    assert loss.dtype == jnp.float32
    assert all(x.dtype in (jnp.float32, jnp.int32) for x in jax.tree.leaves(sums))
    np.testing.assert_allclose(loss, base[0], rtol=0.02)


def test_losses_without_weight_are_not_computed(batch):
    config = small_config()
    config.loss.update(shape_weight=0.0, bce=0.0, patch=0.0)
    model = bind(small_model()[1], jax.tree.map(jnp.asarray, small_model()[2]))
    terms, metrics = jax.eval_shape(lambda b: objective.forward(model, b, config, PARTS, None), batch)
    assert set(terms) == {"language", "tag"}
    assert set(metrics) == {"tag_accuracy"}


def test_unknown_variants_are_user_errors():
    for field, value in (("shape", "focal"), ("tag_positions", "answer"), ("average", "epoch")):
        config = small_config()
        config.loss[field] = value
        with pytest.raises(UserError, match=f"config.loss.{field}: '{value}'"):
            objective.make_loss(small_model()[1], config, PARTS)


def test_rounded_logits_and_losses(batch, outputs):
    """logits_dtype bfloat16: logits, and the loss of every token and tag, have the digits of a bf16 run (M D38)."""
    low = small_config(logits_dtype="bfloat16")
    _, sums, _ = evaluator(low, build(PlumConfig.from_dict(low.model))[0])(batch)
    digits = lambda x: np.asarray(x, np.float32).astype(ml_dtypes.bfloat16).astype(np.float64)  # noqa: E731
    _, position, logits, tag_logits, _ = outputs(batch)
    language, tag = [], [0.0, 0.0]
    for row, (i, c) in enumerate(rows_of(batch)):
        for t in np.flatnonzero(batch.loss_weight[i, c]):
            language.append(digits(plain.nll(digits(logits[row, position[row, t] - 1]), batch.tokens[i, c, t])))
        for t in np.flatnonzero(batch.token_valid[i, c] & (batch.bio[i, c] > 0).any()):
            weight = (0.1, 1.0, 1.0)[batch.bio[i, c, t]]
            tag[0] += weight * digits(plain.nll(digits(tag_logits[row, position[row, t]]), batch.bio[i, c, t]))
            tag[1] += weight
    np.testing.assert_allclose(sums["language"][0], np.sum(language), rtol=1e-3)  # a digit may fall on either side
    np.testing.assert_allclose(sums["tag"][0] / sums["tag"][1], tag[0] / tag[1], rtol=1e-3)
