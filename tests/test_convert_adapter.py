"""PEFT adapters: every spelling of their names, what is refused, and the fold into the base."""

import json

import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import save_file

from plum_jax.convert import adapter, tensors
from plum_jax.errors import UserError
from tests.convert_fixtures import as_torch

WIDTH, RANK, LAYERS = 6, 2, 3
CONFIG = dict(
    peft_type="LORA", task_type="CAUSAL_LM", r=RANK, lora_alpha=16, lora_dropout=0.05, bias="none", inference_mode=True,
    fan_in_fan_out=False, modules_to_save=None, base_model_name_or_path="somewhere", init_lora_weights=True,
    target_modules=[f"model.layers.{i}.self_attn.{m}" for i in range(LAYERS) for m in ("q_proj", "v_proj")],
)  # fmt: skip
NEWER = dict(CONFIG, target_modules=["q_proj", "v_proj"], use_rslora=False, use_dora=False, rank_pattern={}, alpha_pattern={},
             layer_replication=None, lora_bias=False, lora_alpha=16.0)  # fmt: skip


def matrices(prefix="base_model.model.", default="", layers=LAYERS, dtype=np.float32):
    rng = np.random.default_rng(0)
    shapes = {"lora_A": (RANK, WIDTH), "lora_B": (WIDTH + 1, RANK)}
    return {
        f"{prefix}model.layers.{i}.self_attn.{m}.{x}{default}.weight": rng.standard_normal(shapes[x]).astype(dtype)
        for i in range(layers)
        for m in ("q_proj", "v_proj")
        for x in shapes
    }


def write(folder, arrays, config, name="adapter_model.safetensors"):
    folder.mkdir(exist_ok=True)
    (folder / "adapter_config.json").write_text(config if isinstance(config, str) else json.dumps(config))
    if name.endswith(".bin"):
        torch = pytest.importorskip("torch")
        torch.save({key: as_torch(x) for key, x in arrays.items()}, folder / name)
    else:
        save_file(arrays, folder / name)
    return folder


def refuses(match, read, *args):
    with pytest.raises(UserError, match=match) as caught:
        read(*args)
    assert "\n" not in str(caught.value)
    tensors.close()


@pytest.mark.parametrize("name", ["adapter_model.safetensors", "adapter_model.bin"])
@pytest.mark.parametrize("config", [CONFIG, NEWER, {"r": RANK, "lora_alpha": 16}], ids=["0.4", "newer", "bare"])
@pytest.mark.parametrize(("prefix", "default"), [("base_model.model.", ""), ("base_model.model.", ".default"), ("", "")])
def test_every_spelling(tmp_path, name, config, prefix, default):
    found, rank, alpha, dropout = adapter.read_adapter(write(tmp_path, matrices(prefix, default), config, name))
    assert (rank, alpha, dropout) == (RANK, 16.0, config.get("lora_dropout", 0.0))
    want = matrices("")
    assert found.keys() == want.keys() and "model.layers.2.self_attn.v_proj.lora_B.weight" in found
    for key, tensor in found.items():
        np.testing.assert_array_equal(tensor.read(), want[key])


@pytest.mark.parametrize(
    ("entries", "match"),
    [
        (dict(bias="all"), "bias is 'all', which PLUM's adapters have not; merge it"),
        (dict(use_rslora=True), "use_rslora is True"),
        (dict(use_dora=True), "use_dora is True"),
        (dict(rank_pattern={"q_proj": 4}), "rank_pattern is {'q_proj': 4}"),
        (dict(alpha_pattern={"q_proj": 4}), "alpha_pattern is"),
        (dict(modules_to_save=["lm_head"]), r"modules_to_save is \['lm_head'\]"),
        (dict(peft_type="IA3"), "peft_type is 'IA3'"),
        (dict(init_lora_weights="pissa"), "init_lora_weights is 'pissa'"),
        (
            dict(target_modules=["q_proj", "k_proj"]),
            "target module 'k_proj' has an adapter, PLUM has them on q_proj and v_proj",
        ),
        (dict(r=0), "r is 0, not a rank"),
        (dict(r=None), "r is None, not a rank"),
        (dict(lora_alpha="16"), "lora_alpha is '16', not a positive number"),
        (dict(lora_alpha=float("nan")), "lora_alpha is nan"),
        (dict(lora_dropout=1), "lora_dropout is 1, not a rate"),
        (dict(r=4), r"lora_A.weight is \[2, 6\], but r is 4 in adapter_config.json"),
    ],
    ids=str,
)
def test_adapters_of_another_kind(tmp_path, entries, match):
    refuses(match, adapter.read_adapter, write(tmp_path, matrices(), {**CONFIG, **entries}))


