"""Packing that is killed, refused, or runs out of disk."""

import dataclasses
import json
import pathlib
import subprocess
import sys
import threading
import time

import numpy as np
import pytest
import tensorflow_datasets as tfds
from conftest import REPOSITORY, as_module, run_module
from test_shards import contents, make_folder, opened, packed
from test_sources import TinyPictures, data_config

from jepa_jax.data import packing
from jepa_jax.data.__main__ import check_splits, pack_splits
from jepa_jax.data.decode import Pixels, read_whole
from jepa_jax.data.sources import array_source, open_source
from jepa_jax.data.sources import tfds as tfds_source
from jepa_jax.errors import BadDataError, StoppedRunError, UserError

# Forks a process for each step of packing that changes the disk, which kills itself before that
# step, and another one, which goes on; says at which steps the files then differ.
KILLS = """
import os, pathlib, signal, sys
from array_record.python import array_record_module as module
from jepa_jax.data.__main__ import pack_splits
folder, root = pathlib.Path(sys.argv[1]), pathlib.Path(sys.argv[2])

def kill_before(step):
    passed = 0
    def counted(call):
        def counts(*arguments, **options):
            nonlocal passed
            passed += 1
            if passed == step:
                os.kill(os.getpid(), signal.SIGKILL)
            return call(*arguments, **options)
        return counts
    for name in ("replace", "fsync", "mkdir", "unlink", "rmdir"):
        setattr(os, name, counted(getattr(os, name)))
    Writer = module.ArrayRecordWriter
    class Killing:
        def __init__(self, *arguments):
            writer = Writer(*arguments)
            self.write, self.close = counted(writer.write), counted(writer.close)
    module.ArrayRecordWriter = Killing

def contents(root):
    return {str(p.relative_to(root)): p.read_bytes() for p in root.rglob("*") if p.is_file()}

def run(destination, step):
    pid = os.fork()
    if pid == 0:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
        kill_before(step)
        options = {"splits": ["train"], "images_per_shard": 4, "tfds_dir": None}
        pack_splits(str(folder), destination, **options)
        os._exit(0)
    return os.waitpid(pid, 0)[1]

assert run(root / "whole", None) == 0
want, step, different = contents(root / "whole"), 0, []
while True:
    step += 1
    destination = root / str(step)
    if run(destination, step) == 0:
        break
    if contents(destination) == want and step < 5:
        raise SystemExit("not killed")
    ended = run(destination, None)
    if ended or contents(destination) != want:
        different.append((step, ended))
print(step, different)
"""


def test_a_kill_before_any_step_leaves_what_the_next_start_completes(tmp_path):
    folder = make_folder(tmp_path / "images", count=14, kinds=["PNG"])
    bad = sorted((folder / "train").rglob("*.*"))[2]
    bad.write_bytes(b"no image")
    (tmp_path / "out").mkdir()
    done = subprocess.run(
        [*as_module(), "-c", KILLS, str(folder), str(tmp_path / "out")],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    steps, different = done.stdout.split(maxsplit=1)
    assert int(steps) > 40  # 11 images, 3 shards
    assert different.strip() == "[]"


def test_a_killed_command_goes_on_and_says_what_it_did(tmp_path):
    folder = make_folder(tmp_path / "images", count=80)
    command = ["pack", str(folder), str(tmp_path / "shards"), "--images-per-shard", "2"]
    running = subprocess.Popen(
        [sys.executable, "-m", "jepa_jax.data", *command], cwd=REPOSITORY, stderr=subprocess.DEVNULL
    )
    first = tmp_path / "shards" / "train" / "00003-of-00030.array_record"
    while running.poll() is None and not first.exists():
        time.sleep(0.001)
    running.kill()
    assert running.wait() == -9
    kept = first.stat()
    done = run_module("data", *command)
    assert done.returncode == 0, done.stderr
    assert "packing train" in done.stderr
    said = json.loads(done.stdout)
    assert said["train"]["images"] == 60
    assert said["test"]["shards"] == 10
    assert (first.stat().st_ino, first.stat().st_mtime_ns) == (kept.st_ino, kept.st_mtime_ns)
    packed(folder, tmp_path / "whole", 2)
    assert contents(tmp_path / "shards") == contents(tmp_path / "whole")


def test_a_destination_of_something_else_is_refused(tmp_path):
    folder = make_folder(tmp_path / "images", count=8)
    with pytest.raises(UserError, match=r"images/test: is no packed images"):
        packed(folder, folder)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").write_text("")
    with pytest.raises(UserError, match=r"thesis.tex: is no packed images"):
        packed(folder, tmp_path / "mine")
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"file: is no folder"):
        packed(folder, tmp_path / "file")
    assert (tmp_path / "mine" / "thesis.tex").exists()


