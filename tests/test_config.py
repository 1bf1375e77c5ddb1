"""A run's configuration: its fields, their types and ranges, and what is refused."""

import pathlib

import pytest

from jepa_jax.config import differences, resolve, resolve_fine_tune, resolve_probe, to_dict
from jepa_jax.config.derived import ImageFacts
from jepa_jax.config.files import load_config
from jepa_jax.errors import UserError

CONFIGS = pathlib.Path(__file__).parent.parent / "configs"
MISSING = object()


def changed(config, **fields):
    """`config` as nested dictionaries; `model__depth=3` sets a field, MISSING removes it."""
    raw = config.to_dict()
    for name, value in fields.items():
        *sections, field = name.split("__")
        node = raw
        for section in sections:
            node = node[section]
        if value is MISSING:
            del node[field]
        else:
            node[field] = value
    return raw


def refusal(config, **fields):
    """The error of `config` with some fields changed, which must be one line."""
    with pytest.raises(UserError) as error:
        resolve(changed(config, **fields))
    message = str(error.value)
    assert "\n" not in message
    return message


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("*.py")), ids=lambda path: path.stem)
def test_every_config_file_resolves(path):
    facts = ImageFacts(3000, (0.5, 0.5, 0.5), (0.2, 0.2, 0.2))
    resolve(load_config(str(path), []), lambda _: facts)


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("probe/*.py")), ids=lambda path: path.stem)
def test_every_probe_config_file_resolves(path):
    fields = load_config(str(path), [])
    check = resolve_fine_tune if fields["protocol"] == "fine_tune" else resolve_probe
    check(fields)


@pytest.mark.parametrize(
    ("field", "nearest"),
    [
        ("epoch", "config.epochs"),
        ("model__dept", "config.model.depth"),
        ("objective__predictor__numheads", "config.objective.predictor.num_heads"),
        ("optimizer__warmup_epoch", "config.optimizer.warmup_epochs"),
        (
            "objective__masks__xyz",
            "config.objective.masks.",
        ),  # nothing is near: some field of the section
    ],
)
def test_case_51_an_unknown_field_is_refused_with_the_nearest_name(tiny, field, nearest):
    message = refusal(tiny, **{field: 1})
    assert message.startswith(f"config.{field.replace('__', '.')}: no such field")
    assert nearest in message.split("did you mean")[1]


@pytest.mark.parametrize(
    "field", ["epochs", "model", "model__depth", "objective", "objective__masks", "data__source"]
)
def test_a_missing_field_is_refused(tiny, field):
    message = refusal(tiny, **{field: MISSING})
    assert message.startswith(f"config.{field.replace('__', '.')}: missing")


@pytest.mark.parametrize(
    ("field", "value", "allowed"),
    [
        ("optimizer__lr", "0.1", "float"),
        ("optimizer__lr", None, "float"),
        ("optimizer__lr", True, "float"),
        ("epochs", 3.0, "int"),
        ("model__depth", True, "int"),
        ("model__depth", "2", "int"),
        ("compute__scan_layers", 1, "bool"),
        ("compute__scan_layers", "false", "bool"),
        ("data__path", 3, "str"),
        ("seed", {"a": 1}, "int"),
        ("seed", "two\nlines", "int"),
        ("data__crop_scale", (0.3, 0.5, 1.0), "2 values"),
        ("data__crop_scale", 0.3, "2 values"),
        ("data__crop_scale", "ab", "2 values"),
        ("data__mean", "gray", "a tuple"),
        ("data__mean", (0.5,), "as many values"),
        ("data__image_size", 28, "2 values"),
        ("compute__dtype", "float16", "float32, bfloat16"),
        ("compute__remat", True, "none, dots, full"),
        ("objective__loss", "L2", "l2, smooth_l1"),
        ("model", 3, "ModelConfig"),
        ("model", None, "ModelConfig"),
    ],
)
def test_case_51_a_value_of_the_wrong_type_is_refused(tiny, field, value, allowed):
    name, _, reason = refusal(tiny, **{field: value}).partition(" = ")
    assert name == f"config.{field.replace('__', '.')}"
    assert repr(value) in reason
    assert allowed in reason


@pytest.mark.parametrize(
    ("field", "value", "element", "allowed"),
    [
        ("data__image_size", (28, 28.0), "config.data.image_size[1] = 28.0", "int"),
        ("data__crop_scale", ("0.3", 1.0), "config.data.crop_scale[0] = '0.3'", "float"),
        ("data__std", (0.3, 0.3, False), "config.data.std[2] = False", "float"),
        ("data__std", (0.3, 0.0, 0.3), "config.data.std[1] = 0.0", "above 0"),
    ],
)
def test_a_tuple_s_element_of_the_wrong_type_is_refused(tiny, field, value, element, allowed):
    message = refusal(tiny, **{field: value})
    assert message.startswith(f"{element}: ")
    assert allowed in message