def test_faults_of_the_files(tmp_path):
    refuses("adapter_config.json: no such file; give a folder", adapter.read_adapter, tmp_path)
    for text, match in (("{", "is not valid JSON"), ("[1]", "is not a dictionary"), ("[" * 100_000, "is not valid JSON")):
        refuses(f"adapter_config.json: {match}", adapter.read_adapter, write(tmp_path, matrices(), text))
    one = "base_model.model.model.layers.1.self_attn.v_proj.lora_B.weight"
    lacking = {name: x for name, x in matrices().items() if name != one}
    refuses("has no model.layers.1.self_attn.v_proj.lora_B.weight", adapter.read_adapter, write(tmp_path, lacking, CONFIG))
    twice = {**matrices(), one.replace(".weight", ".default.weight"): matrices()[one]}
    refuses("is there twice", adapter.read_adapter, write(tmp_path, twice, CONFIG))
    for name in ("lm_head.lora_A.weight", "model.layers.0.self_attn.k_proj.lora_A.weight", "model.embed_tokens.weight"):
        more = {**matrices(), f"base_model.model.{name}": np.ones((RANK, WIDTH), np.float32)}
        refuses(f"{name} is not an adapter of q_proj or v_proj", adapter.read_adapter, write(tmp_path, more, CONFIG))
    (tmp_path / "adapter_model.safetensors").unlink()
    refuses("holds neither adapter_model.safetensors nor adapter_model.bin", adapter.read_adapter, tmp_path)


@pytest.fixture
def base(tmp_path):
    """{name: Tensor} of a base of q_proj and v_proj [7, 6] in bfloat16, and one tensor without an adapter."""
    rng = np.random.default_rng(1)
    arrays = {
        f"model.layers.{i}.self_attn.{m}.weight": rng.standard_normal((WIDTH + 1, WIDTH)).astype(ml_dtypes.bfloat16)
        for i in range(LAYERS)
        for m in ("q_proj", "v_proj")
    }
    save_file({**arrays, "lm_head.weight": np.ones((3, 2), ml_dtypes.bfloat16)}, tmp_path / "model.safetensors")
    return tensors.read_folder(tmp_path)


def test_the_fold_is_w_plus_scale_b_a_in_float32(tmp_path, base):
    """And not rounded to the dtype of the base, which would lose more than half of this small adapter (M D54)."""
    small = {name: (1e-2 * x).astype(np.float16) for name, x in matrices().items()}
    read = adapter.read_adapter(write(tmp_path / "adapter", small, CONFIG))
    merged = adapter.merge_adapter(base, read)
    assert list(merged) == list(base) and merged["lm_head.weight"] is base["lm_head.weight"]
    for name in base:
        if name == "lm_head.weight":
            continue
        a, b = (small[f"base_model.model.{name.removesuffix('.weight')}.lora_{x}.weight"].astype(np.float64) for x in "AB")
        w, got = base[name].read().astype(np.float64), merged[name].read()
        assert got.dtype == np.float32 and (merged[name].dtype, merged[name].shape) == ("float32", got.shape)
        np.testing.assert_allclose(got, w + 8 * b @ a, rtol=0, atol=2e-7)
        change = got.astype(np.float64) - w
        rounded = got.astype(ml_dtypes.bfloat16).astype(np.float64) - w
        assert np.linalg.norm(rounded - change) > 0.5 * np.linalg.norm(change)


def test_the_fold_reads_when_it_is_read(tmp_path, base):
    read = adapter.read_adapter(write(tmp_path / "adapter", matrices(), CONFIG))
    merged = adapter.merge_adapter(base, read)
    name = "model.layers.0.self_attn.q_proj.weight"
    (tmp_path / "adapter" / "adapter_model.safetensors").unlink()
    refuses("adapter_model.safetensors: cannot be opened", merged[name].read)


def test_an_adapter_of_another_base(tmp_path, base):
    read = adapter.read_adapter(write(tmp_path / "adapter", matrices(layers=LAYERS + 1), CONFIG))
    refuses(
        "has an adapter of model.layers.3.self_attn.q_proj.weight, which the base has not", adapter.merge_adapter, base, read
    )
    name = "model.layers.0.self_attn.v_proj.weight"
    wrong = {**base, name: tensors.Tensor((9, WIDTH), "float32", base[name].file, base[name].read)}
    read = adapter.read_adapter(write(tmp_path / "adapter", matrices(), CONFIG))
    refuses(rf"the adapter of {name} is for \[7, 6\], the base has \[9, 6\]", adapter.merge_adapter, wrong, read)
