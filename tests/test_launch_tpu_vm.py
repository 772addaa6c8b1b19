"""tools/launch_tpu_vm.sh: real shells on workers that are folders, with a stand-in for gcloud."""

import shutil
import subprocess

import pytest
from launch_fixtures import NASTY, ROOT, SLICE, TPU, end, environment, fake_cloud, lines, wait_until, write


@pytest.fixture
def cloud(tmp_path):
    with fake_cloud(tmp_path) as cloud:
        yield cloud


def tpu(cloud, *words, status=0):
    found = subprocess.run([TPU, *words], env=environment(cloud), capture_output=True, text=True, timeout=120)
    assert found.returncode == status, found.stdout + found.stderr
    return found.stdout + found.stderr


def test_a_slice_from_nothing_to_deleted(cloud):
    tpu(cloud, "create", *SLICE, "--type=v5litepod-16", "--spot", "--project", "my-project")
    (created, _) = lines(cloud / "calls.jsonl")
    assert created[:4] == ["compute", "tpus", "queued-resources", "create"] and created[-1] == "--project=my-project"
    assert {"--accelerator-type=v5litepod-16", "--runtime-version=v2-alpha-tpuv5-lite", "--spot", "--node-id=plum"} <= {
        *created
    }
    tpu(cloud, "copy", *SLICE)
    for worker in ("worker0", "worker1"):
        for name in ("setup.py", "configs/tiny.py", "tools/run_stoppable.sh"):
            assert (cloud / worker / "plum_jax" / name).read_bytes() == (ROOT / name).read_bytes()
        assert not (cloud / worker / "plum_jax" / ".git").exists()
    tpu(cloud, "install", *SLICE)
    assert "--constraint constraints.txt --editable .[tpu,gcs]" in (cloud / "worker1" / "installed").read_text()
    assert "NONE" in tpu(cloud, "status", *SLICE)
    tpu(cloud, "run", *SLICE, "--", "plum", "train", *NASTY)
    wait_until(lambda: len(lines(cloud / "runs.jsonl")) == 2)
    assert sorted(lines(cloud / "runs.jsonl")) == [[w, "train", *NASTY] for w in ("worker0", "worker1")]
    for worker in (0, 1):
        assert (cloud / f"worker{worker}" / "jax").read_text() == f"2 {worker} 10.0.0.7:8482"
    assert tpu(cloud, "status", *SLICE) == "plum: ACTIVE\nRUNNING\nRUNNING\n"
    assert "is running; stop it first" in tpu(cloud, "run", *SLICE, "--", "plum", "train", status=3)
    assert "is running; stop it first" in tpu(cloud, "copy", *SLICE, status=3)
    assert tpu(cloud, "logs", *SLICE, "--worker=1", "--lines=1") == "first line\n"
    tpu(cloud, "stop", *SLICE)
    wait_until(lambda: len(list(cloud.glob("worker*/plum_run/exit"))) == 2)
    assert [path.read_text() for path in cloud.glob("worker*/plum_run/exit")] == ["75\n", "75\n"]
    assert "STOPPED" in tpu(cloud, "status", *SLICE)
    (cloud / "finish").write_text("0")
    tpu(cloud, "run", *SLICE, "--", "plum", "train")
    wait_until(lambda: len(list(cloud.glob("worker*/plum_run/exit"))) == 2)
    assert tpu(cloud, "status", *SLICE).endswith("EXIT 0\nEXIT 0\n")
    tpu(cloud, "delete", *SLICE)
    assert not list(cloud.glob("worker*")) and lines(cloud / "calls.jsonl")[-1][3:6] == ["delete", "plum", "--force"]
    assert "MISSING" in tpu(cloud, "status", *SLICE, status=255)