def test_a_whole_section_in_place_of_a_number_is_shown_in_one_line(tiny):
    section = tiny.objective.masks  # a ConfigDict, whose own text has a line for each field
    assert "context_tokens: 4" in refusal(tiny, epochs=section)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize(
    "field",
    ["optimizer__lr", "optimizer__ipe_scale", "optimizer__warmup_epochs", "data__eval_crop"],
)
def test_numbers_that_are_not_finite_are_refused(tiny, field, value):
    message = refusal(tiny, **{field: value})
    assert message == f"config.{field.replace('__', '.')} = {value}: must be a finite number"


def test_not_finite_elements_of_tuples_are_refused(tiny):
    message = refusal(tiny, data__mean=(0.5, float("nan"), 0.5))
    assert message == "config.data.mean[1] = nan: must be a finite number"


AT_LEAST_1 = [
    "epochs",
    "batch_size",
    "model__patch_size",
    "model__depth",
    "model__num_heads",
    "objective__predictor__depth",
    "objective__predictor__num_heads",
    "objective__masks__context_tokens",
    "objective__masks__num_targets",
    "optimizer__accumulation_steps",
    "mesh__data",
    "mesh__fsdp",
    "mesh__tensor",
    "logging__every_steps",
    "checkpoint__every_steps",
    "checkpoint__keep_last",
]
NOT_NEGATIVE = [
    "seed",
    "optimizer__start_lr",
    "optimizer__lr",
    "optimizer__final_lr",
    "optimizer__warmup_epochs",
    "optimizer__weight_decay",
    "optimizer__final_weight_decay",
]
OPTIONAL = [
    "mesh__data",
    "optimizer__reference_batch_size",
    "logging__diagnostics_every_steps",
    "logging__knn_every_steps",
    "logging__linear_every_steps",
    "checkpoint__keep_every_steps",
]


@pytest.mark.parametrize(
    ("field", "value", "allowed"),
    [
        *[(field, 0, "at least 1") for field in AT_LEAST_1],
        *[(field, -3, "at least 0") for field in NOT_NEGATIVE],
        *[(field, -3, "at least 1, or None") for field in OPTIONAL],
        ("optimizer__clip_norm", -0.5, "above 0, or None"),
        ("checkpoint__every_minutes", 0, "above 0, or None"),
        ("optimizer__ipe_scale", 0.99, "at least 1"),
        ("data__crop_scale", (0.0, 1.0), "0 < low <= high <= 1"),
        ("data__crop_scale", (0.5, 0.4), "0 < low <= high <= 1"),
        ("objective__masks__context_scale", (0.85, 1.01), "0 < low <= high <= 1"),
        ("objective__masks__target_scale", (-0.1, 0.2), "0 < low <= high <= 1"),
        ("data__crop_aspect_ratio", (2.0, 0.5), "0 < low <= high"),
        ("objective__masks__target_aspect_ratio", (0.0, 1.5), "0 < low <= high"),
        ("objective__ema__start_momentum", -0.1, "0..1"),
        ("objective__ema__final_momentum", 1.001, "0..1"),
        ("model__drop_path_rate", 1.0, "below 1"),
        ("optimizer__b1", 1.0, "below 1"),
        ("optimizer__b2", -0.5, "below 1"),
        ("optimizer__eps", 0.0, "above 0"),
        ("model__mlp_ratio", -4.0, "above 0"),
        ("init__std", 0.0, "above 0"),
        ("data__eval_crop", 0.0, "above 0"),
        ("data__eval_crop", 1.5, "0..1, above 0"),
    ],
)
def test_case_51_a_number_out_of_range_is_refused(tiny, field, value, allowed):
    name, _, reason = refusal(tiny, **{field: value}).partition(" = ")
    assert name == f"config.{field.replace('__', '.')}"
    for number in value if isinstance(value, tuple) else (value,):
        assert str(number) in reason
    assert allowed in reason


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("data__crop_scale", (1.0, 1.0)),
        ("objective__masks__context_scale", (1.0, 1.0)),
        ("objective__ema__start_momentum", 1.0),
        ("objective__ema__final_momentum", 0.0),
        ("model__drop_path_rate", 0.0),
        ("optimizer__b1", 0.0),
        ("optimizer__ipe_scale", 1.0),
        ("optimizer__warmup_epochs", 0.0),
        ("data__eval_crop", 1.0),
        *[(field, None) for field in OPTIONAL],
        ("optimizer__clip_norm", None),
        ("objective__masks__context_tokens", 16),  # the whole 4 x 4 grid
    ],
)
def test_the_ends_of_the_ranges_are_allowed(tiny, field, value):
    resolve(changed(tiny, **{field: value}))


