"""Validation in a run of several processes: the first one scores while the others wait, and all end together."""

import json
import signal
import time

import numpy as np
import pytest
from fixtures_partonomy import write_folder
from process_fixtures import ROOT, Launch, command, ends

from plum_jax import checkpoint
from plum_jax.logger import read_metrics

STEPS = 4
SHARDED = """
import jax, numpy as np
from plum_jax import processes
processes.start_processes()
from jax.sharding import AxisType, Mesh
from plum_jax.sharding import AXES, to_first_process, tree_sharding

near, far = jax.devices()[:2], jax.devices()[2:]
processes.meet("started")
mesh = Mesh(np.reshape([near[0], far[0], far[1], near[1]], (1, 2, 2)), AXES, axis_types=(AxisType.Auto,) * 3)
right = {"q_proj": {"kernel": np.arange(64.0).reshape(8, 8)}, "embed": np.arange(24.0).reshape(6, 4), "norm": np.arange(3.0)}
right = {"llama": right}
put = lambda x, sharding: jax.make_array_from_callback(x.shape, sharding, lambda index: x[index])
found = to_first_process(jax.tree.map(put, right, tree_sharding(right, mesh)), mesh)
if processes.first():
    jax.tree.map(np.testing.assert_array_equal, jax.device_get(found), right)
    kernel = found["llama"]["q_proj"]["kernel"]
    assert kernel.sharding.device_set == set(near) and kernel.addressable_shards[0].data.shape == (8, 4)
    with jax.set_mesh(kernel.sharding.mesh):
        assert jax.jit(lambda x: (right["llama"]["norm"] + x).sum())(kernel[0, 0]) == 3
else:
    assert found is None
raise SystemExit(processes.leave(0))
"""


@pytest.fixture(scope="module")
def launch(tmp_path_factory):
    with Launch(tmp_path_factory.mktemp("cache")) as launch:
        yield launch


@pytest.fixture(scope="module")
def train(launch, tmp_path_factory):
    """train(count, folder, *overrides, **environment) -> processes of a training with two validations."""
    data = tmp_path_factory.mktemp("data")
    write_folder(data, images=4)
    write_folder(data, images=1, split="val", seed=1)
    values = [
        "optim.epsilon=1e-4", "train.keep=1", "eval.every=2", "eval.question_types=('identification_with_label',)",
        "eval.text_sources=({'name':'vqa','weight':1,'split':'val'},)", "eval.text_batches=1",
        "checkpoint.best_metric=text_loss", "checkpoint.best_mode=min", f"train.steps={STEPS}",
    ]  # fmt: skip

    def train(count, folder, *overrides, **environment):
        program = [str(ROOT / "tests" / "train_validating.py"), *command(data, folder, *values, *overrides)[2:]]
        roots = {n: {"arguments": [f"--config.data.root={data}/text{n}"]} for n in range(count)}
        return launch(count, program, different=roots, **environment)

    return train


def until_validating(processes):
    """-> what the first process printed."""
    said = ""
    for line in processes[0].stdout:
        if line == "validating\n":
            return said
        said += line
    raise AssertionError(ends(processes))


def run_json(folder):
    return json.loads((folder / "run.json").read_text())


@pytest.mark.slow
def test_the_scores_are_those_of_one_process_also_when_validation_is_stopped(train, tmp_path):
    whole, folder = tmp_path / "one", tmp_path / "two"
    ((status, out, err),) = ends(train(1, whole))
    assert status == 0 and out.count("Validation at step") == 2, err

    two = train(2, folder, "mesh.fsdp=2", WAITS="2")  # every parameter is split between the processes
    until_validating(two)
    two[1].send_signal(signal.SIGTERM)
    began = time.monotonic()
    first, second = ends(two, 60)
    assert (first[0], second[0]) == (0, 0) and time.monotonic() - began < 30, (first, second)
    assert first[1].endswith("Preempted: step 2 is saved already; run the same command to go on\n"), first
    assert "Preempted" not in second[1]
    assert run_json(folder)["status"] == "preempted" and checkpoint.steps_in(folder / "checkpoints") == [2]

    two = train(2, folder, "mesh.fsdp=2", WAITS="4")
    said = until_validating(two)
    assert "Validation at step 2 " in said  # what was stopped is made up for
    two[1].kill()
    began = time.monotonic()
    first, _ = ends(two, 60)
    assert first[0] != 0 and time.monotonic() - began < 60, first
    last = first[2].splitlines()[-1]
    assert "process 1 (host " in last and " was lost" in last and "Traceback" not in first[2], first

    first, second = ends(train(2, folder, "mesh.fsdp=2", WAITS="2"))  # nothing that is finished is done again
    assert (first[0], second[0]) == (0, 0), (first, second)
    assert "Validation at step 4 " in first[1] and "Validation at step 2 " not in first[1] and "Validation" not in second[1]
    rows, wanted = read_metrics(folder), read_metrics(whole)
    assert [row.keys() for row in rows] == [row.keys() for row in wanted] and len(rows) == 2
    for row, right in zip(rows, wanted, strict=True):
        for name in {name for name in row if name.startswith("val_")} | {"loss", "lr"}:
            np.testing.assert_allclose(row[name], right[name], rtol=1e-4, err_msg=name)
        assert 0 < row["val_text_loss"] < 8 and 0 <= row["val_part_accuracy"] <= 1
    ours, theirs = checkpoint.read_best(folder), checkpoint.read_best(whole)
    assert ours == {**theirs, "value": pytest.approx(theirs["value"], rel=1e-4)} and ours["step"] == 2
    assert checkpoint.steps_in(folder / "checkpoints") == checkpoint.steps_in(whole / "checkpoints") == [2, 4]


def test_parameters_come_whole_to_the_first_process(launch):
    """Two processes of two devices each, in a mesh that mixes them."""
    for status, _, err in ends(launch(2, ["-c", SHARDED], XLA_FLAGS="--xla_force_host_platform_device_count=2")):
        assert status == 0, err
