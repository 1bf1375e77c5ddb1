"""The page about a run: what it holds, and how it looks in a browser."""

import base64
import html
import io
import json
import re
import shutil
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from jepa_jax import report
from jepa_jax.evaluation.diagnosis import read_rows
from jepa_jax.reporting.run_facts import training_hours
from jepa_jax.reporting.tiles import heat, marked, save_strip
from jepa_jax.training.manifest import write_manifest
from jepa_jax.training.run_record import read_run_record, write_run_record

BROWSER = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), ""
)
NASTY = '<script>alert("x")</script> & Co'


def write_report(monkeypatch, capsys, *arguments):
    monkeypatch.setattr(sys, "argv", ["report", *map(str, arguments)])
    code = 0
    try:
        report.main()
    except SystemExit as stopped:
        code = stopped.code
    said = capsys.readouterr()
    return code, said.out, said.err


def probe_result(names, confusion):
    rows = {
        "pretrained": {"accuracy": 0.512, "interval": [0.49, 0.534], "top5": 0.9},
        "random_init": {"accuracy": 0.345, "interval": [0.32, 0.37]},
        "raw_pixels": {"accuracy": 0.333, "interval": [0.31, 0.36]},
    }
    return {
        "protocol": "linear",
        "step": 20,
        "network": "target_encoder",
        "metric": "accuracy",
        "num_train": 10_000,
        "num_test": 2000,
        "data": {},
        "class_names": names,
        "rows": rows,
        "confusion": confusion,
    }


@pytest.fixture(scope="module")
def workdir(tmp_path_factory, small):
    """A run of two checkpoints, as its files are; the encoder was never trained."""
    folder = tmp_path_factory.mktemp("runs") / "tiny <run>"
    shutil.copytree(small.folder, folder / "checkpoints" / "20")
    rows = [
        {"step": step, "loss": 1 / step, "lr": 1e-3, "knn_accuracy": 0.3, "images_per_second": 64.0}
        for step in range(1, 21)
    ]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    write_run_record(folder, start_step=0)
    (folder / "probes").mkdir()
    result = probe_result(["dog", NASTY], [[70, 30], [17, 83]])
    (folder / "probes" / "linear_20.json").write_text(json.dumps(result))
    (folder / "probes" / "broken.json").write_text("{}")
    return folder


