"""The race of steps on a GPU, where there is none: tensors that say they are on one, a runtime that takes notes.

A fake tensor has a device and no memory; an operation on tensors of two devices fails as it would on a GPU.
"""

import json
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.symbolic_shapes import ShapeEnv
from torch.utils._pytree import tree_map_only

from benchmarks import race, tables
from benchmarks.race import Contender, Timing
from unmask import parallel
from unmask.parallel import World

ROOT = Path(__file__).parent.parent
GPU = "NVIDIA H100 80GB HBM3"


@pytest.fixture
def bench(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    import step
    from steps import cases, floor, on_gpu, ours, peers

    return SimpleNamespace(step=step, cases=cases, floor=floor, on_gpu=on_gpu, ours=ours, peers=peers)


# --- every contender computes where its case says ----------------------------------------------------------


def moved(module, device, *_):
    """nn.Module.to for parameters that are fake: new ones take their place, tied ones stay tied."""
    there = {}
    for part in module.modules():
        for name, old in [*part._parameters.items(), *part._buffers.items()]:
            if old is not None and id(old) not in there:
                new = old.detach().to(device)
                there[id(old)] = old, nn.Parameter(new, old.requires_grad) if isinstance(old, nn.Parameter) else new
            if old is not None:
                (part._parameters if name in part._parameters else part._buffers)[name] = there[id(old)][1]
    return module


def zero_gradients(loss):
    """Tensor.backward without autograd's engine, which starts a thread for each real device."""
    seen, nodes = set(), [loss.grad_fn]
    while nodes:
        node = nodes.pop()
        if node is not None and node not in seen:
            seen.add(node)
            nodes += [before for before, _ in node.next_functions]
            if hasattr(node, "variable"):
                node.variable.grad = torch.zeros_like(node.variable)


@pytest.fixture
def on_fake_gpu(bench, monkeypatch):
    """A function that makes a contender for a case of the name, and takes a step, with tensors of a GPU."""

    def run(name, make, *arguments, counted=False):
        case = bench.cases.case(name)
        mode, batch = FakeTensorMode(shape_env=ShapeEnv() if counted else None), case.batch()
        with mode:
            there = tree_map_only(Tensor, lambda t: mode.from_tensor(t, static_shapes=True).to("cuda"), batch)
            monkeypatch.setattr(bench.cases.Case, "batch", lambda case: there)
            step = make(replace(case, device="cuda"), *arguments)
            return step, step()

    monkeypatch.setattr(parallel, "start", lambda device: World(0, 1, torch.device(device)))
    monkeypatch.setattr(nn.Module, "to", moved)
    monkeypatch.setattr(nn.init, "trunc_normal_", lambda weight, **how: weight)  # it looks at what it drew
    monkeypatch.setattr(Tensor, "backward", zero_gradients)
    monkeypatch.setattr(torch.cuda.amp.common, "amp_definitely_not_available", lambda: False)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda: True)
    return run


@pytest.mark.parametrize("name", ["mae-nano", "beit-nano", "ibot-nano-2-locals"])
def test_our_step_and_its_floor_run_on_the_device_of_the_case(name, bench, on_fake_gpu):
    step, report = on_fake_gpu(name, bench.ours.make, "bf16")
    assert report.loss.device.type == "cuda"
    assert all(p.device.type == "cuda" for p in step.engine.parameters())
    on_fake_gpu(name, bench.floor.make, "bf16", True)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("who", "name"),
    [("transformers", "mae-nano"), ("transformers", "beit-nano"), ("lightly", "mae-nano"),
     ("lightly", "ibot-nano-2-locals")],
)  # fmt: skip
def test_a_package_runs_on_the_device_of_the_case(who, name, bench, on_fake_gpu, monkeypatch):
    pytest.importorskip(who)
    monkeypatch.setattr(nn.Module, "load_state_dict", lambda *_, **__: None)
    monkeypatch.setattr(Tensor, "item", lambda value: 1.0)
    on_fake_gpu(name, getattr(bench.peers, who), "bf16", counted=True)


