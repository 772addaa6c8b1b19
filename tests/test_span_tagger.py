import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from model_fixtures import random_params

from plum_jax.models.plum import bind
from plum_jax.models.span_tagger import BidirectionalEncoder, SpanProjector, SpanTagger, TaggerConfig

WIDTH = 12
CONFIG = TaggerConfig(heads=3, mlp=20, epsilon=1e-5, dropout=0.1)
VALID = np.arange(7) < np.array([7, 4, 1])[:, None]
ENCODER_PARTS = ("out_proj", "linear1", "linear2", "norm1", "norm2")


def rough(kind, *arguments):
    """-> a module of that kind with every parameter off its neutral value."""
    graphdef, shapes = nnx.split(nnx.eval_shape(lambda: kind(*arguments, nnx.Rngs(0))))
    return bind(graphdef, random_params(nnx.to_pure_dict(shapes)))


def hidden(rows=3, length=7):
    return np.random.default_rng(0).standard_normal((rows, length, WIDTH)).astype(np.float32)


def torch_encoder(encoder):
    """Our encoder -> torch.nn.TransformerEncoderLayer with the arguments that the reference ends up with (M 3.1)."""
    torch = pytest.importorskip("torch")
    layer = torch.nn.TransformerEncoderLayer(WIDTH, CONFIG.heads, CONFIG.mlp, batch_first=True).eval()
    p = nnx.to_pure_dict(nnx.state(encoder))
    weights = {
        "self_attn.in_proj_weight": np.concatenate([p[f"{n}_proj"]["kernel"].T for n in "qkv"]),
        "self_attn.in_proj_bias": np.concatenate([p[f"{n}_proj"]["bias"] for n in "qkv"]),
    }
    for name in ENCODER_PARTS:
        key = "self_attn.out_proj" if name == "out_proj" else name
        weights[key + ".weight"] = p[name]["scale"] if "scale" in p[name] else p[name]["kernel"].T
        weights[key + ".bias"] = p[name]["bias"]
    layer.load_state_dict({k: torch.tensor(np.array(v)) for k, v in weights.items()})
    return layer


def test_encoder_is_torchs_layer():
    torch = pytest.importorskip("torch")
    encoder = rough(BidirectionalEncoder, WIDTH, CONFIG)
    x = hidden()
    with torch.no_grad():
        want = torch_encoder(encoder)(torch.tensor(x), src_key_padding_mask=torch.tensor(~VALID)).numpy()
    np.testing.assert_allclose(jax.jit(encoder)(x, VALID)[VALID], want[VALID], atol=1e-5)


def test_tags_see_the_future_and_no_padding():
    tagger = rough(SpanTagger, WIDTH, CONFIG)
    run = jax.jit(tagger)
    x = hidden()
    base = run(x, VALID)
    padded = np.where(VALID[..., None], x, 50.0)
    np.testing.assert_allclose(run(padded, VALID)[VALID], base[VALID], atol=1e-5)
    later = x.copy()
    later[0, 6] += 1
    assert np.abs(run(later, VALID)[0, 0] - base[0, 0]).max() > 1e-4
    np.testing.assert_allclose(run(x[:, :4], VALID[:, :4])[1], base[1, :4], atol=1e-5)


def test_a_row_without_valid_token_is_finite():
    tagger = rough(SpanTagger, WIDTH, CONFIG)
    grad = jax.jit(jax.grad(lambda x: tagger(x, np.zeros((3, 7), bool)).sum()))(hidden())
    assert np.isfinite(grad).all()


def test_classifier_without_encoder():
    config = TaggerConfig(heads=3, mlp=20, epsilon=1e-5, dropout=0.1, bidirectional=False)
    tagger = rough(SpanTagger, WIDTH, config)
    assert set(nnx.to_pure_dict(nnx.state(tagger))) == {"hidden", "out"}
    x = hidden()
    w = nnx.to_pure_dict(nnx.state(tagger))
    want = np.maximum(x @ w["hidden"]["kernel"] + w["hidden"]["bias"], 0) @ w["out"]["kernel"] + w["out"]["bias"]
    np.testing.assert_allclose(tagger(x, VALID), want, atol=1e-5)


def test_logits_are_float32():
    tagger = rough(SpanTagger, WIDTH, CONFIG)
    low, high = jax.jit(tagger)(jnp.asarray(hidden(), jnp.bfloat16), VALID), jax.jit(tagger)(hidden(), VALID)
    assert low.dtype == jnp.float32
    np.testing.assert_allclose(low[VALID], high[VALID], atol=0.1)


def test_dropout_needs_a_key_and_a_rate():
    tagger = rough(SpanTagger, WIDTH, CONFIG)
    x = hidden()
    run = jax.jit(lambda key: tagger(x, VALID, key=key))
    a, b = run(jax.random.key(0)), run(jax.random.key(1))
    assert not np.allclose(a, b)
    still = rough(SpanTagger, WIDTH, TaggerConfig(heads=3, mlp=20, epsilon=1e-5, dropout=0.0))
    np.testing.assert_allclose(
        jax.jit(lambda key: still(x, VALID, key=key))(jax.random.key(0)), jax.jit(still)(x, VALID), atol=1e-6
    )


def test_initial_weights_are_xaviers():
    encoder = BidirectionalEncoder(256, TaggerConfig(heads=4, mlp=128, epsilon=1e-5, dropout=0.0), nnx.Rngs(0))
    for name, fan in (("q_proj", 4 * 256), ("v_proj", 4 * 256), ("out_proj", 512), ("linear1", 384), ("linear2", 384)):
        limit = (6 / fan) ** 0.5  # the fan-out of the packed projection is three times the width (M 3.1)
        kernel = np.abs(np.asarray(getattr(encoder, name).kernel[...]))
        assert 0.99 * limit < kernel.max() <= limit, name


def test_projector_is_the_formula():
    projector = rough(SpanProjector, WIDTH, 5)
    x, p = hidden(), nnx.to_pure_dict(nnx.state(projector))
    want = np.maximum(x @ p["hidden"]["kernel"] + p["hidden"]["bias"], 0) @ p["out"]["kernel"] + p["out"]["bias"]
    np.testing.assert_allclose(projector(x), want, atol=1e-5)
