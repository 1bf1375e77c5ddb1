"""Verified checkpoints: what is damaged is found and named, and a run goes on from a good one."""

import errno
import pathlib
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jepa_jax.config import resolve
from jepa_jax.convert import orbax_to_hf, orbax_to_official
from jepa_jax.errors import StoppedRunError, UserError
from jepa_jax.objectives.ema import EmaState
from jepa_jax.objectives.registry import make_objective
from jepa_jax.training import checkpoint, manifest
from jepa_jax.training.recovery import find_not_finite, resume
from jepa_jax.training.state import TrainState
from jepa_jax.training.steps import find, latest_step
from jepa_jax.warm_start import read_weights

STEPS = (2, 4, 6)


def state_at(step):
    def tree(scale):
        return {"w": jnp.arange(64, dtype=jnp.float32).reshape(8, 8) * scale + step}

    return TrainState(
        step=jnp.int32(step),
        params={"encoder": tree(1), "predictor": tree(2)},
        optimizer_state=({"mu": tree(3), "nu": tree(4)},),
        objective_state=EmaState(step=jnp.int32(step), target=tree(5)),
    )


class Run:
    """A workdir with checkpoints of a state of some kB."""

    def __init__(self, workdir, config, mesh):
        self.workdir, self.config, self.mesh = workdir, config, mesh
        self.objective = make_objective(config)

    def save(self, state, newest=None):
        manager = checkpoint.make_manager(self.workdir, self.config, newest=newest)
        try:
            checkpoint.save(manager, state, self.config, self.objective)
            manager.wait_until_finished()
        finally:
            manager.close()

    def resume(self, **options):
        sharding = jax.sharding.NamedSharding(self.mesh, jax.sharding.PartitionSpec())
        like = jax.tree.map(
            lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), state_at(0)
        )
        return resume(
            self.workdir, like, self.objective, self.mesh, check=lambda _: None, **options
        )

    def folder(self, step):
        return self.workdir / "checkpoints" / str(step)

    def names(self):
        return sorted(path.name for path in (self.workdir / "checkpoints").iterdir())

    def files(self, step):
        return sorted(path for path in self.folder(step).rglob("*") if path.is_file())


@pytest.fixture(scope="module")
def original(tmp_path_factory, one_device):
    from conftest import tiny_config

    fields = tiny_config()
    fields.checkpoint.keep_last = 5
    run = Run(tmp_path_factory.mktemp("original"), resolve(fields), one_device)
    for step in STEPS:
        run.save(state_at(step))
    return run


@pytest.fixture
def run(original, tmp_path):
    shutil.copytree(original.workdir, tmp_path / "run")
    return Run(tmp_path / "run", original.config, original.mesh)


def flip(path, rng):
    data = bytearray(path.read_bytes())
    data[rng.integers(len(data))] ^= 1 << rng.integers(8)
    path.write_bytes(data)


def test_the_newest_state_is_restored_as_it_was_saved(run):
    state, step = run.resume()
    assert step == 6
    jax.tree.map(np.testing.assert_array_equal, state, state_at(6))
    assert run.names() == ["2", "4", "6"]


def test_case_21_every_file_is_in_the_manifest_and_any_flipped_bit_is_found_and_named(run):
    rng = np.random.default_rng(0)
    folder = run.folder(6)
    assert manifest.find_fault(folder) is None
    for path in run.files(6):
        whole = path.read_bytes()
        for _ in range(3 if whole else 0):
            flip(path, rng)
            fault = manifest.find_fault(folder)
            assert fault is not None, path
            assert (fault.kind, fault.file) == ("damaged", path.relative_to(folder).as_posix())
            path.write_bytes(whole)
    assert manifest.find_fault(folder) is None


def largest(run, step):
    return max(run.files(step), key=lambda path: path.stat().st_size * ("params" in str(path)))


def cut(run):
    path = largest(run, 6)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def empty(run):
    largest(run, 6).write_bytes(b"")


def zero(run):
    path = largest(run, 6)
    path.write_bytes(bytes(path.stat().st_size))


