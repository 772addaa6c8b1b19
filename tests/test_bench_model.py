"""tools/bench_model.py and what its figures are made of: operations by hand, times in turns, weights where they belong."""

import json
import os
import subprocess
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from bench_fixtures import config_file

from plum_jax.errors import UserError
from plum_jax.models.plum import PlumConfig
from plum_jax.sharding import make_mesh, tree_sharding
from tools import bench_model, sizes, timing
from tools.random_weights import random_params

pytestmark = pytest.mark.usefixtures("quick_compilation")
ROWS, POSITIONS, NEW = 8, 12, 3


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """-> (config, the JSON object of a run of all parts, what was printed)."""
    folder = tmp_path_factory.mktemp("bench")
    out = folder / "out.json"
    flags = ["--repeats=2", "--warmup=0", "--rows=1", "--images=3", f"--positions={POSITIONS}", f"--new-tokens={NEW}"]
    bench_model.main([f"--config={config_file(folder)}", *flags, "--spans", "2", "3", f"--json={out}"])
    return PlumConfig.from_dict(sizes.config_io.load_config(str(config_file(folder))).model), json.loads(out.read_text())


def test_every_part_is_there_and_runs_on_all_devices(run):
    _, found = run
    assert found["parts"].keys() == {"sam", "clip", "prefill", "decode", "masks_3", "feedback_2", "feedback_3", "step"}
    assert found["machine"]["devices"] == 8 and found["machine"]["mesh"]["data"] == 8
    for part in found["parts"].values():
        assert 0 < part["seconds"]["least"] <= part["seconds"]["median"]
        assert part["flops_per_second"] == part["flops"] / part["seconds"]["median"]
        assert part["mfu"] == part["of_products"] == part["flops_per_second"] / part["peak"]["products"]
        assert part["of_products_by_processor_time"] > 0 and part["memory_bytes"] > 0 and part["compile_seconds"] > 0
    assert found["parts"]["sam"]["images"] == found["parts"]["masks_3"]["rows"] == 8  # as many as the devices divide
    growth = found["feedback"]
    low, high = (found["parts"][f"feedback_{n}"]["seconds"]["median"] for n in (2, 3))
    assert growth["spans"] == [2, 3] and growth["ratio"] == high / low and growth["reached"] == (high / low <= 4.5)
    assert found["peak_memory"]["process_bytes"] > 1e8


def test_every_part_has_a_peer(run):
    """The one of feedback is the transcription with the same weights, the others have as many parameters as ours."""
    pytest.importorskip("torch")
    _, found = run
    for part in found["parts"].values():
        assert part["no_peer"] == "" and part["ratio"] == part["torch"]["median"] / part["seconds"]["median"]
        assert part["ratio_of_processor_time"] == part["torch"]["processor"] / part["seconds"]["processor"]
    assert found["torch"]["threads"] == found["machine"]["cores"]


def test_operations_are_those_counted_by_hand(run):
    config, found = run
    c, parts = config.clip, found["parts"]
    patches, tokens = c.grid**2, c.grid**2 + 1
    layer = 4 * tokens * c.width**2 + 2 * tokens * tokens * c.width + 2 * tokens * c.width * c.mlp
    assert parts["clip"]["flops"] == 2 * ROWS * (patches * 3 * c.patch**2 * c.width + c.depth * layer)

    c = config.llama
    weights = 4 * c.width**2 + 3 * c.width * c.mlp  # of a layer, each used once for a token

    def passes(tokens, keys):
        return ROWS * c.depth * tokens * (weights + 2 * keys * c.width)

    head = ROWS * c.width * c.padded_vocab
    assert parts["prefill"]["flops"] == 2 * (passes(POSITIONS, POSITIONS) + head)
    assert parts["decode"]["flops"] == 2 * NEW * (passes(1, POSITIONS + NEW) + head)
    forward = 2 * (passes(POSITIONS, POSITIONS) + (POSITIONS - 1) * head)
    assert parts["step"]["flops"] == 3 * forward  # the backward pass has two products for each of the forward pass


def test_masks_of_the_peer_are_those_of_ours():
    torch = pytest.importorskip("torch")
    from bench_fixtures import small_bench

    from tools import torch_peers

    bench = small_bench()
    program = bench_model.with_feedback(bench)["feedback_3"]
    low_res, _ = program.run(*program.args)
    peer = program.peer(torch_peers.Torch(bench.config, "float32", torch.get_num_threads()))
    np.testing.assert_allclose(peer(), low_res, atol=1e-4 * np.abs(low_res).max())
    with pytest.raises(torch_peers.NoPeer, match="float32 only"):
        program.peer(torch_peers.Torch(bench.config, "bfloat16", torch.get_num_threads()))


def test_half_precision_without_torch(tmp_path, capsys):
    flags = ["--only=prefill", "--dtype=bfloat16", "--no-torch", "--repeats=1", "--warmup=0", "--positions=8"]
    bench_model.main([f"--config={config_file(tmp_path)}", *flags, "--config.mesh.data=2", "--config.mesh.fsdp=4"])
    printed = capsys.readouterr().out
    found = json.loads(printed.splitlines()[-1])
    assert (
        found["dtype"] == "bfloat16" and found["torch"] == "left out" and printed.startswith("No column of PyTorch: left out.")
    )
    part = found["parts"]["prefill"]
    assert part["torch"] is None and "ratio" not in part and part["tokens"] == 8 * 8 and found["feedback"] is None