def test_what_was_begun_from_another_source_is_refused(tmp_path, monkeypatch):
    folder, other = (make_folder(tmp_path / name, count=12) for name in ("images", "other"))
    interrupt(monkeypatch, after=2)
    with pytest.raises(KeyboardInterrupt):
        packed(folder, tmp_path / "shards", 4)
    monkeypatch.undo()
    with pytest.raises(UserError, match=r"train: was begun with path .*images', not .*other'"):
        packed(other, tmp_path / "shards", 4)
    with pytest.raises(UserError, match=r"begun with images per shard 4, not 5; give the same"):
        packed(folder, tmp_path / "shards", 5)
    (tmp_path / "images" / "train" / "ant" / "new.png").write_bytes(b"")
    with pytest.raises(UserError, match=r"was begun with"):
        packed(folder, tmp_path / "shards", 4)
    (tmp_path / "images" / "train" / "ant" / "new.png").unlink()
    packed(folder, tmp_path / "shards", 4)
    with pytest.raises(UserError, match=r"was begun with"):  # also when it is finished
        packed(other, tmp_path / "shards", 4)


def interrupt(monkeypatch, after):
    """Stops packing before a shard is noted."""
    write, calls = packing._write_shard, []

    def counted(*arguments):
        calls.append(arguments)
        if len(calls) > after:
            raise KeyboardInterrupt
        return write(*arguments)

    monkeypatch.setattr(packing, "_write_shard", counted)


def test_a_finished_packing_is_left_as_it_is(tmp_path):
    folder = make_folder(tmp_path / "images", count=12)
    said = packed(folder, tmp_path / "shards")
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "shards").rglob("*")}
    assert packed(folder, tmp_path / "shards") == said
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "shards").rglob("*")} == before


def test_a_full_disk_is_one_line_and_packing_goes_on_when_there_is_room(tmp_path, monkeypatch):
    from array_record.python import array_record_module as module

    folder = make_folder(tmp_path / "images", count=12)
    writer, opened_files = module.ArrayRecordWriter, []

    def third_is_full(path, options):
        opened_files.append(path)
        return writer("/dev/full" if len(opened_files) == 3 else path, options)

    monkeypatch.setattr(module, "ArrayRecordWriter", third_is_full)
    with pytest.raises(StoppedRunError, match=r"train: the disk is full; make room") as stopped:
        packed(folder, tmp_path / "shards", 4)
    assert stopped.value.exit_code == 3
    packed(folder, tmp_path / "shards", 4)
    assert len(opened_files) == 3 + 1 + 1  # train's third again, and test's only one
    monkeypatch.undo()
    packed(folder, tmp_path / "whole", 4)
    assert contents(tmp_path / "shards") == contents(tmp_path / "whole")


def test_a_disk_that_fails_in_the_middle_leaves_no_image_out(tmp_path, monkeypatch):
    folder = make_folder(tmp_path / "images", count=12)
    source = opened(folder, source="folder")

    def failing(i):
        if i == 5:
            raise OSError(5, "Input/output error")
        return source.read(i)

    broken = dataclasses.replace(source, read=failing)
    options = {"came_from": {"kind": "folder"}, "images_per_shard": 4}
    with pytest.raises(StoppedRunError, match=r"can't be read now: .*Input/output error; run the"):
        packing.pack(broken, tmp_path / "train", **options)
    assert packing.pack(source, tmp_path / "train", **options).count == 9


def test_two_processes_do_not_pack_into_one_folder(tmp_path, monkeypatch):
    folder = make_folder(tmp_path / "images", count=12)
    inside, go_on = threading.Event(), threading.Event()
    write = packing._write_shard

    def slow(*arguments):
        inside.set()
        go_on.wait(30)
        return write(*arguments)

    monkeypatch.setattr(packing, "_write_shard", slow)
    first = threading.Thread(target=packed, args=(folder, tmp_path / "shards"))
    first.start()
    assert inside.wait(30)
    with pytest.raises(UserError, match=r"train: another process is packing into it"):
        packed(folder, tmp_path / "shards")
    go_on.set()
    first.join()
    assert opened(tmp_path / "shards").num_examples == 9