def flip_one(run):
    flip(largest(run, 6), np.random.default_rng(1))


def delete(run):
    largest(run, 6).unlink()


def delete_item(run):
    shutil.rmtree(run.folder(6) / "target_encoder")


def lose_manifest(run):
    (run.folder(6) / "manifest.json").unlink()


def move_to_another_name(run):
    run.folder(6).rename(run.folder(9))


@pytest.mark.parametrize(
    ("damage", "bad", "said"),
    [
        (cut, 6, "bytes, not"),
        (empty, 6, "has 0 bytes"),
        (zero, 6, "another SHA-256"),
        (flip_one, 6, "another SHA-256"),
        (delete, 6, "is missing"),
        (delete_item, 6, "target_encoder/"),
        (lose_manifest, 6, "manifest.json is missing: the save did not come to its end"),
        (move_to_another_name, 9, "it holds step 6, not 9"),
    ],
)
def test_case_21_22_23_a_bad_checkpoint_is_set_aside_and_the_one_before_it_used(
    run, caplog, damage, bad, said
):
    damage(run)
    state, step = run.resume()
    assert step == 4
    jax.tree.map(np.testing.assert_array_equal, state, state_at(4))
    assert run.names() == ["2", "4", f"{bad}.corrupt"]
    assert said in caplog.text
    assert f"checkpoints/{bad} is not used" in caplog.text
    run.save(state_at(6), newest=4)
    assert run.resume()[1] == 6


def test_case_28_a_number_that_is_not_finite_is_refused_though_its_digest_is_right(run, caplog):
    state = state_at(8)
    state.optimizer_state[0]["nu"]["w"] = state.optimizer_state[0]["nu"]["w"].at[3, 3].set(np.nan)
    assert find_not_finite(state, run.mesh) == "optimizer_state/0/nu/w"
    run.save(state)
    assert manifest.find_fault(run.folder(8)) is None
    assert run.resume()[1] == 6
    assert "optimizer_state/0/nu/w is not finite" in caplog.text


def test_case_24_with_no_good_checkpoint_left_a_run_refuses_to_start_anew(run):
    for step in STEPS:
        flip(run.folder(step) / "params" / "_METADATA", np.random.default_rng(0))
    with pytest.raises(UserError, match=r"no good checkpoint is left .*6 is .*4 is .*2 is "):
        run.resume()
    assert run.names() == ["2.corrupt", "4.corrupt", "6.corrupt"]


def test_case_24_rows_without_any_checkpoint_are_no_new_run(run):
    shutil.rmtree(run.workdir / "checkpoints")
    (run.workdir / "metrics.jsonl").write_text('{"step": 5, "loss": 1.0}\n')
    with pytest.raises(UserError, match=r"metrics\.jsonl is of a run that has begun"):
        run.resume()


def test_a_run_that_was_killed_before_its_first_checkpoint_starts_anew_and_says_so(
    run, tmp_path, caplog
):
    new = Run(tmp_path / "new", run.config, run.mesh)
    new.workdir.mkdir()
    assert new.resume() is None
    (new.workdir / "metrics.jsonl").write_text('{"step": 5, "loss": 1.0}\n')
    assert new.resume() is None
    assert "ended before its first checkpoint" in caplog.text
    new.save(state_at(6), newest=0)
    shutil.rmtree(new.workdir / "checkpoints")
    with pytest.raises(UserError, match="a run that has begun"):
        new.resume()


def test_case_04_a_save_that_is_killed_before_its_manifest_does_not_count(run, monkeypatch):
    def fail(folder):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(checkpoint, "write_manifest", fail)
    with pytest.raises(OSError, match="No space left"):
        run.save(state_at(8))
    monkeypatch.undo()
    assert run.folder(8).is_dir()  # Orbax had renamed it
    assert latest_step(run.workdir) == 6
    assert find(run.workdir).name == "6"
    assert run.resume()[1] == 6


