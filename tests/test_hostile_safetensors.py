"""Damaged and hostile safetensors: each is refused in one line, runs nothing, leaves nothing.

Where the format can't show it (metadata that nobody reads), the file may be read, but whole.
"""

import json
import os
import pickle
import resource
import shutil
import struct

import numpy as np
import pytest
import safetensors.numpy
from damage import (
    OPTIONS,
    Attack,
    assert_refused,
    assert_same,
    cut,
    cut_the_beginning,
    damage,
    flip,
    insert,
    read_all,
    refuses,
    shuffle,
)

from jepa_jax.convert import hf_to_orbax, orbax_to_hf
from jepa_jax.interop.huggingface import huggingface_items, open_huggingface


@pytest.fixture
def folder(small, tmp_path):
    """A Hugging Face folder, to be damaged."""
    orbax_to_hf(small.folder, tmp_path / "hf", network="encoder")
    return tmp_path / "hf"


def read_huggingface(folder):
    found = open_huggingface(folder, **OPTIONS)
    return read_all(huggingface_items(found, lambda num_bytes: None))


def header_of(whole):
    end = 8 + struct.unpack("<Q", whole[:8])[0]
    return whole[8:end], whole[end:]


def with_header(header, data):
    return struct.pack("<Q", len(header)) + header + data


@pytest.mark.parametrize("kind", [cut, cut_the_beginning, shuffle, insert])
def test_a_torn_safetensors_file_is_refused(folder, kind):
    weights = folder / "model.safetensors"
    for damaged in damage(kind, weights.read_bytes(), 25):
        weights.write_bytes(damaged)
        assert_refused(hf_to_orbax, folder)


def test_a_damaged_header_is_refused_or_read_as_it_was(folder):
    weights, expected = folder / "model.safetensors", read_huggingface(folder)
    header, data = header_of(weights.read_bytes())
    refusals = 0
    for kind in (flip, insert, shuffle):
        for damaged in damage(kind, header, 30):
            weights.write_bytes(with_header(damaged, data))
            refusals += refuses(
                lambda: read_huggingface(folder), lambda x: assert_same(x, expected)
            )
    assert refusals >= 80


def test_a_header_that_claims_too_much_is_refused_before_memory_is_taken(folder):
    weights = folder / "model.safetensors"
    header, data = header_of(weights.read_bytes())
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for length in (0, 1, 7, len(header) + 1, 100_000_001, 1 << 40, (1 << 63) + 5, (1 << 64) - 1):
        weights.write_bytes(struct.pack("<Q", length) + header + data)
        assert_refused(hf_to_orbax, folder)
    plain = json.loads(header)
    for change in (
        {"shape": [1 << 62]},
        {"shape": [-16]},
        {"shape": [1 << 64]},
        {"data_offsets": [0, 1 << 40]},
        {"data_offsets": [64, 0]},
        {"data_offsets": [0, 64]},  # as another tensor has
        {"dtype": "F16"},
        {"dtype": "BF16"},
        {"dtype": "I32"},
        {"dtype": "F64"},
        {"dtype": "nonsense"},
    ):
        changed = plain | {"layernorm.bias": plain["layernorm.bias"] | change}
        weights.write_bytes(with_header(json.dumps(changed).encode(), data))
        assert_refused(hf_to_orbax, folder)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 500_000  # kB


@pytest.mark.parametrize("number", [np.nan, np.inf, -np.inf])
def test_numbers_that_are_not_finite_are_refused(folder, number):
    tensors = safetensors.numpy.load_file(folder / "model.safetensors")
    tensors["layernorm.bias"][3] = number
    safetensors.numpy.save_file(tensors, folder / "model.safetensors")
    assert "layernorm.bias" in assert_refused(hf_to_orbax, folder)


@pytest.mark.parametrize(
    "index",
    [
        {"weight_map": {"a": "../model.safetensors"}},
        {"weight_map": {"a": "/etc/passwd"}},
        {"weight_map": {"a": "..\\model.safetensors"}},
        {"weight_map": {"a": ".."}},
        {"weight_map": {"a": "missing.safetensors"}},
        {"weight_map": {"a": None}},
        {"weight_map": ["model.safetensors"]},
        {"weight_map": {}},
        {},
        [],
        "text",
    ],
)
def test_an_index_that_names_other_files_is_refused(folder, index):
    """Though the other file is there, and would do."""
    shutil.copy(folder / "model.safetensors", folder.parent)
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    assert_refused(hf_to_orbax, folder)


def test_settings_that_are_none_are_refused(folder):
    plain = (folder / "config.json").read_bytes()
    for damaged in [*damage(cut, plain.rstrip()[:-1], 20), b"[" * 100_000, b"\xff\xfe", b"null"]:
        (folder / "config.json").write_bytes(damaged)
        assert_refused(hf_to_orbax, folder)


def test_a_pickle_in_place_of_safetensors_is_refused(folder, tmp_path):
    canary = tmp_path / "canary"
    hostile = pickle.dumps(Attack(os.system, f"touch {canary}"))
    for name in ("pytorch_model.bin", "model.safetensors", "config.json"):
        (folder / name).write_bytes(hostile)
        if name == "pytorch_model.bin":
            (folder / "model.safetensors").unlink()
        assert_refused(hf_to_orbax, folder)
        assert not canary.exists()
