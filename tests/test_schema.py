"""Sections that are given in part: what they lack is as in the field's default."""

import dataclasses
from typing import Literal

import pytest
from conftest import REPOSITORY

from jepa_jax.config import resolve, resolve_probe
from jepa_jax.config.files import load_config
from jepa_jax.config.schema import from_mapping


@dataclasses.dataclass(frozen=True, kw_only=True)
class Inner:
    a: int = 1
    b: int = 2


@dataclasses.dataclass(frozen=True, kw_only=True)
class Circle:
    name: Literal["circle"] = "circle"
    radius: int = 1
    inner: Inner = Inner(b=20)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Square:
    name: Literal["square"] = "square"
    side: int = 1


@dataclasses.dataclass(frozen=True, kw_only=True)
class Outer:
    shape: Circle | Square = Circle(radius=5, inner=Inner(a=10))
    maybe: Inner | None = Inner(a=7)
    free: dict = dataclasses.field(default_factory=lambda: {"kept": 1})


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({}, Outer()),
        ({"maybe": {"b": 3}}, Outer(maybe=Inner(a=7, b=3))),
        ({"maybe": None}, Outer(maybe=None)),
        ({"shape": {"name": "circle"}}, Outer()),
        (
            {"shape": {"name": "circle", "inner": {"b": 3}}},
            Outer(shape=Circle(radius=5, inner=Inner(a=10, b=3))),
        ),
        # Another type has defaults of its own.
        ({"shape": {"name": "square"}}, Outer(shape=Square())),
        ({"free": {"more": 2}}, Outer(free={"kept": 1, "more": 2})),
    ],
)
def test_a_section_given_in_part_keeps_the_rest_of_the_field_s_default(given, expected):
    assert from_mapping(Outer, given) == expected


def resolved(name, *overrides):
    return resolve(load_config(str(REPOSITORY / "configs" / f"{name}.py"), overrides))


def test_an_override_of_one_field_changes_no_other():
    name = "in1k_simclr_vitb16_ep300"
    changed = resolved(name, "--config.objective.augmentation.flip=0").objective.augmentation
    assert changed == dataclasses.replace(resolved(name).objective.augmentation, flip=0.0)


def test_the_momentum_of_byol_still_rises_along_a_cosine_where_only_its_start_is_set():
    config = load_config(str(REPOSITORY / "configs" / "fashion_mnist_byol.py"), [])
    config["objective"]["ema"] = {"start_momentum": 0.99}
    ema = resolve(config).objective.ema
    assert (ema.start_momentum, ema.schedule) == (0.99, "cosine")


def test_fine_tuning_keeps_its_crops_where_only_the_images_are_named():
    path = str(REPOSITORY / "configs" / "probe" / "fine_tune.py")
    config = load_config(path, [])
    config["data"] = {"path": "photos"}
    assert resolve_probe(config).data == {"crop_scale": (0.08, 1.0), "path": "photos"}
