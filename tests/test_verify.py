"""--verify passes on a faithful conversion and names the group of a tensor that is not."""

import dataclasses
import io
import json
from pathlib import Path

import checkpoint_fixtures as fixtures
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import unflatten_dict
from torch_fixtures import parity_config

from plum_jax.convert import keys, verify
from plum_jax.convert.build import TOWERS
from plum_jax.convert.pipeline import convert
from plum_jax.convert.tensors import Tensor
from plum_jax.errors import UserError
from plum_jax.models.plum import PlumConfig

pytest.importorskip("torch")
GROUPS = (
    "CLIP features", "image tokens", "hidden states", "logits", "tags", "span embeddings", "SAM features", "mask prompts",
    "feedback", "low-res masks", "predicted IoU",
)  # fmt: skip


def plum_config(**model):
    """One decoder for all tests: its programs are compiled once."""
    return PlumConfig.from_dict(parity_config(**model).model)


def checkpoint(arrays):
    """{name: array} -> {name: Tensor}."""
    return {n: Tensor(a.shape, a.dtype.name, Path("model.safetensors"), lambda a=a: a) for n, a in arrays.items()}


def reader(flat):
    """{path: array} of ours -> read_params."""

    def read_params(prefix, layer=None):
        if prefix in flat:
            return flat[prefix]
        found = {path.removeprefix(f"{prefix}/"): x for path, x in flat.items() if path.startswith(f"{prefix}/")}
        assert found, prefix
        return unflatten_dict(found if layer is None else {path: x[layer] for path, x in found.items()}, sep="/")

    return read_params


def run(config, flat, changed=None, *, without=(), **options):
    """-> {group: Row}; the source holds `flat`, ours is `changed`."""
    arrays = {name: x for name, x in fixtures.tensors_of(config, flat).items() if not name.startswith(tuple(without))}
    rows = verify.verify(checkpoint(arrays), config, reader(changed or flat), **options)
    return {row.group: row for row in rows}


@pytest.fixture(scope="module")
def model():
    config = plum_config()
    return config, fixtures.parameters(config)


def test_a_faithful_conversion_passes(model):
    log = io.StringIO()
    rows = run(*model, log=log)
    assert tuple(rows) == GROUPS
    for row in rows.values():
        assert row.passed and row.max_rel < 1e-5, row
    assert "verify" in log.getvalue()
    text = verify.table(list(rows.values()))
    assert text.count(" ok") == len(GROUPS) and "DIFFERS" not in text


def test_other_variants_of_the_model_pass():
    config = plum_config(
        feedback=False, projector="mlp", tagger=dict(heads=4, mlp=52, epsilon=1e-5, dropout=0.0, bidirectional=False)
    )
    config = dataclasses.replace(config, llama=dataclasses.replace(config.llama, lora_rank=0))
    rows = run(config, fixtures.parameters(config))
    assert tuple(rows) == tuple(group for group in GROUPS if group != "feedback")
    assert all(row.passed for row in rows.values())


CHANGES = {  # path of ours: groups that must fail
    "clip/layers/k_proj/kernel": ["CLIP features"],
    "clip/position_embed": ["CLIP features"],
    "projector/kernel": ["image tokens"],
    "llama/embed": ["hidden states"],
    "llama/layers/v_proj/lora_b": ["hidden states"],
    "llama/norm/scale": ["hidden states"],
    "llama/lm_head/kernel": ["logits"],
    "span_tagger/encoder/v_proj/kernel": ["tags"],
    "span_projector/out/bias": ["span embeddings"],
    "sam_encoder/window_blocks/attention/rel_pos_w": ["SAM features"],
    "sam_encoder/neck2": ["SAM features"],
    "prompt_encoder/gaussian_matrix": ["mask prompts", "feedback"],  # which adds the positions
    "feedback/queries": ["feedback"],
    "feedback/film2/kernel": ["feedback"],
    "mask_decoder/layers/image_to_token/out_proj/kernel": ["low-res masks", "predicted IoU"],
    "mask_decoder/upscale2/kernel": ["low-res masks"],
    "mask_decoder/iou_head/linear3/kernel": ["predicted IoU"],
}


