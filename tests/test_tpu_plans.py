"""The table of plans: every cell once, written as it ends, and a page that says what is missing."""

import json

import pytest

from plum_jax import plan
from plum_jax.errors import UserError
from tools import tpu_plans

GIB = 1 << 30
MEMORY = dict(parameters=3 * GIB, optimizer=GIB, inputs=GIB // 2, activations=GIB, temporaries=2 * GIB, results=0, program=0)
FOUND = {
    "fits": True, "mesh": {"data": 1, "fsdp": 16, "tensor": 1}, "overrides": ["mesh.fsdp=16", "data.micro_batches=8"],
    "versions": {"python": "3.11", "jax": "0.10", "libtpu": "0.0.52"},
}  # fmt: skip
ABOUT = {
    "fits": True, "compiled": True, "seconds": 61.5, "cpu_seconds": 70.0,
    "memory": {**MEMORY, "total": 8 * GIB, "device": 16 * GIB, "margin": 0.5},
    "flops": {"model": 3e15, "executed": 4e15, "per_device": 2.5e14}, "memory_traffic": 5e12,
    "collectives": {"all-gather": {"count": 40, "bytes": 1e11, "moved": 9e10}},
    "estimate": {"seconds": {}, "step_seconds": 6.1, "bound": "memory", "mfu": 0.156, "per_second": 21.0, "unit": "images"},
    "whole_parameters_gathered": [],
}  # fmt: skip


@pytest.fixture
def asked(monkeypatch):
    """The cells that were compiled; 7b/v4-128/train cannot be."""
    cells = []

    def run(cell):
        cells.append(cell)
        return None if cell == "7b/v4-128/train" else FOUND | {"programs": {cell.split("/")[2]: ABOUT}}

    monkeypatch.setattr(tpu_plans, "run", run)
    return cells


def test_training_steps_come_first_and_all_slices_are_there():
    trains = tpu_plans.CELLS[:12]
    assert {cell.split("/")[2] for cell in trains} == {"train"} and len(tpu_plans.CELLS) == 48
    assert {cell.split("/")[1] for cell in trains} == {"v5e-16", "v5e-64", "v5e-256", "v5p-64", "v6e-64", "v4-128"}


def test_a_run_goes_on_where_it_was(asked, tmp_path, capsys):
    assert tpu_plans.main(["--out", str(tmp_path)]) == 1  # one cell failed
    assert asked == tpu_plans.CELLS
    done = json.loads((tmp_path / "tpu_plans.json").read_text())
    assert done.keys() == {*tpu_plans.CELLS} - {"7b/v4-128/train"}
    page = (tmp_path / "tpu_plans.md").read_text()
    assert "Not compiled yet: 7b/v4-128/train." in page and "python -m tools.tpu_plans --out benchmarks" in page
    line = "| 13b | v5e-16 | train | 1 x 16 x 1, 8 | 3.00 | 1.00 | 1.00 | 2.00 | 8.00 of 16 | 50%, fits | 0 | 250 | 5e+03 |"
    assert line in page
    assert "Not compiled yet: 7b/v4-128/train, every cell of masks." in tpu_plans.page(
        {cell: found for cell, found in done.items() if not cell.endswith("masks")}
    )
    asked.clear()
    tpu_plans.main(["--out", str(tmp_path)])
    assert asked == ["7b/v4-128/train"]
    asked.clear()
    assert tpu_plans.main(["--out", str(tmp_path), "--only", "13b/v5e-16/masks"]) == 0 and asked == ["13b/v5e-16/masks"]
    assert tpu_plans.main(["--out", str(tmp_path), "--table"]) == 0 and len(asked) == 1
    assert "47 of 48 cells" in capsys.readouterr().out


def test_a_cell_that_was_not_compiled_has_no_figures_of_work():
    about = ABOUT | {"fits": False, "compiled": False, "seconds": None}
    about["memory"] = about["memory"] | {"activations": None, "temporaries": None, "margin": -0.6}
    line = tpu_plans.row("13b/v5e-16/decode", FOUND | {"programs": {"decode": about}})
    assert line[3] == "1 x 16 x 1, 64 rows" and len(line) == len(tpu_plans.HEAD)
    assert line[9] == "-60%, no" and set(line[10:]) == {""}


def test_the_cells_are_what_the_command_takes(monkeypatch):
    """Every option is parsed by `plum plan` itself."""
    seen = []
    monkeypatch.setattr(plan, "plan", lambda args, overrides, names, stream: seen.append((args, overrides)) or {"fits": True})
    for cell in tpu_plans.CELLS:
        assert plan.main([*tpu_plans.command(cell), "--json"]) == 0
    assert {args.topology for args, _ in seen} == set(tpu_plans.SLICES)
    assert all(any(x.startswith("mesh.fsdp=") for x in overrides) for _, overrides in seen)


def test_wrong_cells_and_folders_are_named(tmp_path):
    with pytest.raises(UserError, match="'70b/v5e-16/train' is no cell"):
        tpu_plans.main(["--out", str(tmp_path), "--only", "70b/v5e-16/train"])
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="file: is not a folder; give another output folder"):
        tpu_plans.main(["--out", str(tmp_path / "file")])
