"""launch/tpu_vm.sh: exact commands from dry runs, and a stand-in for gcloud."""

import os
import shlex
import shutil
import time

import pytest
from test_launch_pods import LAUNCH, NAMED, RUN, call, dry_run, write_tool

QUEUED = ["gcloud", "compute", "tpus", "queued-resources"]
VM = ["gcloud", "compute", "tpus", "tpu-vm"]


@pytest.mark.parametrize(
    ("type_", "version"),
    [
        ("v5litepod-256", "v2-alpha-tpuv5-lite"),
        ("v6e-64", "v2-alpha-tpuv6e"),
        ("v5p-128", "v2-alpha-tpuv5"),
        ("v4-128", "tpu-ubuntu2204-base"),
    ],
)
def test_tpu_create_asks_for_a_queued_resource(type_, version):
    command, *_ = dry_run("tpu_vm.sh", "create", "--dry-run", *NAMED, "--type", type_, "--spot")
    assert command == [
        *[*QUEUED, "create", "pod", "--zone=z-1", "--node-id=pod"],
        *[f"--accelerator-type={type_}", f"--runtime-version={version}", "--spot"],
    ]


def test_tpu_install_copies_the_commit_to_all_workers():
    archive, copy, install = dry_run("tpu_vm.sh", "install", "--dry-run", *NAMED)
    assert archive[:2] == ["git", "archive"]
    assert archive[-1] == "HEAD"
    packed = archive[-2].removeprefix("--output=")
    assert copy == [*VM, "scp", packed, "pod:jepa_jax.tar.gz", "--zone=z-1", "--worker=all"]
    assert install[:7] == [*VM, "ssh", "pod", "--zone=z-1"]
    assert install[7] == "--worker=all"
    assert "bash launch/local.sh --accelerator tpu --install" in install[8]


def test_tpu_run_starts_train_on_all_workers_and_stays_when_ssh_leaves():
    (command,) = dry_run("tpu_vm.sh", "run", "--dry-run", *NAMED, "--project", "p", *RUN)
    assert command[:-1] == [*VM, "ssh", "pod", "--zone=z-1", "--project=p", "--worker=all"]
    remote = command[-1].removeprefix("--command=")
    words = shlex.split(remote)
    assert words[words.index("jepa_jax.train") + 1 :][: 2 + len(RUN)] == [
        "--distributed",
        "auto",
        *RUN,
    ]
    assert "nohup flock -n train.lock bash launch/keep_running.sh" in remote


def test_tpu_logs_and_delete():
    (logs,) = dry_run("tpu_vm.sh", "logs", "--dry-run", *NAMED)
    assert logs[5:] == [
        *["pod", "--zone=z-1", "--worker=0"],
        "--command=tail -n 100 -F jepa_jax/train.log",
    ]
    (delete,) = dry_run("tpu_vm.sh", "delete", "--dry-run", *NAMED)
    assert delete == [*QUEUED, "delete", "pod", "--zone=z-1", "--quiet", "--force"]


# Answers from a file: each line is "state of the request/state of the slice", one look a line.
FAKE_GCLOUD = """case "$*" in
  *"queued-resources list"*)
    read -r seen <"$STATES"; [ "$seen" != BROKEN ] || exit 1
    echo "${seen%/*}" ;;
  *"tpu-vm list"*)
    { read -r seen; rest="$(cat)"; } <"$STATES"
    echo "$rest" >"$STATES"; echo "${seen#*/}" ;;
  *"test -e jepa_jax"*) echo look >>"$CALLS"; exit "$NOT_INSTALLED" ;;
  *) echo "$4" >>"$CALLS" ;;
esac
"""
MAKE_ANEW = ["delete", "create"]
INSTALL = ["scp", "ssh"]
RUNS = ["ssh"]


def resume(tmp_path, states, *, installed=True):
    """Resumes a slice that is seen in these states; returns the script, and gcloud's verbs."""
    write_tool(tmp_path / "bin", "gcloud", FAKE_GCLOUD)
    (tmp_path / "states").write_text("\n".join(states) + "\n")
    calls = tmp_path / "calls"
    done = call(
        "tpu_vm.sh",
        *["resume", *NAMED, "--type", "v5litepod-16", *RUN],
        PATH=f"{tmp_path / 'bin'}:{os.environ['PATH']}",
        CALLS=str(calls),
        STATES=str(tmp_path / "states"),
        NOT_INSTALLED=str(int(not installed)),
        POLL_SECONDS="0",
    )
    return done, calls.read_text().split() if calls.exists() else []


