"""The TPU compiler's estimates of a step, read from a program that it emitted.

tests/data/tpu_estimates.txt is a part of ViT-B/16's for v5e:4x4: two of its loops over blocks, of
12 and 5 rounds, and what is outside of them; cut from a compilation with libtpu 0.0.42.1.
"""

import json
import pathlib
import subprocess

import pytest
from conftest import REPOSITORY, load_config_file

from benchmarks import tpu_compile, tpu_estimate
from jepa_jax.config import resolve
from jepa_jax.planning import kernels, needs
from jepa_jax.planning.chips import CHIPS
from jepa_jax.planning.estimate import GROUPS, Estimate, by_group, estimates, seconds

PROGRAM = (REPOSITORY / "tests" / "data" / "tpu_estimates.txt").read_text()
# By hand from the file: 12 rounds of the target encoder's block, 5 of the predictor's, the rest.
CYCLES = {
    "matrix products": 12 * (854422 + 3583745) + 5 * (1646334 + 1064207) + 237158,
    "attention": 12 * (746492 + 2500018 + 1482469) + 5 * (1766912 + 1575818 + 1575861 + 821578),
    "norms, activation, biases": 12 * (356265 + 356265) + 5 * 1371691,
    "loop over blocks": 5 * 329799,
    "casts and layout": 12 * (621468 + 646144) + 5 * (1760832 + 978816) + 967992,
    "optimizer and averages": 1810268 + 1798310 + 1282678 + 1053000,
    "other": 1997,
}


@pytest.fixture(scope="module")
def found():
    return estimates(PROGRAM)


def test_operations_count_as_often_as_their_loop_runs(found):
    assert seconds(found, 1.0) == sum(CYCLES.values())
    assert sorted({one.times for one in found}) == [1, 5, 12]


def test_each_operation_is_in_the_group_of_its_source(found):
    assert tuple(CYCLES) == GROUPS
    assert by_group(found, 1.5e9) == pytest.approx({k: x / 1.5e9 for k, x in CYCLES.items()})


def test_a_program_for_something_else_has_no_estimates():
    assert estimates(PROGRAM.replace("estimated_cycles", "cycles")) == []


def test_clocks_and_matrix_units_make_the_peak():
    units = {"v4": 8 * 128**2, "v5e": 4 * 128**2, "v5p": 8 * 128**2, "v6e": 4 * 256**2}
    assert {name for name, chip in CHIPS.items() if chip.clock} == set(units)
    for name, products in units.items():
        chip = CHIPS[name]
        assert chip.clock is not None
        assert 2 * products * chip.clock == pytest.approx(chip.peak, rel=0.01)


def case(found, **told):
    told = {"chip": "v5e", "images": 128.0, "flops": 1e12, **told}
    return tpu_estimate.Case("b16", told, found, sent=2e9)


def test_the_table_has_a_column_for_each_case(found):
    fits = case(found, arguments=1.5e9, temporaries=12.9e9)
    too_large = case([], does_not_fit="RESOURCE_EXHAUSTED: 20 GB")
    rows = {
        line.split(" | ")[0]: line for line in tpu_estimate.table([fits, too_large]).split("\n")
    }
    total = sum(CYCLES.values()) / 1.5e9
    at_peak = 1e12 / 197e12
    assert rows["| estimated, without links"] == (
        f"| estimated, without links | {total * 1e3:.1f} ms | "
        "does not fit: RESOURCE_EXHAUSTED: 20 GB |"
    )
    assert rows["| share of the peak"] == f"| share of the peak | {at_peak / total:.0%} |  |"
    part = CYCLES["attention"] / 1.5e9
    assert f"{part * 1e3:.1f} ms, {part / total:.0%}" in rows["| - attention"]
    assert "10.0 ms" in rows["| links, at their peak"]  # 2 GB at 200 GB/s
    assert rows["| arguments and temporaries"].endswith("1.50 + 12.90 GB |  |")
    over = tpu_estimate.cells(case(found, arguments=6e9, temporaries=12e9))
    assert over["arguments and temporaries"] == "6.00 + 12.00 GB, too much"


def test_the_longest_operations_are_named_with_their_source(found):
    first, second = tpu_estimate.longest(case(found), 2).splitlines()[1:]
    assert first.split()[:4] == ["28.67", "ms", "x", "12"]  # 12 * 3583745 / 1.5e9
    assert first.endswith("transformer/while/body/closed_call/Block/mlp/fc2/dot_general")
    assert "attention" in second


def test_alike_operations_of_unrolled_blocks_are_listed_as_one():
    block = Estimate(1_500_000, 1, "fusion", "", "jit(f)/jvp(M)/fc1/dot_general")
    other = block._replace(cycles=2_000_000)
    listed = tpu_estimate.longest(case([block, other, block]), 9).splitlines()[1:]
    assert [line.split()[:4] for line in listed] == [
        ["2.00", "ms", "x", "2"],
        ["1.33", "ms", "x", "1"],
    ]


def run_main(module, monkeypatch, capsys, *arguments):
    monkeypatch.setattr("sys.argv", [module.__name__, *arguments])
    with pytest.raises(SystemExit) as ended:
        module.main()
    assert ended.value.code == 2
    return capsys.readouterr().err