# --- turns, memory, processes ---------------------------------------------------------------------------------


@pytest.fixture
def notes(monkeypatch):
    """What the CUDA runtime is asked, in order."""
    asked = []
    for name in ("synchronize", "empty_cache"):
        monkeypatch.setattr(torch.cuda, name, lambda name=name: asked.append(name))
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda: 5_000_000)
    return asked


def test_a_turn_on_a_gpu_ends_when_the_gpu_is_done_and_gives_memory_back(bench, notes):
    turn = bench.on_gpu.make(lambda case, how: lambda: notes.append(how), bench.cases.case("mae-nano"), "step")
    assert notes == ["empty_cache"]
    notes.clear()
    took = turn()
    warm, counted = ["step"] * bench.on_gpu.WARM, ["step"] * bench.on_gpu.COUNTED
    assert notes == [*warm, "synchronize", *counted, "synchronize", "empty_cache"]
    assert 0 < took < 0.1 and type(took).__name__ == "Took"


def test_a_case_that_does_not_fit_names_the_cure(bench, notes):
    def full():
        raise torch.OutOfMemoryError("Tried to allocate 4 GiB")

    turn = bench.on_gpu.make(lambda case: full, bench.cases.case("mae-nano"))
    with pytest.raises(RuntimeError, match=r"mae-nano does not fit at 16 images .* fewer --images.*4 GiB"):
        turn()


def asks_nothing():
    return lambda: None


def cuda_is_started():
    return int(torch.cuda.is_initialized())


def test_memory_is_what_the_contender_s_own_process_is_asked_and_cuda_is_not_started_before_it():
    ((_, _, peak),), _ = race.race([Contender("one", asks_nothing)], rounds=1, threads=1, peak=cuda_is_started)
    assert peak == 0


# --- what is chosen, and what is written ------------------------------------------------------------------------


def names(contenders):
    return [contender.name for contender in contenders]


def test_on_a_gpu_the_same_contenders_run_and_ours_compiled_is_what_they_are_compared_with(bench):
    on_cpu = bench.cases.case("mae-nano")
    (on_gpu,) = bench.cases.chosen(["mae-nano"], False, "cuda", None)
    there = bench.step.contenders(on_gpu, None, True)
    here = names(bench.step.contenders(on_cpu, None, True))
    by_block = "unmask bf16, compiled by block"
    assert [n for n in names(there) if n != by_block] == [n for n in here if n != "unmask bf16, PyTorch's kernels"]
    assert by_block in names(there)
    assert all(c.make is bench.on_gpu.make and c.arguments[1].device == "cuda" for c in there)
    assert bench.step.reference("cuda", True) in names(there)
    assert bench.step.reference("cuda", False) == "unmask bf16"


@pytest.mark.parametrize("precision", ["bf16", "fp32"])
def test_on_a_cpu_ours_is_in_the_precision_it_multiplies_and_so_is_the_floor(precision, bench, monkeypatch):
    monkeypatch.setattr(bench.step, "hardware_precision", lambda device: precision)
    assert {bench.step.reference("cpu", compiled) for compiled in (True, False)} == {f"unmask {precision}"}
    case = bench.cases.case("mae-nano")
    floors = [c for c in bench.step.contenders(case, None, False) if c.name.startswith("floor")]
    assert {c.arguments[1] for c in floors} == {precision}


def test_cases_on_a_cpu_are_as_ever_and_those_of_a_gpu_have_its_batches(bench):
    cases = bench.cases
    assert cases.chosen([], False, "cpu", None) == list(cases.CASES)
    assert cases.chosen([], True, "cpu", None) == list(cases.QUICK)
    there = {case.name: case.images for case in cases.chosen([], False, "cuda", None)}
    assert there == cases.GPU_IMAGES and {"mae-base", "mae-large", "beit-base", "ibot-small", "ibot-base"} <= set(there)
    (named,) = cases.chosen(["mae-small"], False, "cuda", 64)
    assert (named.images, named.device) == (64, "cuda")


