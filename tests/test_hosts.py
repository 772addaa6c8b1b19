"""The account of a run over several hosts: what they went through together is what one host goes through."""

import itertools
import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from fixtures_partonomy import write_folder
from source_fixtures import FakeSource, mixture_config

from data_pipelines.account import Account
from data_pipelines.mixture import Mixture
from data_pipelines.pipeline import batches
from data_pipelines.tokenizer import load_tokenizer

ROOT = Path(__file__).resolve().parent.parent
PROGRAM = """
import sys
from plum_jax.processes import start_processes, sum_over_hosts
start_processes()
import jax
from data_pipelines.account import Account
account = Account()
account.of("refer", "refcoco").update(draws=3 + jax.process_index(), spans=2)
for number in range(jax.process_index() * 2):
    account.skip("vqa", "vqa", f"k{number} ü", "image", "x" * 100)
total = sum_over_hosts(account)
print("TOTAL " + total.to_json(), flush=True)
"""


def test_json():
    account = Account()
    account.of("refer", "refcoco").update(draws=3, spans=2)
    for number in range(5):
        account.skip("vqa", "vqa", f"k{number}", "image", "gone")
    again = Account.from_json(account.to_json())
    assert again == account and again.summary() == account.summary() and again.total("skipped:") == 5
    assert Account.from_json(Account().to_json()) == Account()


@pytest.mark.parametrize("mixed", [True, False])
def test_hosts_add_up(tmp_path, mixed):
    tokenizer = load_tokenizer("tiny")
    config = mixture_config(global_batch=8, grounded=(1, 2))
    write_folder(tmp_path)
    fakes = [FakeSource(tmp_path, dataset=name) for name in ("refcoco", "vqa")]
    if not mixed:
        config.data.update(sources=(), folder=str(tmp_path))

    def streams(hosts):
        for host in range(hosts):
            source = Mixture(config, tokenizer, fakes, [1, 1]) if mixed else None
            stream = batches(config, tokenizer, host=host, hosts=hosts, source=source)
            list(itertools.islice(stream, 3))
            yield stream.account

    (whole,) = streams(1)
    total = Account()
    for account in streams(4):
        total.add(Account.from_json(account.to_json()))
    assert total.counts == whole.counts and whole.total("draws") == 24


def test_processes_meet():
    """Two real processes; each of them has the sum, whatever the lengths of their texts."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        address = f"localhost:{free.getsockname()[1]}"
    environment = {
        **os.environ, "XLA_FLAGS": "", "JAX_PLATFORMS": "cpu", "JAX_NUM_PROCESSES": "2", "JAX_COORDINATOR_ADDRESS": address,
        "PYTHONPATH": str(ROOT),
    }  # fmt: skip
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", PROGRAM],
            env={**environment, "JAX_PROCESS_ID": str(number)}, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )
        for number in range(2)
    ]  # fmt: skip
    said = [process.communicate(timeout=120) for process in processes]
    assert [process.returncode for process in processes] == [0, 0], said
    totals = [next(line for line in out.splitlines() if line.startswith("TOTAL "))[6:] for out, _ in said]
    assert totals[0] == totals[1]
    counts = {tuple(about): counter for *about, counter in json.loads(totals[0])["counts"]}
    assert counts == {("refer", "refcoco"): {"draws": 7, "spans": 4}, ("vqa", "vqa"): {"skipped: image": 2}}
    assert json.loads(totals[0])["messages"] == [["vqa", "image", [f"k{n} ü: {'x' * 100}" for n in range(2)]]]