def test_case_25_stray_names_and_links_are_ignored_with_a_warning_and_stop_no_save(run, caplog):
    for name in ("00036", "3²", "latest", "36.corrupt"):
        shutil.copytree(run.folder(6), run.folder(name))
    run.folder(38).symlink_to(run.folder(4))
    assert latest_step(run.workdir) == 6
    assert run.resume()[1] == 6
    for name in ("00036", "3²", "latest", "36.corrupt", "38"):
        assert f"checkpoints/{name} is ignored" in caplog.text
    run.save(state_at(7), newest=6)
    assert run.resume()[1] == 7
    assert run.folder(38).is_symlink()


def failing_reads(monkeypatch, part, times):
    """Lets the first reads of files whose path holds `part` fail as a bad disk does."""
    left, opened = [times], pathlib.Path.open

    def read(path, *arguments, **options):
        if part in str(path) and left[0] > 0:
            left[0] -= 1
            raise OSError(errno.EIO, "Input/output error")
        return opened(path, *arguments, **options)

    monkeypatch.setattr(manifest, "RETRY_AFTER", (0.0, 0.0, 0.0))
    monkeypatch.setattr(pathlib.Path, "open", read)


def test_case_34_a_read_error_that_passes_is_nothing(run, monkeypatch):
    failing_reads(monkeypatch, "/6/params/_METADATA", 2)
    assert run.resume()[1] == 6


def test_case_34_what_can_never_be_read_is_passed_over_but_not_renamed(run, monkeypatch, caplog):
    failing_reads(monkeypatch, "/6/params/_METADATA", 1000)
    assert run.resume()[1] == 4
    assert "6 is not used: unreadable: params/_METADATA can't be read" in caplog.text
    assert run.names() == ["2", "4", "6"]
    monkeypatch.undo()
    run.save(state_at(5), newest=4)
    run.save(state_at(6), newest=5)  # what was there makes room
    assert run.names() == ["2", "4", "5", "6", "6.corrupt"]


def test_a_save_that_orbax_leaves_out_is_an_error(run):
    with pytest.raises(StoppedRunError, match=r"checkpoint 5 was not saved: .* checkpoint 6"):
        run.save(state_at(5))


def test_without_digests_sizes_and_the_manifest_still_count(run):
    zero(run)
    assert manifest.find_fault(run.folder(6), digests=False) is None
    cut(run)
    assert manifest.find_fault(run.folder(6), digests=False).kind == "damaged"


def test_a_reader_of_one_item_looks_at_its_files_alone(run, caplog):
    zero(run)  # in params
    assert find(run.workdir, lambda _: ("target_encoder",)).name == "6"
    assert find(run.workdir, lambda _: ("params",)).name == "4"
    assert "checkpoints/6 is not used: damaged: params/" in caplog.text
    with pytest.raises(UserError, match=r"checkpoints/6 is not used: damaged: params/"):
        find(run.folder(6), lambda _: ("params",))
    assert run.names() == ["2", "4", "6"]


@pytest.mark.parametrize(
    "read",
    [
        lambda folder, out, config: read_weights(folder, config.model),
        lambda folder, out, config: orbax_to_hf(folder, out, network=None),
        lambda folder, out, config: orbax_to_official(folder, out, epoch=1),
    ],
    ids=["--init", "orbax-to-hf", "orbax-to-official"],
)
def test_whoever_reads_the_networks_compares_their_files(run, tmp_path, read):
    zero(run)  # in params
    with pytest.raises(UserError, match=r"checkpoints/6 is not used: damaged: params/"):
        read(run.folder(6), tmp_path / "out", run.config)
    assert not (tmp_path / "out").exists()


def test_case_27_a_checkpoint_of_before_manifests_is_read_unverified(run, caplog):
    caplog.set_level("INFO", logger="jepa_jax")
    folder = run.folder(6)
    (folder / "manifest.json").unlink()
    config = folder / "config" / "metadata"
    config.write_text(config.read_text().replace('"format": 3', '"format": 2'))
    assert '"format": 2' in config.read_text()
    assert run.resume()[1] == 6
    assert "checkpoints/6 is unverified" in caplog.text