def test_images_that_are_all_bad_are_an_error(tmp_path):
    (tmp_path / "images" / "train").mkdir(parents=True)
    (tmp_path / "images" / "train" / "1.png").write_bytes(b"no image")
    with pytest.raises(BadDataError, match=r"train: none of 1 images can be read"):
        packed(tmp_path / "images", tmp_path / "shards", splits=["train"])


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["pack", "/no/such", "out"], "/no/such: there is no such folder"),
        (["pack", "{images}"], "pack: takes SRC DST"),
        (["check", "{images}", "out"], "check: takes SRC"),
        (["pack", "{images}", "{images}"], "images/test: is no packed images"),
        (["pack", "{images}", "out", "--splits=a/b"], "--splits a/b: must be"),
        (["pack", "{images}", "out", "--splits=val"], "there is no folder {images}/val"),
        (["pack", "{images}/train", "out"], "has no sub-folder train or test"),
        (["pack", "{images}", "out", "--images-per-shard=0"], "must be at least 1"),
        (["pack", "{images}", "out", "--config.seed=1"], "unknown argument --config.seed=1"),
    ],
)
def test_mistakes_are_one_line_and_code_2(tmp_path, arguments, says, monkeypatch, capsys):
    from jepa_jax.data.__main__ import main

    images = make_folder(tmp_path / "images", count=8)
    monkeypatch.chdir(tmp_path)
    filled = [argument.format(images=images) for argument in arguments]
    monkeypatch.setattr(sys, "argv", ["jepa_jax.data", *filled])
    with pytest.raises(SystemExit) as stopped:
        main()
    assert stopped.value.code == 2
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.count("\n") == 1
    assert says.format(images=images) in said.err
    assert not pathlib.Path("out").exists()


@pytest.mark.parametrize("in_memory", [True, False])
def test_a_data_set_of_tfds_is_packed_without_loss(tmp_path, monkeypatch, in_memory):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    if not in_memory:
        monkeypatch.setattr(tfds_source, "_IN_MEMORY_BYTES", 0)
    folder = str(tmp_path / "tfds")
    tfds.builder(TinyPictures.name, data_dir=folder).download_and_prepare()
    said = pack_splits(
        TinyPictures.name,
        tmp_path / "shards",
        splits=["train", "test"],
        images_per_shard=8,
        tfds_dir=folder,
    )
    assert (said["train"]["images"], said["test"]["images"]) == (30, 10)
    for split in ("train", "test"):
        data = data_config(source="tfds", path=TinyPictures.name, tfds_dir=folder)
        theirs = open_source(data, split)
        ours = opened(tmp_path / "shards", split)
        assert ours.digest == theirs.digest
        assert ours.class_names == theirs.class_names == ("dark", "light")
        np.testing.assert_array_equal(ours.labels, theirs.labels)
        for i in range(ours.num_examples):
            picture = read_whole(ours.read(i), Pixels(3, np.dtype(np.uint8)))
            want = read_whole(theirs.read(i), Pixels(3, np.dtype(np.uint8)))
            np.testing.assert_array_equal(picture, want)
            assert picture.shape == (20, 24, 3)
            assert (picture == picture[0, 0, 0]).all()
            assert (picture[0, 0, 0] >= 8 * 15) == ours.labels[i]
    found = check_splits(TinyPictures.name, splits=["train", "test"], tfds_dir=folder)
    assert (found["bad"], found["duplicates"], found["duplicates_across_splits"]) == (0, 10, 10)


def test_arrays_are_stored_as_they_are():
    rng = np.random.default_rng(0)
    for dtype, channels in ((np.uint8, 1), (np.uint8, 3), (np.uint16, 1), (np.uint16, 4)):
        images = rng.integers(0, np.iinfo(dtype).max, (2, 9, 7, channels), dtype, endpoint=True)
        source = array_source(images, None, (), (9, 7), channels=channels)
        wanted = Pixels(channels, np.dtype(dtype))
        np.testing.assert_array_equal(read_whole(source.read(1), wanted), images[1])
    many = array_source(np.zeros((2, 9, 7, 5), np.uint8), None, (), (9, 7), channels=5)
    assert many.read is None


def test_what_is_neither_folder_nor_data_set_is_one_line(tmp_path):
    with pytest.raises(UserError, match=r"no_such_set is no folder, and as a TFDS data set: "):
        pack_splits(
            "no_such_set", tmp_path / "s", splits=["train"], images_per_shard=8, tfds_dir=None
        )
