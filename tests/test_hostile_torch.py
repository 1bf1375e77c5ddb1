"""Damaged and hostile files of PyTorch: each is refused in one line, runs nothing, leaves nothing.

Where the format can't show the damage (fields of a zip header that nobody reads, a learning rate
with another last bit), the file may be read, but whole.
"""

import io
import os
import pathlib
import pickle
import resource
import stat
import struct
import zipfile

import pytest
from damage import (
    OPTIONS,
    Attack,
    assert_finite,
    assert_refused,
    assert_same,
    blank,
    cut,
    cut_the_beginning,
    damage,
    flip,
    insert,
    read_all,
    refuses,
    shuffle,
)

from jepa_jax.convert import official_to_orbax
from jepa_jax.errors import UserError
from jepa_jax.interop.official import official_items, open_official

TRACE = pathlib.Path(__file__).parent / "data" / "reference_tiny" / "end.pth.tar"


@pytest.fixture(scope="module")
def torch():
    return pytest.importorskip("torch")


@pytest.fixture
def content(torch):
    """The recorded checkpoint, to be changed."""
    return torch.load(TRACE, weights_only=True)


def to_orbax(source, destination, **options):
    return official_to_orbax(source, destination, **(options | {"num_heads": 3}))


def read_official(source):
    official = open_official(source, **(OPTIONS | {"num_heads": 3}))
    return read_all(official_items(official, lambda num_bytes: None))


def repack(change):
    """The recorded archive with its members (name, bytes) changed, and right checksums."""
    packed = io.BytesIO()
    with zipfile.ZipFile(TRACE) as old, zipfile.ZipFile(packed, "w") as new:
        for name, data in change([(name, old.read(name)) for name in old.namelist()]):
            new.writestr(name, data)
    return packed.getvalue()


def with_pickle(data):
    return repack(lambda members: [("end.pth/data.pkl", data), *members[1:]])


@pytest.mark.parametrize("kind", [cut, cut_the_beginning, shuffle, blank])
def test_a_torn_pytorch_file_is_refused(torch, tmp_path, kind):
    source = tmp_path / "a.pth.tar"
    for damaged in damage(kind, TRACE.read_bytes(), 40):
        source.write_bytes(damaged)
        assert_refused(to_orbax, source)


@pytest.mark.parametrize("kind", [flip, insert])
def test_a_damaged_pytorch_file_is_refused_or_read_as_it_was(torch, tmp_path, kind):
    source, expected = tmp_path / "a.pth.tar", read_official(TRACE)
    refusals = 0
    for damaged in damage(kind, TRACE.read_bytes(), 50):
        source.write_bytes(damaged)
        refusals += refuses(lambda: read_official(source), lambda x: assert_same(x, expected))
    assert refusals >= 40


def test_damage_to_the_pickle_alone_is_refused_or_harmless(torch, tmp_path):
    """With right checksums, so that it reaches the machine that runs the pickle."""
    source = tmp_path / "a.pth.tar"
    with zipfile.ZipFile(TRACE) as archive:
        plain = archive.read("end.pth/data.pkl")
    refusals = 0
    for kind in (flip, insert, cut, blank):
        for damaged in damage(kind, plain, 30):
            source.write_bytes(with_pickle(damaged))
            refusals += refuses(lambda: read_official(source), assert_finite)
    assert refusals >= 100


@pytest.mark.parametrize("protocol", [2, 4])
@pytest.mark.parametrize("place", ["all", "epoch", "encoder", "tensor", "opt"])
def test_a_pickle_that_would_run_code_runs_none(torch, content, tmp_path, place, protocol):
    canary, source = tmp_path / "canary", tmp_path / "a.pth.tar"
    for attack in (
        Attack(os.system, f"touch {canary}"),
        Attack(eval, f"open({str(canary)!r}, 'w')"),
        Attack(open, str(canary), "w"),
        Attack(pathlib.Path.touch, canary),
        Attack(getattr, "text", "upper"),
        Attack(torch.hub.load, str(tmp_path), "anything"),
    ):
        if place == "all":
            hostile = attack
        elif place == "tensor":
            hostile = content | {"encoder": content["encoder"] | {"module.norm.weight": attack}}
        else:
            hostile = content | {place: attack}
        torch.save(hostile, source, pickle_protocol=protocol)
        assert "could run any code" in assert_refused(to_orbax, source)
        source.write_bytes(pickle.dumps(attack, protocol))  # as before PyTorch 1.6, no archive
        assert_refused(to_orbax, source)
        assert not canary.exists()


def _symlink(name):
    member = zipfile.ZipInfo(name)
    member.external_attr = (stat.S_IFLNK | 0o777) << 16
    return member