@pytest.mark.parametrize(
    ("states", "installed", "does"),
    [
        (["ACTIVE/READY"], True, ["look", *RUNS]),
        (["ACTIVE/READY"], False, ["look", *INSTALL, *RUNS]),
        (["WAITING_FOR_RESOURCES/", "PROVISIONING/CREATING", "ACTIVE/READY"], False,
         ["look", *INSTALL, *RUNS]),
        (["ACTIVE/REPAIRING", "ACTIVE/RESTARTING", "ACTIVE/READY"], True, ["look", *RUNS]),
        (["SUSPENDING/PREEMPTED", "SUSPENDED/", "ACTIVE/READY"], False,
         [*MAKE_ANEW, "look", *INSTALL, *RUNS]),
        (["ACTIVE/PREEMPTED", "ACTIVE/READY"], False,
         [*MAKE_ANEW, "look", *INSTALL, *RUNS]),
        (["/", "ACTIVE/READY"], False, ["create", "look", *INSTALL, *RUNS]),
        (["SUSPENDED/", "SUSPENDED/", "ACTIVE/READY"], False,
         [*MAKE_ANEW, *MAKE_ANEW, "look", *INSTALL, *RUNS]),
    ],
)  # fmt: skip
def test_tpu_resume_does_what_the_state_of_the_slice_needs(tmp_path, states, installed, does):
    done, called = resume(tmp_path, states, installed=installed)
    assert done.returncode == 0, done.stderr
    assert called == does


@pytest.mark.parametrize("states", [["BROKEN"], ["FAILED/"], ["ACTIVE/STOPPED"]])
def test_tpu_resume_changes_nothing_when_it_does_not_know(tmp_path, states):
    done, called = resume(tmp_path, states)
    assert done.returncode != 0
    assert called == []


def test_tpu_resume_prints_the_longest_way():
    commands = dry_run("tpu_vm.sh", "resume", "--dry-run", *NAMED, "--type", "v5litepod-16", *RUN)
    verbs = [" ".join(words[3:5]) if words[0] == "gcloud" else words[0] for words in commands]
    look = ["queued-resources list", "tpu-vm list"]
    assert verbs == [
        *[*look, "queued-resources delete", "queued-resources create", *look, "tpu-vm ssh"],
        *["git", "tpu-vm scp", "tpu-vm ssh", "tpu-vm ssh"],
    ]


@pytest.fixture
def worker(tmp_path):
    """Runs here what tpu_vm.sh sends to the workers, with `tmp_path` for their home."""
    if not shutil.which("flock"):
        pytest.skip("flock is a Linux tool")
    checkout = tmp_path / "jepa_jax"
    shutil.copytree(LAUNCH, checkout / "launch")
    write_tool(
        tmp_path / "bin",
        "gcloud",
        'for last; do :; done; cd "$WORKER" && exec bash -c "${last#--command=}"\n',
    )

    def call_worker(verb, train):
        write_tool(checkout / ".venv" / "bin", "python", train)
        return call(
            *["tpu_vm.sh", verb, *NAMED, *(RUN if verb == "run" else [])],
            PATH=f"{tmp_path / 'bin'}:{os.environ['PATH']}",
            WORKER=str(tmp_path),
        )

    (checkout / ".venv" / "bin").mkdir(parents=True)
    (checkout / ".installed").touch()
    return call_worker


def test_a_worker_trains_again_after_75_and_says_if_it_cannot_start(tmp_path, worker):
    count = (
        'echo "run $*" >>runs; n="$(grep -c . runs)"; [ "$n" -lt 3 ] && exit 75; sleep 2; exit 0'
    )
    done = worker("run", count)
    assert done.returncode == 0, done.stderr
    runs = tmp_path / "jepa_jax" / "runs"
    deadline = time.monotonic() + 30
    while not runs.exists() or runs.read_text().count("\n") < 3:
        assert time.monotonic() < deadline
        time.sleep(0.05)
    again = worker("run", count)
    assert again.returncode == 2
    assert "error: a run is in progress" in again.stderr
    (tmp_path / "jepa_jax" / ".installed").unlink()
    absent = worker("run", count)
    assert absent.returncode == 2
    assert "error: not installed" in absent.stderr
