"""benchmarks/schools.py: what it trains, what it repeats, and its tables."""

import json
import re
import subprocess
import time

import numpy as np
import pytest
from conftest import REPOSITORY, tiny_config
from matplotlib.image import imread

from benchmarks import schools, schools_run, schools_speed
from benchmarks.schools_table import figure, summary, tables, tuning_table
from jepa_jax.config import resolve
from jepa_jax.objectives.registry import OBJECTIVES


@pytest.fixture(autouse=True)
def in_the_repository(monkeypatch):
    monkeypatch.chdir(REPOSITORY)  # as its docstring says


@pytest.mark.parametrize("name", OBJECTIVES)
def test_only_the_objective_and_its_betas_differ(name):
    def config_of(name):
        return schools_run.school_config(name, steps=200, seed=1, lr=1e-3)

    config, reference = config_of(name), config_of("ijepa")
    assert config.objective.name == name
    assert config.epochs * 1 == 200  # an epoch is a step there
    for section in ("data", "model", "init", "compute", "logging", "checkpoint", "batch_size"):
        assert getattr(config, section) == getattr(reference, section), section
    for field in ("lr", "warmup_epochs", "weight_decay", "final_weight_decay", "final_lr"):
        assert getattr(config.optimizer, field) == getattr(reference.optimizer, field), field
    if hasattr(config.objective, "freeze_prototypes_steps"):
        assert config.objective.freeze_prototypes_steps == 10


def test_every_objective_is_run_with_three_seeds_and_two_budgets_and_ijepa_once():
    assert schools_run.LEARNING_RATES.keys() == OBJECTIVES.keys()
    jobs = schools.jobs_of([*OBJECTIVES, *schools_run.CONTROLS], [0, 1, 2], tune=False)
    *runs, last = jobs
    assert len(runs) == 3 * (len(OBJECTIVES) + 2 + len(OBJECTIVES) - 1)
    assert sum(job["objective"] == "ijepa" for job in runs) == 3
    assert last == {"budget": "speed"}
    tuning = schools.jobs_of(list(OBJECTIVES), [0, 1, 2], tune=True)
    assert len(tuning) == len(OBJECTIVES) * len(schools_run.TRIED)


def test_runs_that_have_a_row_are_not_made_again(tmp_path, monkeypatch):
    made = []

    def run(command, env, **_):
        assert "hugetlb=1" in env["GLIBC_TUNABLES"]
        made.append(json.loads(command[command.index("--worker") + 1]))
        return subprocess.CompletedProcess(command, 0)

    monkeypatch.delenv("GLIBC_TUNABLES", raising=False)
    monkeypatch.setattr(schools.subprocess, "run", run)
    jobs = schools.jobs_of(["ijepa", "mae"], [0], tune=False)
    rows = [job | {"config": schools_run.digest_of(job), "knn": 0.5} for job in jobs[:2]]
    recorded = tmp_path / "recorded.jsonl"
    recorded.write_text("".join(json.dumps(row) + "\n" for row in rows))
    # Since then another learning rate: its row is of another run.
    monkeypatch.setitem(schools_run.LEARNING_RATES, "mae", 2e-3)
    schools.run_all(jobs, recorded, tmp_path, [0])
    assert made == jobs[1:]
    assert {path.name for path in tmp_path.glob("mae-steps-0-*.log")} == {
        f"mae-steps-0-{schools_run.digest_of(jobs[1])}.log"
    }


def test_without_rows_there_is_no_table(tmp_path, monkeypatch, capsys):
    command = ["schools", "--table", "--out", str(tmp_path), "--rows", str(tmp_path / "no.jsonl")]
    monkeypatch.setattr("sys.argv", command)
    with pytest.raises(SystemExit) as ended:
        schools.main()
    assert ended.value.code == 2
    assert "no.jsonl: no such file" in capsys.readouterr().err


def test_of_a_run_that_was_made_again_the_last_row_counts(tmp_path):
    rows = [row("mae", "steps", 0, 0.3), row("mae", "steps", 1, 0.4), row("mae", "steps", 0, 0.5)]
    tuned = [{"objective": "mae", "budget": "tuning", "seed": 0, "lr": lr} for lr in (1e-3, 3e-3)]
    recorded = tmp_path / "recorded.jsonl"
    recorded.write_text("".join(json.dumps(row) + "\n" for row in [*rows, *tuned]))
    assert schools.read_rows(recorded) == [rows[2], rows[1], *tuned]


