"""Which feature of a TFDS data set is the label: a class, several labels, or numbers."""

import itertools
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import numpy as np

from jepa_jax.errors import UserError

# VTAB's tasks of CLEVR (Zhai et al., 2019): scenes of 3 to 10 objects; and the edges, in CLEVR's
# units, that divide the distance of the closest one into six classes.
_FEWEST, _MOST = 3, 10
_EDGES = (8.0, 8.5, 9.0, 9.5, 10.0)
_OBJECTS = "objects", "pixel_coords"  # [objects, 3]: column, row, distance from the camera


class LabelReader(NamedTuple):
    """How a label is read.

    Attributes:
      feature: its name, and of a feature within another one, both names.
      label_of: all its values, flat -> int64 [], bool [K] or float32 [K].
      class_names: of the classes, or of the K labels; empty where they have no names.
    """

    feature: tuple[str, ...]
    label_of: Callable[[np.ndarray], np.ndarray | np.int64]
    class_names: tuple[str, ...] = ()

    def of_record(self, record: bytes) -> np.ndarray | np.int64:
        """The label in a record of a TFRecord or ArrayRecord file."""
        from tensorflow.train import Example

        feature = Example.FromString(record).features.feature["/".join(self.feature)]
        kind = feature.WhichOneof("kind")  # None of an empty sequence
        return self.label_of(np.asarray(getattr(feature, kind).value if kind else []))

    def of_examples(self, examples: Iterable[Any]) -> np.ndarray:
        """The labels of decoded examples, stacked."""
        return np.stack([self.label_of(np.ravel(_within(e, self.feature))) for e in examples])

    def wanted(self) -> dict[str, Any]:
        """What TFDS is to decode: this feature alone."""
        spec: Any = True
        for name in reversed(self.feature):
            spec = {name: spec}
        return spec


def label_reader(tfds: Any, features: Any, name: str | None, field: str) -> LabelReader | None:
    """The reader of a label by its name, or of the only class label; None where there is none.

    Args:
      name: as `DataConfig.label`; a class label or a whole number is a class, a sequence of class
        labels several labels, a fraction or a vector of them numbers.
      field: of the data set, for messages.

    Raises:
      UserError: there is no such feature, or it is of another kind.
    """
    F = tfds.features
    if name is None:
        found = [n for n, feature in features.items() if isinstance(feature, F.ClassLabel)]
        name = "label" if "label" in found else found[0] if len(found) == 1 else None
        return None if name is None else _of_class(name, features[name])
    if name in ("clevr_count", "clevr_distance"):
        if "objects" not in features or "pixel_coords" not in features["objects"].feature:
            raise UserError(
                f"config.data.label = {name!r}: needs the feature objects/pixel_coords, which "
                f"{field} lacks; it is of the data set clevr"
            )
        return _clevr_count() if name == "clevr_count" else _clevr_distance()
    if name not in features:
        raise UserError(
            f"config.data.label = {name!r}: must be one of {', '.join(features)}, clevr_count and "
            "clevr_distance"
        )
    feature = features[name]
    if isinstance(feature, F.ClassLabel):
        return _of_class(name, feature)
    if isinstance(feature, F.Sequence) and isinstance(feature.feature, F.ClassLabel):
        classes = feature.feature.num_classes
        return LabelReader((name,), lambda x: _several(x, classes), tuple(feature.feature.names))
    if isinstance(feature, F.Tensor) and not isinstance(feature, F.Image):
        kind = np.dtype(feature.np_dtype)
        if kind.kind in "iu" and feature.shape == ():
            return LabelReader((name,), lambda x: np.int64(x[0]))
        if kind.kind == "f" and (feature.shape == () or len(feature.shape) == 1):
            return LabelReader((name,), lambda x: x.astype(np.float32))
    raise UserError(
        f"config.data.label = {name!r}: is {feature!r}; must be a class label, a sequence of "
        "those, a whole number, a fraction, or a vector of fractions"
    )


def _of_class(name: str, feature: Any) -> LabelReader:
    return LabelReader((name,), lambda x: np.int64(x[0]), tuple(feature.names))


def _several(x: np.ndarray, classes: int) -> np.ndarray:
    found = np.zeros(classes, bool)
    found[x.astype(np.int64)] = True
    return found


def _clevr_count() -> LabelReader:
    names = tuple(str(count) for count in range(_FEWEST, _MOST + 1))

    def label_of(x: np.ndarray) -> np.int64:
        count = len(x) // 3
        if not _FEWEST <= count <= _MOST:
            raise UserError(
                f"config.data.label = 'clevr_count': a scene has {count} objects, not {_FEWEST} to "
                f"{_MOST}; of clevr's split test they are not published"
            )
        return np.int64(count - _FEWEST)

    return LabelReader(_OBJECTS, label_of, names)


def _clevr_distance() -> LabelReader:
    names = (
        f"up to {_EDGES[0]:g}",
        *(f"{low:g} to {high:g}" for low, high in itertools.pairwise(_EDGES)),
        f"above {_EDGES[-1]:g}",
    )

    def label_of(x: np.ndarray) -> np.int64:
        if not len(x):
            raise UserError(
                "config.data.label = 'clevr_distance': a scene has no objects; of clevr's split "
                "test they are not published"
            )
        return np.int64(np.searchsorted(np.array(_EDGES, np.float32), x.reshape(-1, 3)[:, 2].min()))

    return LabelReader(_OBJECTS, label_of, names)


def _within(example: Any, names: tuple[str, ...]) -> Any:
    for name in names:
        example = example[name]
    return example
