"""The report as a page: what it holds, and how that becomes one HTML file."""

import base64
import dataclasses
import pathlib
from typing import Any

import jinja2


@dataclasses.dataclass(frozen=True)
class Picture:
    """A PNG beside the page, which holds a copy of it.

    Attributes:
      title: what is shown; "" where the words around it say.
      caption: what is seen, and what good and bad look like.
    """

    path: pathlib.Path
    title: str = ""
    caption: str = ""

    @property
    def uri(self) -> str:
        return "data:image/png;base64," + base64.b64encode(self.path.read_bytes()).decode()


@dataclasses.dataclass(frozen=True)
class Neighbor:
    """What stands below a tile of a strip: its class, and whether that is the query's."""

    name: str
    agrees: bool | None  # None: the query itself, or there are no classes


@dataclasses.dataclass(frozen=True)
class Strip:
    """A row of tiles, and what each is."""

    picture: Picture
    tiles: tuple[Neighbor, ...] = ()


@dataclasses.dataclass(frozen=True)
class Group:
    """Strips under one heading, with one caption."""

    title: str
    caption: str
    strips: tuple[Strip, ...]


@dataclasses.dataclass(frozen=True)
class Cell:
    """A cell of a confusion matrix."""

    text: str
    share: float  # of its row, 0..1: how dark it is


@dataclasses.dataclass(frozen=True)
class Probe:
    """A probe's result as a table.

    Attributes:
      title, facts: what was measured, in a line each.
      rows: name, value, interval, top5 as text, "" where there is none; share of the bar in %.
      comparison: with another run, "" if there is none.
      classes, confusion: of the pretrained encoder; none where there are too many to show.
      confused: pairs of classes that are taken for each other most often.
    """

    title: str
    facts: str
    metric: str
    rows: tuple[dict[str, str], ...]
    comparison: str = ""
    classes: tuple[str, ...] = ()
    confusion: tuple[tuple[Cell, ...], ...] = ()
    confused: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True)
class RunPart:
    """What is of one run.

    Attributes:
      facts: label -> value, as text: what was run.
      diagnostics: label -> value of the newest checkpoint.
      command: makes a probe of it.
      problem: why there are no pictures; "": there are.
    """

    name: str
    colour: str
    command: str
    facts: dict[str, str]
    diagnostics: dict[str, str]
    probes: tuple[Probe, ...]
    groups: tuple[Group, ...]
    problem: str = ""


@dataclasses.dataclass(frozen=True)
class Page:
    """All of a report.

    Attributes:
      curves, diagnostics: charts of all runs.
    """

    title: str
    made: str
    runs: tuple[RunPart, ...]
    curves: tuple[Picture, ...]
    diagnostics: tuple[Picture, ...]


def render(page: Page) -> str:
    """The page as one HTML text, which needs no other file and no script."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(pathlib.Path(__file__).parent),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template("report.html.jinja").render(page=page, meanings=MEANINGS)


# Of the diagnostics: label, what it is, what is good and bad.
MEANINGS: dict[str, tuple[str, str]] = {
    "rankme": (
        "RankMe",
        "directions that the features use, at most their width; higher is better, 1 is collapse",
    ),
    "lidar": (
        "LiDAR",
        "how many directions tell images apart in spite of the crop; higher is better",
    ),
    "alpha_req": (
        "alpha-ReQ",
        "how fast the eigenvalues fall, as a power of their rank; near 1 is good, far above 1 a "
        "few directions hold everything",
    ),
    "stable_rank": ("stable rank", "variance by that of its strongest direction; 1 is collapse"),
    "spread": (
        "spread between images",
        "standard deviation of a feature; near 0 all images look alike",
    ),
    "mean_cosine": ("mean cosine", "between two images; near 1 all images look alike"),
    "uniformity": (
        "uniformity",
        "0 if all features point one way; the lower, the more evenly they fill the sphere",
    ),
    "position_share": (
        "position share",
        "variance of the patch features that the position alone explains; near 1 they say where a "
        "patch is, not what it shows",
    ),
    "knn_accuracy": (
        "k-NN accuracy",
        "between training images; compare with chance and between checkpoints",
    ),
    "images": ("images", "that this was measured on"),
}


def shown(value: Any) -> str:
    """A number or a setting as text."""
    if value is None:
        return "none"
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, int) and not isinstance(value, bool):
        return f"{value:,}"
    return ", ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)
