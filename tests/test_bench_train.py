"""tools/bench_train.py: the step of the benchmark is that of training, and the same as the transcription's."""

import json

import numpy as np
import pytest
from bench_fixtures import config_file, train_config

from plum_jax.errors import UserError
from plum_jax.models.plum import PlumConfig
from plum_jax.settings import check_split
from plum_jax.sharding import make_mesh
from tools import bench_train
from tools.random_batch import IMAGE_AT, random_batch

pytestmark = pytest.mark.usefixtures("quick_compilation")


def test_the_command(tmp_path, capsys):
    """Both sides give the same loss, else the command ends with an error; the JSON on stdout is that of the file."""
    pytest.importorskip("torch")
    out = tmp_path / "out.json"
    bench_train.main([f"--config={config_file(tmp_path)}", "--repeats=2", "--warmup=0", "--spans=3", f"--json={out}"])
    found, printed = json.loads(out.read_text()), capsys.readouterr().out
    assert json.loads(printed.splitlines()[-1]) == found and "times as fast" in printed
    step, compared = found["step"], found["compared"]
    assert (step["images"], step["images_with_masks"], step["positions"]) == (16, 8, 24 - 1 + 9)
    assert step["parameters"] == step["trainable"] > 1000
    assert step["images_per_second"] == 16 / step["seconds"]["median"] and step["memory_bytes"] > 0
    assert step["executed_flops"] == step["flops"] > 1e6 and step["hfu"] == step["mfu"]  # the config recomputes no layer
    np.testing.assert_allclose(*compared["losses"], rtol=1e-5)
    assert compared["losses"][0] > 1 and compared["ratio"] == compared["torch"]["median"] / compared["ours"]["median"]
    assert compared["target"] == 3.0 and found["no_torch"] == ""


@pytest.mark.slow
def test_the_command_as_at_the_sizes_of_the_paper(tmp_path, capsys):
    """bfloat16, frozen weights, layers recomputed, everything split over the devices, two micro-batches."""
    config = config_file(tmp_path)
    flags = ["--dtype=bfloat16", "--config.trainable=lora_|^mask_decoder/", "--config.model.remat=full", "--config.mesh.data=1"]
    flags += ["--config.mesh.fsdp=4", "--config.mesh.tensor=2", "--config.data.micro_batches=2"]
    bench_train.main([f"--config={config}", *flags, "--repeats=1", "--warmup=0"])
    found = json.loads(capsys.readouterr().out.splitlines()[-1])
    step = found["step"]
    assert found["dtype"] == "bfloat16" and found["machine"]["mesh"] == dict(data=1, fsdp=4, tensor=2)
    assert 0 < step["trainable"] < step["parameters"] and step["executed_flops"] > step["flops"] and step["hfu"] > step["mfu"]
    assert "compared" not in found and ("float32 only" in found["no_torch"] or "not installed" in found["no_torch"])


def test_recomputed_layers_are_work_but_not_progress():
    config, mesh = train_config(), make_mesh(dict(data=-1, fsdp=1, tensor=1))
    config.model.remat = "full"
    plan = bench_train.make_step(config, mesh)
    batch = random_batch(config, PlumConfig.from_dict(config.model), most_spans=3, seed=0)
    shapes = bench_train.jax.eval_shape(lambda: _arguments(plan, batch))
    flops, executed = bench_train.operations(config, mesh, shapes)
    llama, images, positions = config.model.llama, 16, 32
    weights = 4 * llama.width**2 + 2 * llama.width * llama.mlp + 4 * llama.lora_rank * llama.width  # nobody needs down_proj's
    assert executed - flops == 2 * llama.depth * images * positions * (weights + 2 * positions * llama.width)


def _arguments(plan, batch):
    import jax.numpy as jnp

    params = bench_train.jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), plan.abstract)
    micro = bench_train.jax.tree.map(lambda x: jnp.asarray(x)[None], batch)
    return plan.init(params), {}, micro, bench_train.jax.random.key(0)


def test_a_random_batch_is_what_the_model_takes():
    config = train_config()
    batch = random_batch(config, PlumConfig.from_dict(config.model), most_spans=3, seed=0)
    valid = batch.token_valid.sum(-1)
    np.testing.assert_array_equal(np.take_along_axis(batch.tokens, valid[..., None] - 1, -1), 2)  # </s> ends a row
    assert (batch.image_position == IMAGE_AT).all() and (batch.tokens[:, 0, IMAGE_AT - 1] == 58).all()
    starts = (batch.bio == 1).sum(-1)
    assert starts.min() >= 1 and starts[0, 0] == starts.max() == 3
    np.testing.assert_array_equal(batch.span_of_token.max(-1), starts)
    np.testing.assert_array_equal((batch.bio > 0).sum(-1), 2 * starts)
    assert not (batch.bio[~batch.token_valid] > 0).any()
    assert batch.span_valid[0::2].any((1, 2)).all() and not batch.span_valid[1::2].any()  # one of two images has masks
    np.testing.assert_array_equal(batch.span_valid.sum(-1)[0::2], starts[0::2])
    assert batch.masks.shape == (8, 3, 20, 24) and batch.masks.any((2, 3)).all()
    config.data.max_tokens = 18
    with pytest.raises(UserError, match="too few for 3 spans"):
        random_batch(config, PlumConfig.from_dict(config.model), most_spans=3, seed=0)


def test_the_sizes_of_the_paper_divide_among_eight_devices():
    from tools import sizes

    for name in ("7b", "13b"):
        _, _, config, mesh = sizes.parse(sizes.parser_of(""), [f"--size={name}"], train=True)
        check_split(config, mesh)
        batch = random_batch(config, PlumConfig.from_dict(config.model), most_spans=5, seed=0)
        assert batch.tokens.shape == (8, 1, 257) and batch.sam_pixels.shape == (8, 1024, 1024, 3)