@pytest.fixture(scope="module")
def page(workdir):
    """The page of that run, and the folder that it is in."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(report, "IMAGES", 60)
        patch.setattr("jepa_jax.evaluation.diagnosis._VIEWED", 20)
        patch.setattr("jepa_jax.reporting.run_pictures._REFERENCES", 200)
        patch.setattr(report, "_PATCH_IMAGES", 40)
        result = report.write_report([workdir], workdir / "report")
    assert result["problems"] == []
    return (workdir / "report" / "report.html").read_text()


def test_the_page_says_what_was_run_and_measured(page, workdir):
    assert "<title>tiny &lt;run&gt;</title>" in page
    text = html.unescape(re.sub(r"<[^>]*>", " ", page))
    for words in (
        "ijepa",
        "width 16, 2 blocks, 2 heads, patches of 7",
        "fashion_mnist",
        f"jax {read_run_record(workdir)['versions']['jax']}",
        "0.512",
        "0.490 to 0.534",
        "random init",
        "dog taken for " + NASTY + ": 30%",
        "RankMe",
        "Nearest training images",
        "What the predictor guesses",
    ):
        assert words in text, words
    assert read_rows(workdir)[0]["step"] == 20  # computed, as there was none
    assert f"{read_rows(workdir)[0]['rankme']:.4g}" in text


def test_names_of_classes_are_text_and_no_html(page):
    assert NASTY not in page
    assert html.escape(NASTY, quote=True).replace("&quot;", "&#34;") in page
    assert "<script" not in page


def test_all_pictures_are_in_the_page_and_beside_it(page, workdir):
    sources = re.findall(r'<img src="([^"]*)"', page)
    beside = {path.read_bytes() for path in (workdir / "report").glob("*.png")}
    assert len(sources) > 20
    for source in sources:
        kind, data = source.split(",")
        assert kind == "data:image/png;base64"
        held = base64.b64decode(data)
        assert held in beside
        assert min(Image.open(io.BytesIO(held)).size) > 50
    assert not re.findall(r'(?:src|href)="(?!data:|#)', page)  # nothing from elsewhere


def test_a_run_without_probes_is_told_which_command_makes_one(monkeypatch, capsys, tmp_path, small):
    """And without its images the page comes all the same, with the reason."""
    shutil.copytree(small.folder, tmp_path / "checkpoints" / "20")
    config = tmp_path / "checkpoints" / "20" / "config" / "metadata"
    saved = json.loads(config.read_text())
    saved["data"] |= {"source": "folder", "path": "/nowhere"}
    config.write_text(json.dumps(saved))
    write_manifest(tmp_path / "checkpoints" / "20")
    code, said, error = write_report(monkeypatch, capsys, tmp_path)
    assert code == 0, error
    (problem,) = json.loads(said.splitlines()[-1])["problems"]
    assert "/nowhere" in problem
    text = (tmp_path / "report" / "report.html").read_text()
    assert f"configs/probe/linear.py --checkpoint {tmp_path}" in text
    assert html.escape(problem).replace("&#x27;", "&#39;") in text


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["/nowhere"], "/nowhere: no checkpoint there"),
        (["a", "b"], "--out DIR: is needed with several workdirs"),
        (["a", "--config.seed=1"], "unknown argument --config.seed=1"),
    ],
)
def test_mistakes_are_one_line(monkeypatch, capsys, arguments, said):
    code, out, error = write_report(monkeypatch, capsys, *arguments)
    assert (code, out) == (2, "")
    assert error.startswith(f"error: {said}")
    assert error.count("\n") == 1


def test_training_time_is_that_of_all_steps():
    rows = [
        {"step": 10, "images_per_second": 5.0},  # 10 steps of 2 images: 4 s
        {"step": 15, "loss_spike": 4.0},
        {"step": 30, "images_per_second": 20.0},  # 20 steps: 2 s
    ]
    assert training_hours(rows, batch_size=2) == pytest.approx(6 / 3600)


def test_tiles_keep_their_colours_and_frames_their_place(tmp_path):
    red, blue = np.zeros((4, 4, 3)), np.zeros((8, 8, 3))
    red[..., 0], blue[..., 2] = 1.0, 1.0
    save_strip(tmp_path / "s.png", [red, blue])
    strip = np.asarray(Image.open(tmp_path / "s.png"))
    assert strip.shape == (120, 246, 3)
    assert strip[60, 60].tolist() == [255, 0, 0]
    assert strip[60, 180].tolist() == [0, 0, 255]
    framed = marked(np.zeros((4, 4, 3)), (2, 1, 1, 1))  # 60 times as large
    rows, columns = np.nonzero(framed[..., 0])
    assert (rows.min(), rows.max(), columns.min(), columns.max()) == (120, 179, 60, 119)
    assert framed[150, 90].tolist() == [0, 0, 0]  # a frame, not a box
    colours = heat(np.array([[1.0, -1.0, np.nan]]))[0]
    assert colours[0, 0] > 2 * colours[0, 2]
    assert colours[1, 2] > 2 * colours[1, 0]
    assert np.ptp(colours[2]) < 0.02


LOOK = """<!DOCTYPE html><meta charset="utf-8"><pre id="found"></pre>
<iframe style="width:{width}px;height:900px;border:0" srcdoc="{page}"></iframe>
<script>
window.onload = () => {{
  const page = document.querySelector("iframe").contentDocument;
  document.getElementById("found").textContent = "found " + JSON.stringify({{
    page: page.documentElement.scrollWidth,
    width: page.documentElement.clientWidth,
    images: Array.from(page.images, image => image.complete ? image.naturalWidth : 0),
    outside: Array.from(page.images).filter(
      image => image.getBoundingClientRect().right > {width}).length,
  }}) + " end";
}};
</script>"""


@pytest.mark.skipif(not BROWSER, reason="no Chromium or Chrome")
@pytest.mark.parametrize("width", [390, 1280])
def test_a_browser_shows_all_of_it_without_horizontal_scrolling(page, tmp_path, width):
    (tmp_path / "look.html").write_text(LOOK.format(width=width, page=html.escape(page)))
    command = (
        f"{BROWSER} --headless=new --no-sandbox --disable-gpu --disable-quic --no-first-run "
        "--disable-background-networking --disable-component-update --disable-sync "
        f"--disable-dev-shm-usage --user-data-dir={tmp_path}/profile --window-size=1400,1000 "
        f"--enable-logging=stderr --dump-dom file://{tmp_path}/look.html"
    )
    done = subprocess.run(command.split(), capture_output=True, text=True, timeout=60, check=False)
    said = re.search(r"found (\{.*\}) end", html.unescape(done.stdout))
    assert said, done.stderr[-2000:]
    found = json.loads(said[1])
    assert found["width"] <= width
    assert found["page"] <= found["width"]
    assert found["outside"] == 0
    assert len(found["images"]) > 20
    assert min(found["images"]) > 0
    assert "CONSOLE" not in done.stderr