def test_bad_arguments_get_one_line(monkeypatch, capsys):
    told = {"config": "no.py", "overrides": [], "topology": "v5e:2x2"}
    error = run_main(tpu_compile, monkeypatch, capsys, json.dumps(told))
    assert error == "error: --config no.py: no such file\n"
    monkeypatch.setattr(tpu_estimate, "compiled", lambda *_: case([]))
    command = ("--topology", "v5e:2x2", "--config", "configs/fashion_mnist.py")
    error = run_main(tpu_estimate, monkeypatch, capsys, *command, "--against", "no")
    assert error.startswith("error: --against no: ")
    assert error.count("\n") == 1
    error = run_main(tpu_estimate, monkeypatch, capsys, *command, "--confg.a=1")
    assert "unrecognized argument: --confg.a=1" in error
    command = ("--topology", "H100:8", "--config", "configs/fashion_mnist.py")
    error = run_main(tpu_estimate, monkeypatch, capsys, *command)
    assert "--topology H100:8: XLA's GPU compiler makes no estimates" in error


def test_a_program_that_holds_no_estimates_is_said(monkeypatch, capsys):
    def run(command, **_):
        pathlib.Path(json.loads(command[2])["program"]).write_text("ENTRY %main () -> f32[] {\n}\n")
        return subprocess.CompletedProcess(command, 0, '{"chip": "v5e"}\n')

    monkeypatch.setattr(tpu_estimate.subprocess, "run", run)
    with pytest.raises(SystemExit) as ended:
        tpu_estimate.compiled("b16", "b16.py", [], "v5e:2x2", REPOSITORY)
    assert ended.value.code == 2
    assert capsys.readouterr().err == "error: b16: the compiled program holds no estimates\n"


@pytest.mark.skipif(not (REPOSITORY / ".git").exists(), reason="not a clone")
def test_another_commit_is_checked_out_for_a_while():
    with tpu_estimate.checkout_of("HEAD") as tree:
        assert (tree / "configs" / "fashion_mnist.py").is_file()
        assert tree != REPOSITORY
    assert not tree.exists()


def test_a_plan_shows_the_estimate_beside_its_lower_bounds(monkeypatch):
    config = load_config_file("fashion_mnist")
    config.model.depth = 1
    config = resolve(config)
    devices = needs.jax.devices()[:1]
    plain = needs.plan(config, devices, "v5e", num_images=1000)
    assert "step_seconds_estimated_by_compiler" not in plain  # the CPU's compiler has none
    monkeypatch.setattr(needs, "estimates", lambda program: estimates(PROGRAM))
    estimated = needs.plan(config, devices, "v5e", num_images=1000)
    total = sum(CYCLES.values()) / 1.5e9
    assert estimated["step_seconds_estimated_by_compiler"] == pytest.approx(total)
    hours = total * estimated["steps"] / 3600
    assert estimated["run_hours_estimated_by_compiler"] == pytest.approx(hours)
    text = needs.table(estimated)
    assert f"{total:.4f} by the compiler's estimate of its operations, links apart" in text
    assert f"{hours:.1f} by the compiler's estimate" in text
    assert needs.table(plain) == "\n".join(
        line for line in text.splitlines() if "by the compiler's estimate" not in line
    )


# As libtpu 0.0.42.1 writes it, without the kernel itself.
CALL = (
    "  %f.1 = bf16[128,72,768]{2,1,0:T(8,128)(2,1)} custom-call(%copy, %copy.1),"
    ' custom_call_target="tpu_custom_call", operand_layout_constraints={bf16[128,72,768]{2,1,0},'
    " bf16[128,196,1536]{2,1,0}}, frontend_attributes={kernel_metadata={}},"
    ' metadata={op_name="jit(train_step)/while/body/closed_call/Block/attention/shard_map/cond/'
    'branch_0_fun/attention_forward_12_heads/pallas_call" stack_frame_id=6}, backend_config={}'
)


def test_kernels_count_their_bundles_for_each_example_in_each_round(monkeypatch, caplog):
    kernel = kernels.Kernel("forward", 12, "bfloat16", ((128, 72, 768), (128, 196, 1536)))
    asked = []

    def compiled(found, topology):
        asked.append((found, topology))
        return {kernel: 1234}

    monkeypatch.setattr(kernels, "_compiled", compiled)
    lines = PROGRAM.splitlines()
    place = next(i for i, line in enumerate(lines) if "closed_call/Block/attention" in line)
    program = "\n".join([*lines[:place], CALL, *lines[place:]])
    (found,) = kernels.kernel_estimates(program, "v5e")
    assert asked == [([kernel], "v5e:2x2")]
    assert (found.cycles, found.times, found.group) == (1234 * 128, 12, "attention")
    assert kernels.kernel_estimates(PROGRAM, "v5e") == []
    assert len(asked) == 1  # nothing to compile
    assert not caplog.records
    monkeypatch.setattr(kernels, "_compiled", lambda found, topology: {})
    assert kernels.kernel_estimates(program, "v5e") == []
    assert "1 of 1 kernels of attention" in caplog.text
    # It can't see into them by itself.
    assert estimates(program) == estimates(PROGRAM)