@pytest.mark.parametrize(
    ("fields", "parts"),
    [
        (
            {"data__image_size": (28, 30)},
            ["config.data.image_size = (28, 30)", "width", "config.model.patch_size = 7"],
        ),
        (
            {"data__image_size": (27, 28)},
            ["config.data.image_size = (27, 28)", "height", "config.model.patch_size = 7"],
        ),
        ({"data__image_size": (0, 28)}, ["config.data.image_size[0] = 0", "at least 1"]),
        (
            {"model__num_heads": 3},
            ["config.model.num_heads = 3", "divide config.model.embed_dim = 16"],
        ),
        (
            {"objective__predictor__num_heads": 5},
            [
                "config.objective.predictor.num_heads = 5",
                "divide config.objective.predictor.embed_dim = 8",
            ],
        ),
        (
            {"objective__predictor__embed_dim": 10},
            ["config.objective.predictor.embed_dim = 10", "multiple of 4"],
        ),
        ({"model__embed_dim": 0}, ["config.model.embed_dim = 0", "at least 1"]),
        (
            {"optimizer__accumulation_steps": 3},
            ["config.batch_size = 16", "config.optimizer.accumulation_steps = 3"],
        ),
        (
            {"objective__masks__context_tokens": 17},
            ["config.objective.masks.context_tokens = 17", "4 x 4 = 16"],
        ),
    ],
)
def test_numbers_that_do_not_fit_each_other_are_refused(tiny, fields, parts):
    message = refusal(tiny, **fields)
    assert message.startswith(parts[0])
    for part in parts:
        assert part in message


def test_integers_are_taken_for_floats_and_lists_for_tuples(tiny):
    config = resolve(
        changed(tiny, optimizer__lr=1, data__crop_scale=[1, 1.0], data__image_size=[14, 28])
    )
    assert config.optimizer.lr == 1.0
    assert isinstance(config.optimizer.lr, float)
    assert config.data.crop_scale == (1.0, 1.0)
    assert all(isinstance(value, float) for value in config.data.crop_scale)
    assert config.data.image_size == (14, 28)
    assert config.grid == (2, 4)  # rows, columns


def test_a_resolved_configuration_resolves_to_itself(tiny):
    config = resolve(tiny)
    assert resolve(to_dict(config)) == config


def test_differences_names_every_field_that_differs(tiny):
    old = to_dict(resolve(tiny))
    new = to_dict(resolve(changed(tiny, seed=5, model__depth=3, data__crop_scale=(0.5, 1.0))))
    new["data"]["image_size"] = list(new["data"]["image_size"])  # as JSON returns it: no change
    del new["objective"]["masks"]["published"]
    new["extra"] = {"field": 1}
    assert differences(old, new) == {
        "data.crop_scale": ([0.3, 1.0], [0.5, 1.0]),
        "extra.field": (None, 1),
        "objective.masks.published": (False, None),
        "model.depth": (2, 3),
        "seed": (0, 5),
    }
    assert differences(old, old) == {}


def test_a_file_states_what_it_changes_and_the_rest_are_the_documented_defaults(tiny):
    least = {name: tiny[name] for name in ("epochs", "batch_size", "data", "model", "objective")}
    config = resolve(least)
    assert config.seed == 0
    assert (config.optimizer.lr, config.optimizer.b2) == (1e-3, 0.999)
    assert config.objective.ema.start_momentum == 0.996
    assert config.logging.knn_every_steps is None


@pytest.mark.parametrize(
    ("objective", "says"),
    [
        ({"name": "jepa"}, r"config.objective.name = 'jepa'; must be one of ijepa, supervised"),
        ({"masks": {}}, r"config.objective.name: missing; must be one of ijepa, supervised"),
        ("ijepa", r"config.objective = 'ijepa': expected a name and its fields"),
    ],
)
def test_an_objective_is_told_by_its_name(tiny, objective, says):
    with pytest.raises(UserError) as error:
        resolve(tiny.to_dict() | {"objective": objective})
    assert str(error.value).startswith(says)