def test_keep_asks_again_for_a_slice_that_was_taken_away(cloud):
    (cloud / "states").write_text("MISSING WAITING_FOR_RESOURCES PROVISIONING")
    words = [TPU, "keep", *SLICE, "--type=v6e-64", "--poll=0", "--", "plum", "train", "--workdir=gs://bucket/run"]
    process = subprocess.Popen(words, env=environment(cloud), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    wait_until(lambda: len(lines(cloud / "runs.jsonl")) == 2 and len(list(cloud.glob("*/plum_run/pid"))) == 2)
    (cloud / "state").write_text("SUSPENDED")
    for pid in cloud.glob("worker*/plum_run/pid"):
        end(int(pid.read_text()))
    wait_until(lambda: len(lines(cloud / "runs.jsonl")) == 4)
    (cloud / "finish").write_text("0")
    out, _ = process.communicate(timeout=120)
    assert process.returncode == 0, out
    for words in ("plum: WAITING_FOR_RESOURCES", "SUSPENDED; asking for it again", "starting the program", "has finished"):
        assert words in out
    calls = [call[3] for call in lines(cloud / "calls.jsonl")]
    assert calls.count("create") == 2 and calls.count("delete") == 1 and calls.count("scp") == 2
    assert {"--runtime-version=v2-alpha-tpuv6e"} <= {word for call in lines(cloud / "calls.jsonl") for word in call}


def test_keep_gives_up_on_a_program_that_fails_again_and_again(cloud):
    (cloud / "finish").write_text("3")
    out = tpu(cloud, "keep", *SLICE, "--type=v4-8", "--poll=0", "--retries=1", "--", "plum", "train", status=2)
    assert "trying again (1 of 1)" in out and "failed 2 times" in out and "last line" in out
    assert len(lines(cloud / "runs.jsonl")) == 4


def test_keep_ends_where_gcloud_cannot_work(cloud):
    write(cloud.parent / "bin" / "gcloud", "#!/bin/bash\necho 'no active account' >&2; exit 1\n")
    out = tpu(cloud, "keep", *SLICE, "--type=v4-8", "--poll=0", "--", "plum", "train", status=2)
    assert "no active account" in out and "gcloud cannot tell the state of plum" in out


def bare_path(cloud):
    """A folder with what the script itself needs, and no gcloud."""
    bare = cloud.parent / "bare"
    bare.mkdir()
    for name in ("bash", "env", "tr", "dirname", "sed"):
        (bare / name).symlink_to(shutil.which(name))
    return bare


def test_without_gcloud_it_says_where_that_is_from(cloud):
    env = environment(cloud, PATH=str(bare_path(cloud)))
    found = subprocess.run([TPU, "status", *SLICE], env=env, capture_output=True, text=True)
    assert found.returncode == 2 and "gcloud is not installed; see https://" in found.stderr


@pytest.mark.parametrize(
    "words",
    [
        ["create", "--type=v5p-64", "--reserved", "--valid-until=6h", "--internal-ips", "--service-account=a@b.c"],
        ["install"], ["run", "--", "plum", "train", *NASTY], ["status"], ["logs", "--follow"], ["stop"], ["delete"],
    ],
    ids=lambda words: words[0],
)  # fmt: skip
def test_what_a_dry_run_prints_is_what_is_done(cloud, words):
    """Without gcloud on the path; then its output is run by a shell, with a gcloud that only notes what it is given."""
    bare = bare_path(cloud)
    command = [words[0], *SLICE, "--dry-run", *words[1:]]
    dry = subprocess.run([TPU, *command], env=environment(cloud, PATH=str(bare)), capture_output=True, text=True, check=True)
    assert not lines(cloud / "calls.jsonl") and dry.stdout.startswith("gcloud compute tpus ")
    write(
        cloud.parent / "bin" / "gcloud",
        '#!/bin/bash\nprintf "%s\\0" "$@" >> "$FAKE_CLOUD/noted"; echo >> "$FAKE_CLOUD/noted"\necho ACTIVE\n',
    )
    subprocess.run(["bash", "-c", dry.stdout], env=environment(cloud), check=True, capture_output=True)
    printed = (cloud / "noted").read_text()
    (cloud / "noted").unlink()
    tpu(cloud, *[word for word in command if word != "--dry-run"])
    assert (cloud / "noted").read_text() == printed


def test_a_dry_run_of_keep_shows_the_whole_way(cloud):
    out = tpu(cloud, "keep", *SLICE, "--type=v5litepod-16", "--dry-run", "--", "plum", "train")
    order = [
        "queued-resources create",
        "queued-resources describe",
        "tar -czf",
        "tpu-vm scp",
        "uv pip",
        "setsid",
        "has finished",
    ]
    assert [out.index(words) for words in order] == sorted(out.index(words) for words in order)
    assert not lines(cloud / "calls.jsonl")


@pytest.mark.parametrize(
    "words, message",
    [
        ([], "no command; give one of create copy install run"),
        (["start", *SLICE], "start is not a command"),
        (["create", "--zone=z"], "create needs --name=...; see --help"),
        (["create", "--name=plum"], "create needs --zone=..."),
        (["create", *SLICE], "create needs --type=..."),
        (["create", *SLICE, "--type=v5e-16"], "--type=v5e-16: gcloud calls it v5litepod-16; give that"),
        (["create", *SLICE, "--type=v7x-8"], "its software version is not known; give --runtime=VERSION"),
        (["create", *SLICE, "--type"], "--type needs a value"),
        (["create", *SLICE, "--type="], "--type is empty"),
        (["create", "--name=Plum", "--zone=z", "--type=v4-8"], "use small letters"),
        (["run", *SLICE], "run needs the program after --"),
        (["keep", *SLICE, "--type=v4-8", "--"], "keep needs the program after --"),
        (["run", "plum", *SLICE], "plum: one command at a time"),
        (["logs", *SLICE, "--lines=many"], "--lines=many is not a number"),
        (["logs", *SLICE, "--worker=x"], "neither a number nor all"),
        (["logs", *SLICE, "--wrong"], "--wrong is not an option"),
        (["logs", *SLICE, "--named=x"], "--named is not an option"),
    ],
)
def test_what_is_missing_is_said(cloud, words, message):
    out = (
        tpu(cloud, *words, "--dry-run", status=2) if "--" not in words else tpu(cloud, *words[:-1], "--dry-run", "--", status=2)
    )
    assert message in out and out.count("\n") == 1 and out.startswith("launch_tpu_vm.sh: error: ")
