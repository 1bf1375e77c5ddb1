"""benchmarks/plan_table.py: a row of PLAN.md from what `train --plan` says."""

import json
import subprocess

import pytest

from benchmarks import plan_table

FOUND = {
    "chip": "v5e",
    "devices": 16,
    "compiler": "tpu",
    "mesh": {"data": 4, "fsdp": 4, "tensor": 1},
    "remat": "dots",
    "parameters": {"encoder": 85_600_000, "predictor": 11_200_000},
    "state_bytes_per_device": 380_000_000,
    "flops_per_image": {"encoder": 50.0e9, "predictor": 32.1e9},
    "memory_per_device": {"peak": 5.6e9, "fits": True},
    "collectives_per_step": {
        "all-gather": {"sent_bytes": 1.25e9},
        "all-reduce": {"sent_bytes": 0.5e9},
    },
    "step_seconds_at_least": {"compute": 0.0533, "memory": 0.001, "links": 0.003},
    "run_hours_at_least": 5.55,
    "step_seconds_estimated_by_compiler": 0.1271,
    "run_hours_estimated_by_compiler": 13.22,
    "run_hours_at_mfu": 11.1,
}


def test_a_row_holds_what_the_plan_says():
    expected = (
        "| 7 | vitb | v5e | 16 | TPU | 4 x 4 x 1 | dots | 85.6 + 11.2 M | 82.1 | 0.38 | 5.6 "
        "| 0.50 / 1.25 / 0.00 | 53.3 (compute) | 5.5 | 127 | 13.2 | 11.1 |"
    )
    assert plan_table.row("7", "vitb", FOUND) == expected
    on_gpu = FOUND | {"compiler": "gpu", "step_seconds_estimated_by_compiler": None}
    assert "5.5 |  |  | 11.1 |" in plan_table.row("7", "vitb", on_gpu)
    too_much = FOUND | {"memory_per_device": {"peak": 18.8e9, "fits": False}}
    assert "| **no**: 18.8 |" in plan_table.row("7", "vitb", too_much)


def test_a_row_that_the_compiler_gave_up_on_says_how_much_it_needed():
    says = "XLA:TPU compile permanent error. Used 19.29G of 15.75G hbm."
    found = FOUND | {"memory_per_device": {"fits": False, "compiler_says": says}}
    line = plan_table.row("9", "vith", found)
    assert "| **no**: 19.29 GiB |" in line
    assert line.count("|") == plan_table.row("9", "vith", FOUND).count("|")


def test_every_row_of_the_file_has_its_command_and_the_other_way_round():
    text = plan_table.PLAN.read_text()
    commands = dict(plan_table._COMMAND.findall(text))
    assert len(commands) >= 23
    for number in commands:
        assert f"| {number} | new |" in plan_table.rewritten(text, number, f"| {number} | new |")
    rows = [line for line in text.splitlines() if line.startswith("| ") and line[2].isdigit()]
    assert len(rows) == len(commands)


def test_only_the_rows_asked_for_are_rewritten_and_one_that_fails_stays(
    tmp_path, monkeypatch, capsys
):
    kept = "| 2 | old |"
    text = f"| 1 | old |\n{kept}\n| 3 | old |\n\n- 1: `--config a/vitb.py`\n- 2: `--config b.py`\n"
    file = tmp_path / "PLAN.md"
    file.write_text(text)

    def run(command, **_):
        if "b.py" in command:
            raise subprocess.CalledProcessError(2, command)
        return subprocess.CompletedProcess(command, 0, stdout=f"a table\n{json.dumps(FOUND)}\n")

    monkeypatch.setattr(plan_table, "PLAN", file)
    monkeypatch.setattr(subprocess, "run", run)
    monkeypatch.setattr("sys.argv", ["plan_table"])
    with pytest.raises(SystemExit, match="error: rows 2 failed and are as they were"):
        plan_table.main()
    line = plan_table.row("1", "vitb", FOUND)
    assert file.read_text() == text.replace("| 1 | old |", line)
    assert line in capsys.readouterr().out