def row(name, budget, seed, knn):
    trained = {"optimizer_steps": 468, "flops": 6e12 + seed, "lr": 1e-3}
    return {
        "objective": name,
        "budget": budget,
        "seed": seed,
        **dict.fromkeys(("knn", "knn_cosine", "linear"), knn),
        "effective_rank": 12.0,
        "position_share": 0.25,
        **({} if name == "random_init" else trained),
    }


def test_the_tables_hold_means_and_the_lowest_and_highest_seed(tmp_path):
    rows = [row("ijepa", "steps", seed, knn) for seed, knn in enumerate((0.4, 0.41, 0.45))]
    rows += [row("mae", "flops", 0, 0.3), row("random_init", "steps", 0, 0.34)]
    rows += [{"objective": "mae", "budget": "speed", "images_per_second": 61.0, "memory": 3e8}]
    first, second = tables(rows).split("### ")[1:]
    expected = "| I-JEPA | prediction of features | 3 | 0.420 (0.400 to 0.450) |"
    assert expected in first
    assert expected in second  # its arithmetic is what the second gives all
    assert "| MAE" not in first
    # Speed and memory are those of the steps in turns.
    expected = "| MAE | reconstruction | 1 | 0.300 | 0.300 | 0.300 | 12.0 | 0.25 | 468 | 6.0 |"
    assert f"{expected} 61 | 0.30 |" in second
    assert "| random initialisation | no training | 1 | 0.340 |" in first
    short = summary(rows)
    assert "| I-JEPA | prediction of features | 3 | 0.420 | 0.420 | 0.420 | 0.420 |" in short
    assert "| MAE | reconstruction | 1 |  |  | 0.300 | 0.300 |" in short
    figure(rows, tmp_path / "figure.png")
    assert np.std(imread(tmp_path / "figure.png")) > 0.05
    tuned = [{"objective": "mae", "budget": "tuning", "lr": lr, "knn": lr} for lr in (0.1, 0.2)]
    assert "| MAE | 0.100 | 0.200 |" in tuning_table(tuned)


def test_the_documented_tables_are_those_of_the_recorded_rows():
    results = REPOSITORY / "docs" / "results"
    rows = schools.read_rows(results / "schools.jsonl")
    assert tables(rows) in (results / "schools.md").read_text()
    assert summary(rows) in (REPOSITORY / "README.md").read_text()
    # "Here: k-NN 0.419, linear 0.454 after 468 steps; …" on the page of each objective.
    pages = (REPOSITORY / "docs" / "objectives.md").read_text().split("\n## ")
    numbers = {page.split("\n")[0]: page for page in pages}
    for line in summary(rows).splitlines()[2 : 2 + len(OBJECTIVES)]:
        name, _, _, *cells = (cell.strip() for cell in line.strip("| ").split(" | "))
        page = numbers[name[0].upper() + name[1:] if name == "supervised" else name]
        (here,) = (each for each in page.splitlines() if each.startswith("- Here: "))
        assert re.findall(r"\d\.\d{3}", here) == cells[: 2 if name == "I-JEPA" else 4]


def test_steps_take_turns_and_each_is_timed_by_itself(monkeypatch):
    turns = []

    def turn(config):
        def run():
            turns.append(config.model.embed_dim)
            time.sleep(1e-3 * config.model.embed_dim)

        return run, 10 * config.model.embed_dim

    monkeypatch.setattr(schools_speed, "_turn", turn)
    narrow, wide = tiny_config(), tiny_config()
    wide.model.embed_dim = 96
    rows = schools_speed.speeds({"mae": resolve(narrow), "vicreg": resolve(wide)})
    assert turns == [16, 96] * (schools_speed.ROUNDS + 1)
    assert [row["objective"] for row in rows] == ["mae", "vicreg"]
    assert [row["memory"] for row in rows] == [160, 960]
    for row, width in zip(rows, (16, 96), strict=True):
        assert len(row["seconds"]) == schools_speed.ROUNDS
        assert min(row["seconds"]) > 0.99e-3 * width
        images = schools_speed.BATCHES * 16
        assert row["images_per_second"] == pytest.approx(
            images / sorted(row["seconds"])[schools_speed.ROUNDS // 2], rel=0.01
        )