@pytest.mark.parametrize("path", CHANGES)
def test_a_wrong_tensor_is_named(model, path):
    """Its rows are in another order, which a wrong transposition or a wrong piece of a packed matrix does too."""
    config, flat = model
    wrong = np.array(flat[path])
    view = wrong[-1] if path.startswith(("llama/layers", "clip/layers")) else wrong
    view[:] = np.roll(view, 1, 0)
    rows = run(config, flat, {**flat, path: wrong})
    failed = [row for row in rows.values() if not row.passed]
    assert [row.group for row in failed] == CHANGES[path]
    assert all(row.where in verify.table(failed) for row in failed)
    if path == "llama/layers/v_proj/lora_b":
        assert failed[0].where == f"layer {config.llama.depth - 1}"


def test_square_matrices_that_are_transposed(model):
    config, flat = model
    path = "llama/layers/o_proj/kernel"
    rows = run(config, flat, {**flat, path: flat[path].transpose(0, 2, 1)})
    assert [row.group for row in rows.values() if not row.passed] == ["hidden states"]
    assert rows["hidden states"].max_rel > 0.1


def test_not_a_number_does_not_pass(model):
    config, flat = model
    wrong = np.array(flat["llama/norm/scale"])
    wrong[3] = np.nan
    rows = run(config, flat, {**flat, "llama/norm/scale": wrong})
    assert not rows["hidden states"].passed


def test_storage_in_bfloat16_is_no_error(model):
    """What is rounded by --dtype bf16 is rounded on both sides; an error of the conversion still shows."""
    config, flat = model
    low = {path: x.astype(jnp.bfloat16) if path.startswith(TOWERS) and "/lora_" not in path else x for path, x in flat.items()}
    rows = run(config, flat, low)
    assert all(row.passed and row.max_rel < 1e-5 for row in rows.values())
    path = "clip/layers/linear1/bias"
    wrong = {**low, path: (flat[path] * 1.02).astype(jnp.bfloat16)}
    assert [row.group for row in run(config, flat, wrong).values() if not row.passed] == ["CLIP features"]


def test_heads_that_the_source_lacks_are_not_compared(model):
    config, flat = model
    heads = ("model.token_to_mask_fcs.", "model.text_hidden_fcs.", "bio_encoder.", "mask_pooler.", "model.mm_projector.")
    parts = ("span_tagger/", "span_projector/", "feedback/", "projector/")
    have = {path: x for path, x in flat.items() if not path.startswith(parts)}
    rows = run(config, flat, have, without=heads)
    missing = ("image tokens", "tags", "span embeddings", "feedback")
    assert [group for group, row in rows.items() if row.max_rel is None] == list(missing)
    assert all(row.passed for row in rows.values())
    assert verify.table(list(rows.values())).count("random, not compared") == len(missing)


def test_a_source_with_fewer_tokens(model):
    """LLaVA's table lacks the two tokens around the image; theirs are random in ours."""
    config, flat = model
    arrays = fixtures.tensors_of(config, flat)
    for name in ("model.embed_tokens.weight", "lm_head.weight"):
        arrays[name] = arrays[name][:-2]
    assert all(row.passed for row in verify.verify(checkpoint(arrays), config, reader(flat)))


def test_the_command_verifies_what_it_wrote(tmp_path, capsys):
    """From parts without PLUM's heads, stored in bfloat16."""
    config = fixtures.plum_config()
    _, paths = fixtures.write_sources(tmp_path, config)
    given = {flag: paths[flag] for flag in ("llava", "sam", "clip")}
    assert convert(fixtures.arguments(tmp_path / "base", dtype="bf16", verify=True, **given)) == 0
    printed = capsys.readouterr().out
    assert printed.count(" ok") == 8 and printed.count("random, not compared") == 3 and "DIFFERS" not in printed
    rows = json.loads((tmp_path / "base" / "base.json").read_text())["verified"]
    assert all(row["passed"] for row in rows) and [row["group"] for row in rows] == list(GROUPS)


def test_the_command_refuses_what_differs(tmp_path, monkeypatch):
    """Nothing is left behind when one tensor is turned the wrong way."""
    _, paths = fixtures.write_sources(tmp_path, fixtures.plum_config())
    linear = keys.FORMS["linear"]
    monkeypatch.setitem(keys.FORMS, "linear", linear._replace(to_ours=lambda x: x if x.shape[0] == x.shape[1] else x.T))
    with pytest.raises(UserError, match="--verify: CLIP features, hidden states, .* differ from the source"):
        convert(fixtures.arguments(tmp_path / "base", plum=paths["plum"], clip=paths["clip"], verify=True))
    assert not (tmp_path / "base").exists()
