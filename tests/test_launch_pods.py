"""The scripts for GPUs and clusters, and mistakes in all: dry runs, and fake tools."""

import os
import pathlib
import re
import shutil
import signal
import subprocess
import sys
import time

import pytest
import yaml
from conftest import REPOSITORY

LAUNCH = REPOSITORY / "launch"
NAMED = ["--name", "pod", "--zone", "z-1"]
RUN = ["--config", "configs/in1k_vith14_ep300.py", "--workdir", "/shared/a run"]


def write_tool(folder: pathlib.Path, name: str, text: str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / name).write_text("#!/usr/bin/env bash\n" + text)
    (folder / name).chmod(0o755)


def call(script, *arguments, **environment):
    return subprocess.run(
        ["bash", str(LAUNCH / script), *arguments],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )


def dry_run(script, *arguments):
    """The commands that a dry run prints, as lists of words."""
    done = call(script, *arguments)
    assert done.returncode == 0, done.stderr
    commands = re.split(r"^\+ ", done.stderr, flags=re.M)[1:]
    return [unquote(command) for command in commands]


def unquote(command):
    """Words of bash's `printf %q`, which writes line ends as $'...\\n...'."""
    done = subprocess.run(
        ["bash", "-c", f"printf '%s\\0' {command.splitlines()[0]}"],
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stdout.split("\0")[:-1]


@pytest.mark.parametrize(
    ("script", "arguments", "says"),
    [
        ("tpu_vm.sh", [], "no verb: must be create, install"),
        ("tpu_vm.sh", ["create", "--zone", "z"], "--name: missing"),
        ("tpu_vm.sh", ["create", "--name", "a"], "--zone: missing"),
        ("tpu_vm.sh", ["create", *NAMED], "--type: missing"),
        ("tpu_vm.sh", ["logs", *NAMED, "--x"], "logs: unknown argument --x"),
        ("tpu_vm.sh", ["run", *NAMED, "--workdir", "w"], "run: --config is missing"),
        ("tpu_vm.sh", ["run", *NAMED, "--config=c"], "run: --workdir is missing"),
        ("local.sh", ["--accelerator", "abacus"], "--accelerator abacus: must be cuda13"),
    ],
)
def test_a_mistake_gives_one_line_and_code_2(script, arguments, says):
    done = call(script, *arguments, "--dry-run")
    assert done.returncode == 2
    assert done.stderr.startswith(f"error: {says}")
    assert done.stderr.count("\n") == 1


def test_local_installs_for_the_gpus_looks_at_them_and_trains():
    *make, look, train = dry_run("local.sh", "--dry-run", "--accelerator=cuda13", *RUN)
    assert make[-1][-3:] == ["-r", "requirements.txt", "jax[cuda13]"]
    assert look[-1] == "gpu"
    assert train == [".venv/bin/python", "-m", "jepa_jax.train", *RUN]
    kept = dry_run("local.sh", "--dry-run", "--accelerator=cpu", "--keep-running", *RUN)[-1]
    assert kept == ["bash", "launch/keep_running.sh", *train]


def test_slurm_runs_one_process_a_task():
    devices, command = dry_run("slurm.sbatch", "--dry-run", *RUN)
    assert devices == ["export", "JAX_LOCAL_DEVICE_IDS=0,1,2,3,4,5,6,7"]
    assert command == [
        *["srun", "--kill-on-bad-exit=0", ".venv/bin/python", "-m", "jepa_jax.train"],
        *["--distributed", "auto", *RUN],
    ]
    header = (LAUNCH / "slurm.sbatch").read_text()
    assert re.search(r"^#SBATCH --signal=TERM@\d+$", header, re.M)
    assert re.search(r"^#SBATCH --requeue$", header, re.M)


def in_a_job(tmp_path, *arguments, code=0, **slurm):
    """Runs slurm.sbatch as a job of two nodes with 4 GPUs; returns it, and what it called."""
    write_tool(
        tmp_path / "bin",
        "srun",
        f'echo "devices=${{JAX_LOCAL_DEVICE_IDS-all}} srun $*" >>"$CALLS"; exit {code}\n',
    )
    write_tool(tmp_path / "bin", "scontrol", 'echo "scontrol $*" >>"$CALLS"\n')
    shutil.copytree(tmp_path / "bin", tmp_path / ".venv" / "bin")
    write_tool(tmp_path / ".venv" / "bin", "python", "")
    calls = tmp_path / "calls"
    done = call(
        "slurm.sbatch",
        *arguments,
        **{
            "PATH": f"{tmp_path / 'bin'}:{os.environ['PATH']}",
            "CALLS": str(calls),
            "SLURM_JOB_ID": "7",
            "SLURM_SUBMIT_DIR": str(tmp_path),
            "SLURM_NTASKS_PER_NODE": "1",
            "SLURM_GPUS_ON_NODE": "4",
            **slurm,
        },
    )
    return done, calls.read_text().splitlines() if calls.exists() else []


def pass_by(folder, seconds):
    """A clock in `folder / "bin"` on which so many seconds pass by between two looks."""
    clock = folder / "clock"
    clock.write_text("0")
    script = f'now=$(($(cat {clock}) + {seconds}))\necho "$now" >{clock}; echo "$now"\n'
    write_tool(folder / "bin", "date", script)


@pytest.mark.parametrize(
    ("code", "seconds", "requeued"),
    [(75, 1, True), (0, 400, False), (3, 400, False), (134, 400, True), (134, 200, False)],
)
def test_slurm_requeues_what_was_preempted_or_has_lost_a_process(tmp_path, code, seconds, requeued):
    pass_by(tmp_path, seconds)
    done, calls = in_a_job(tmp_path, *RUN, code=code)
    assert done.returncode == code, done.stderr
    assert ("scontrol requeue 7" in calls) == requeued


@pytest.mark.parametrize(("processes", "devices"), [("1", "0,1,2,3"), ("4", "all")])
def test_slurm_processes_have_all_gpus_of_their_node_between_them(tmp_path, processes, devices):
    """JAX gives a Slurm task the one GPU of its number on the node, unless it is told which."""
    done, calls = in_a_job(tmp_path, *RUN, SLURM_NTASKS_PER_NODE=processes)
    assert done.returncode == 0, done.stderr
    assert calls[0].startswith(f"devices={devices} srun ")


@pytest.mark.parametrize(("given", "taken"), [({}, "0"), ({"JAX_LOCAL_DEVICE_IDS": "0,1"}, "0,1")])
def test_jax_takes_one_gpu_a_slurm_task_unless_told_which(given, taken):
    """Why slurm.sbatch tells it; a JAX that does otherwise needs another slurm.sbatch."""
    program = (
        "import jax; from jepa_jax.training.processes import join; join('auto');"
        "print(jax._src.xla_bridge.CUDA_VISIBLE_DEVICES.value)"
    )
    slurm = {"JOB_ID": str(os.getpid()), "STEP_NODELIST": "localhost", "NTASKS": "1"}
    slurm |= {"PROCID": "0", "LOCALID": "0"}
    done = subprocess.run(
        [sys.executable, "-c", program],
        env={**os.environ, **{f"SLURM_{name}": value for name, value in slurm.items()}, **given},
        capture_output=True,
        text=True,
        check=True,
        timeout=120,
    )
    assert done.stdout.split() == [taken]


def test_slurm_says_how_and_what_is_wrong(tmp_path):
    done = call("slurm.sbatch", "--help")
    assert done.returncode == 0
    assert done.stdout.startswith("usage: sbatch ")
    no_gpus = {"SLURM_GPUS_ON_NODE": ""}
    for number, (arguments, slurm, says) in enumerate(
        [
            (RUN[2:], {}, "--config is missing"),
            (RUN[:2], {}, "--workdir is missing"),
            (RUN, no_gpus, "this job has no GPUs"),
            (RUN, {"SLURM_JOB_ID": ""}, "not a Slurm job"),
        ]
    ):
        done, calls = in_a_job(tmp_path / str(number), *arguments, **slurm)
        assert done.returncode == 2
        assert done.stderr.startswith(f"error: {says}")
        assert done.stderr.count("\n") == 1
        assert calls == []


def test_keep_running_repeats_what_was_aborted_after_a_while(tmp_path):
    """JAX aborts a process when another one is lost; what aborts at once would do so for ever."""
    pass_by(tmp_path, 200)
    count = tmp_path / "count"
    path = f"{tmp_path / 'bin'}:{os.environ['PATH']}"
    script = 'echo x >>"$0"; exit 134'
    done = call("keep_running.sh", "bash", "-c", script, str(count), PATH=path)
    assert (done.returncode, count.read_text().count("x")) == (134, 1)
    pass_by(tmp_path, 400)
    script = 'echo x >>"$0"; case "$(wc -l <"$0")" in *4) exit 3 ;; *) exit 134 ;; esac'
    done = call("keep_running.sh", "bash", "-c", script, str(count), PATH=path)
    assert (done.returncode, count.read_text().count("x")) == (3, 4)


def test_keep_running_repeats_what_was_preempted_and_nothing_else(tmp_path):
    count = tmp_path / "count"
    script = 'echo x >>"$0"; case "$(wc -l <"$0")" in *1|*2) exit 75 ;; *) exit 3 ;; esac'
    done = call("keep_running.sh", "bash", "-c", script, str(count))
    assert done.returncode == 3
    assert count.read_text().count("x") == 3


def test_keep_running_passes_a_signal_on_and_waits_for_the_checkpoint(tmp_path):
    saved = tmp_path / "saved"
    script = (
        f'trap "sleep 0.5; echo x >>{saved}; exit 75" TERM; echo up; while :; do sleep 0.1; done'
    )
    process = subprocess.Popen(
        ["bash", str(LAUNCH / "keep_running.sh"), "bash", "-c", script],
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout.readline() == "up\n"
    time.sleep(0.1)
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=20) == 75
    assert saved.read_text() == "x\n"  # once: it was not run again


# Like training in one process: the first signal is noted, and a second one acts as usual.
SAVES_AFTER_ONE_SIGNAL = """
import signal, sys, time
came = []
def note(number, frame):
    came.append(number)
    for each in (signal.SIGTERM, signal.SIGINT):
        signal.signal(each, signal.SIG_DFL)
for each in (signal.SIGTERM, signal.SIGINT):
    signal.signal(each, note)
print("up", flush=True)
while not came:
    time.sleep(0.02)
time.sleep(0.5)
print("saved", flush=True)
sys.exit(75)
"""


def test_ctrl_c_reaches_training_once_so_that_it_saves():
    process = subprocess.Popen(
        ["bash", str(LAUNCH / "keep_running.sh"), sys.executable, "-c", SAVES_AFTER_ONE_SIGNAL],
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
        # What runs in the background of a shell without job control, as this suite may, ignores
        # Ctrl-C; so do its children, and a shell among them can't do otherwise.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    assert process.stdout.readline() == "up\n"
    time.sleep(0.2)
    os.killpg(process.pid, signal.SIGINT)  # a terminal sends it to the whole group
    assert process.wait(timeout=20) == 75
    assert process.stdout.read() == "saved\n"


def test_jobset_is_complete_and_names_what_exists():
    jobset = yaml.safe_load((LAUNCH / "gke_jobset.yaml").read_text())
    assert jobset["apiVersion"] == "jobset.x-k8s.io/v1alpha2"
    (slices,) = jobset["spec"]["replicatedJobs"]
    job = slices["template"]["spec"]
    rows, columns = map(
        int, job["template"]["spec"]["nodeSelector"]["cloud.google.com/gke-tpu-topology"].split("x")
    )
    (container,) = job["template"]["spec"]["containers"]
    chips = container["resources"]["limits"]["google.com/tpu"]
    assert job["parallelism"] == job["completions"] == rows * columns // chips
    assert job["backoffLimit"] == 0
    (rule,) = job["podFailurePolicy"]["rules"]
    assert rule["onExitCodes"]["values"] == [2, 3]  # 75 restarts
    assert rule["onExitCodes"]["containerName"] == container["name"]
    arguments = dict(argument.removeprefix("--").split("=") for argument in container["args"])
    assert arguments["distributed"] == "auto"
    assert (REPOSITORY / arguments["config"]).exists()
    mounts = {mount["name"] for mount in container["volumeMounts"]}
    assert mounts == {volume["name"] for volume in job["template"]["spec"]["volumes"]}


def test_the_image_has_what_train_needs():
    lines = (LAUNCH / "Dockerfile").read_text().splitlines()
    copied = [line.split()[1] for line in lines if line.startswith("COPY")]
    assert copied == ["requirements.txt", "jepa_jax", "configs"]
    ignored = (REPOSITORY / ".dockerignore").read_text().split()
    assert all(f"!{name}" in ignored for name in copied)
    assert 'ENTRYPOINT ["python", "-m", "jepa_jax.train"]' in lines