@pytest.mark.parametrize("name", ["mae-nano", "beit-nano", "ibot-nano-2-locals"])
def test_operations_by_formula_are_the_products_that_the_step_makes(name, bench):
    case = bench.cases.case(name)
    made = bench.floor.flops(bench.floor.written_down(bench.ours.make(case, "bf16", "torch")))
    assert case.flops() * case.images == pytest.approx(made, rel=0.02)


def test_our_rate_is_operations_over_time_and_its_share_of_the_peak_is_told(bench):
    case = bench.cases.case("mae-nano")
    rows = tables.compare([Timing("unmask bf16", [0.5], 1), Timing("official bf16", [1.0], 1)], "unmask bf16", 16)
    (said,) = bench.step.computed(case, rows, 2 * 32 * case.flops() / 1e12)
    assert f"{32 * case.flops() / 1e12:.3g} TFLOP/s, 50.0% of" in said and said.startswith("mae-nano, 16 images: ")


def test_attention_in_a_fused_kernel_is_part_of_the_floor(bench):
    case = bench.cases.case("mae-nano")
    seen = bench.floor.written_down(bench.ours.make(case, "fp32"))  # the CPU's kernel; on a GPU bf16 has one, too
    blocks = case.method.vit.depth + case.method.decoder_depth
    assert len(seen.attention) == 2 * blocks and len(set(seen.attention)) == 4
    (function, arguments, more) = seen.kept[seen.attention[0]]
    assert function(*arguments, **more)[0].shape == arguments[0].shape


def test_rows_of_cases_that_are_done_survive_what_comes_after(tmp_path):
    rows = tables.compare([Timing("ours", [1.0], 1)], "ours", 8)
    about = {"date": "2026-01-01 00:00", "machine": "a-gpu"}
    results = tables.Results(tmp_path, "step", about)

    def two_cases():
        with results:
            results.add("first", rows)
            assert "| first | ours | 8 |" in results.file.read_text()
            results.notes.append("first: left out")
            raise KeyboardInterrupt  # during the second

    with pytest.raises(KeyboardInterrupt):
        two_cases()
    assert results.file.read_text().endswith(" | 0 | 1.00 |\n\n- first: left out\n")


def test_results_on_a_gpu_are_called_after_it():
    about = tables.facts(GPU)
    assert about["machine"] == "nvidia-h100-80gb-hbm3" and about["host"] == tables.machine()
    assert "host" not in tables.facts()


def test_a_gpu_that_is_not_there_is_refused(bench, monkeypatch, capsys):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(sys, "argv", ["step.py", "--device", "cuda"])
    with pytest.raises(SystemExit):
        bench.step.read_arguments()
    assert "torch sees no GPU here; use --device cpu" in capsys.readouterr().err


def test_a_race_on_a_gpu_is_measured_there_from_the_command_line_to_the_file(bench, monkeypatch, tmp_path):
    def race_there(chosen, rounds, threads, peak, lock):
        assert peak is bench.on_gpu.peak_memory and all(c.make is bench.on_gpu.make for c in chosen)
        return [Timing(c.name, [1.0] * rounds, 10) for c in chosen if "official" not in c.name], {}

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(bench.step, "gpu", lambda: GPU)
    monkeypatch.setattr(bench.step, "race", race_there)
    file = tmp_path / "lines.json"
    words = ["--cases", "mae-base", "--peak-tflops", "790", "--json", file, "--results", tmp_path]
    monkeypatch.setattr(sys, "argv", ["step.py", *map(str, words)])
    bench.step.main()
    written = (tmp_path / "nvidia-h100-80gb-hbm3.md").read_text()
    assert "| mae-base, 512 images | unmask bf16, compiled | 512 |" in written and "% of 790" in written
    lines = [json.loads(line) for line in file.read_text().splitlines()]
    assert {line["machine"] for line in lines} == {"nvidia-h100-80gb-hbm3"} and lines[0]["images"] == 512
    assert f"({lines[0]['gflop_an_image']:.3g} GFLOP an image)" in written