def test_an_unknown_part_is_one_sentence():
    with pytest.raises(UserError, match="'sma' is no part; give some of sam,clip"):
        bench_model.main(["--only=sma"])


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--repeats=0"], "--repeats 0, --warmup 2: give 1 repeat or more"),
        (["--warmup=-1"], "--repeats 9, --warmup -1"),
        (["--json=/nowhere/x.json"], "--json /nowhere/x.json: its folder is not there"),
    ],
)
def test_wrong_numbers_and_files_are_found_before_anything_runs(words, message):
    with pytest.raises(UserError, match=message):
        bench_model.main(words)


def test_runs_take_turns():
    ran = []
    functions = {name: lambda name=name: ran.append(name) for name in "ab"}
    times = timing.in_turns(functions, repeats=3, warmup=1)
    assert "".join(ran) == "ab" + "ab" + "ba" + "ab" and times.keys() == {"a", "b"}


def test_a_busy_machine_is_named():
    machine = {"device": "cpu", "others": 0.45}
    assert timing.disturbed(machine).startswith("Other programs had 45% of the processors: times by the clock")
    for quiet in ({"others": 0.02}, {"others": None}, {"device": "NVIDIA H200"}):
        assert timing.disturbed({**machine, **quiet}) == ""


def test_only_other_programs_are_counted(monkeypatch):
    others = timing.Others()
    with subprocess.Popen([sys.executable, "-c", "while True: pass"]) as program:
        time.sleep(1)
        program.kill()
    assert 0.3 / os.cpu_count() < others.share() <= 1.01
    monkeypatch.setattr(os, "cpu_count", lambda: 4)
    times = iter([(100.0, 50.0, 7.0), (110.0, 75.0, 12.0)])  # 25 seconds were used in 10, 5 of them by this process
    monkeypatch.setattr(timing.Others, "_now", lambda _: next(times))
    assert timing.Others().share() == 20 / 40


def test_times_and_peaks():
    times = timing.Times.of([(4.0, 8.0), (1.0, 6.0), (2.0, 7.0), (3.0, 9.0), (5.0, 1.0)])
    assert times == (3.0, 1.0, 2 / 3, 7.0)
    assert timing.Times.of([(2.0, 1.0)]) == (2.0, 2.0, 0.0, 1.0)
    other = timing.Times(6.0, 2.0, 0.0, 3.5)
    assert timing.ratios({"a": other, "b": times}, "a", "b") == dict(ratio=2, ratio_of_least=2, ratio_of_processor_time=0.5)
    peak = timing.Peak.of(0.5, 100)  # eight virtual devices are one machine
    assert peak == (None, 200.0) and peak.shares(50.0) == {"mfu": 0.25, "of_products": 0.25}
    assert timing.Peak(400.0, 200.0).shares(50.0) == {"mfu": 0.125, "of_products": 0.25}
    for name, rate in (("NVIDIA H200", 989e12), ("TPU v5 lite", 197e12), ("TPU v5p", 459e12), ("Radeon", None)):
        assert timing.nominal_peak(name) == rate


def test_fused_kernels_are_counted_too():
    """A program in bfloat16 has the operations of the same program in float32, where attention is written out."""
    x = jax.ShapeDtypeStruct((2, 8), jnp.bfloat16)
    assert timing.operations(lambda a, i: (a @ a.T)[i], x, jax.ShapeDtypeStruct((), jnp.int32)) == 2 * 2 * 2 * 8


def test_weights_are_drawn_split_and_in_their_dtype():
    mesh = make_mesh(dict(data=1, fsdp=4, tensor=2))
    shapes = {"llama": {"layers": {"q_proj": {"kernel": jax.ShapeDtypeStruct((3, 64, 32), "float32")},
                                   "input_norm": {"scale": jax.ShapeDtypeStruct((3, 64), "float32")}}}}  # fmt: skip
    shardings = tree_sharding(shapes, mesh)
    params = random_params(shapes, shardings, 0, lambda path: "bfloat16" if "q_proj" in path else "float32")
    kernel, scale = params["llama"]["layers"]["q_proj"]["kernel"], params["llama"]["layers"]["input_norm"]["scale"]
    assert kernel.dtype == jnp.bfloat16 and scale.dtype == jnp.float32
    assert {x.data.shape for x in kernel.addressable_shards} == {(3, 16, 16)}
    values = np.asarray(kernel, np.float32)
    np.testing.assert_allclose(values.std((1, 2)), 64**-0.5, rtol=0.1)
    assert np.abs(values[0] - values[1]).max() > 0.1  # every layer has its own
    np.testing.assert_allclose(np.std(scale), 0.02, rtol=0.3)
    np.testing.assert_allclose(np.mean(scale), 1, atol=0.01)


def test_flags_win_over_the_size():
    parser = sizes.parser_of("")
    args, size, config, mesh = sizes.parse(parser, ["--size=13b", "--dtype=float32", "--config.model.llama.depth=3"])
    assert (config.model.llama.width, config.model.llama.depth, config.model.dtype) == (5120, 3, "float32")
    assert mesh.shape["fsdp"] == 8 and sizes.whole(9, mesh) == 16 and size.rows == 8
    _, _, config, _ = sizes.parse(parser, ["--size=quarter"], train=True)
    assert (config.model.llama.width, config.data.global_batch) == (4096 // 4, 1)