@pytest.mark.parametrize(
    "member",
    [
        "../escaped",
        "end.pth/../../escaped",
        "/tmp/escaped",
        "end.pth//escaped",
        "end.pth\\..\\escaped",
        "other/escaped",
        "escaped",
        "end.pth/./escaped",
        _symlink("end.pth/escaped"),
    ],
)
@pytest.mark.parametrize("first", [True, False])
def test_an_archive_with_paths_of_its_own_is_refused(torch, tmp_path, member, first):
    source = tmp_path / "a.pth.tar"

    def add(members):
        return [(member, b"/etc/passwd"), *members] if first else [*members, (member, b"x")]

    source.write_bytes(repack(add))
    assert_refused(to_orbax, source)
    assert not (tmp_path.parent / "escaped").exists()


def test_a_compressed_archive_is_refused_before_it_is_unpacked(torch, tmp_path):
    """200 MB of zeros in 200 kB; and a member that appears twice."""
    source = tmp_path / "a.pth.tar"
    with zipfile.ZipFile(source, "w", zipfile.ZIP_DEFLATED) as archive:
        for i in range(4):
            archive.writestr(f"end.pth/data/{i}", bytes(50_000_000))
    assert source.stat().st_size < 1_000_000
    assert_refused(to_orbax, source)
    with pytest.warns(UserWarning, match="Duplicate name"):
        source.write_bytes(repack(lambda members: [*members, members[5]]))
    assert_refused(to_orbax, source)


def test_tensors_of_other_types_are_refused(torch, content, tmp_path):
    source = tmp_path / "a.pth.tar"
    changes = [
        *(
            lambda x, dtype=dtype: x.to(dtype)
            for dtype in (torch.float16, torch.bfloat16, torch.float64, torch.int32, torch.bool)
        ),
        lambda x: x.to(torch.complex64),
        lambda x: x.to_sparse(),
        lambda x: x.to("meta"),
        lambda x: torch.quantize_per_tensor(x, 0.1, 0, torch.qint8),
        lambda x: x.numpy(),
        lambda x: x.tolist(),
        lambda x: torch.full_like(x, torch.nan),
    ]
    for change in changes:
        for network in ("encoder", "predictor", "target_encoder"):
            name = "module.norm.weight" if network != "predictor" else "module.mask_token"
            state = content[network] | {name: change(content[network][name])}
            torch.save(content | {network: state}, source)
            assert_refused(to_orbax, source)


def test_sizes_that_the_file_can_not_hold_are_refused_before_memory_is_taken(
    torch, content, tmp_path
):
    """Views of one number: a few bytes that claim to be gigabytes."""
    source, one = tmp_path / "a.pth.tar", torch.zeros(1)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for network, name, shape in (
        ("encoder", "module.patch_embed.proj.weight", (1 << 31, 3, 8, 8)),
        ("encoder", "module.patch_embed.proj.weight", (48, 3, 1 << 20, 1 << 20)),
        ("encoder", "module.pos_embed", (1, 1 << 40, 48)),
        ("encoder", "module.blocks.0.mlp.fc1.weight", (1 << 40, 48)),
        ("target_encoder", "module.norm.weight", (1 << 40,)),
        ("predictor", "module.predictor_embed.weight", (1 << 40, 48)),
        ("predictor", "module.mask_token", (1, 1, 1 << 40)),
    ):
        state = content[network] | {name: one.expand(shape)}
        torch.save(content | {network: state}, source)
        assert_refused(to_orbax, source)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 500_000  # kB


@pytest.mark.parametrize("number", [48, 64, 192, 2304])
def test_sizes_in_the_pickle_that_the_file_can_not_hold_take_no_memory(torch, tmp_path, number):
    """Shapes, strides and lengths; PyTorch goes by the file where it knows a length better."""
    source, expected = tmp_path / "a.pth.tar", read_official(TRACE)
    with zipfile.ZipFile(TRACE) as archive:
        plain = archive.read("end.pth/data.pkl")
    code = b"K" + bytes([number]) if number < 256 else b"M" + struct.pack("<H", number)
    assert code in plain
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for huge in (1 << 31, 1 << 40, 1 << 62, -1):
        data = b"\x8a\x08" + huge.to_bytes(8, "little", signed=True)
        source.write_bytes(with_pickle(plain.replace(code, data)))
        refuses(lambda: read_official(source), lambda x: assert_same(x, expected))
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 500_000  # kB


def test_a_pytorch_with_known_holes_is_not_used(torch, monkeypatch, tmp_path):
    monkeypatch.setattr(torch, "__version__", "2.9.1")
    with pytest.raises(UserError, match=r"PyTorch 2\.9\.1 .* 2\.10"):
        to_orbax(TRACE, tmp_path / "ours", **OPTIONS)
    assert not list(tmp_path.iterdir())
