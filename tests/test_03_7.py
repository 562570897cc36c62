"""Notebook 03.7: every way to share a training step equals the single process."""

import math
import os
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import psutil
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.notebook_code import namespace
from utils.props import processes, ray_cluster
from utils.runtime import Problem

pytest.importorskip("ray", reason="the notebook imports Ray (extra: operations)")

ROOT = Path(__file__).parent.parent
NAMES = """CONFIG NOTHING Stage Traffic all_stages best_of bubble cut_tensors
data_parallel fsdp gap gradients layer_bytes loss_of make_model MODELS next_token_loss
pipeline ring_all_reduce ring_bytes split_linear step_seconds tensor_parallel
tensor_plan uneven_idle weigh_collectives zero zero_bytes"""
TAUGHT = namespace("03.7", NAMES.split())
SIZES = st.integers(1, 12)


@pytest.fixture(scope="module")
def pair():
    """Two processes for all tests of this file."""
    with processes.Group(2) as group:
        yield group


@pytest.fixture(scope="module")
def batch():
    torch.manual_seed(3)
    return torch.randint(TAUGHT["CONFIG"].vocab_size, (4, 17))


@pytest.fixture(scope="module")
def truth(batch):
    """Gradients of one process, and its model."""
    model = TAUGHT["make_model"]()
    TAUGHT["loss_of"](model, batch).backward()
    return TAUGHT["gradients"](model), model


def weight_bytes(model):
    return sum(p.nbytes for p in model.parameters())


def test_data_parallel_equals_one_process_and_sends_what_it_should(pair, batch, truth):
    expected, model = truth
    for found, sent in pair.run(TAUGHT["data_parallel"], batch):
        assert TAUGHT["gap"](found, expected) < 1e-4
        assert sent == {"all_reduce": weight_bytes(model)}  # 2 (k - 1) / k is 1


def test_fsdp_equals_one_process_and_keeps_half(pair, batch, truth):
    expected, model = truth
    for found, sent, kept in pair.run(TAUGHT["fsdp"], batch):
        assert TAUGHT["gap"](found, expected) < 1e-4
        assert kept * 2 == weight_bytes(model)
        assert sum(sent.values()) == pytest.approx(1.5 * weight_bytes(model), rel=0.01)


@pytest.mark.parametrize("sequence", [False, True])
def test_tensor_and_sequence_parallel_equal_one_process(pair, batch, truth, sequence):
    expected, _ = truth
    found, sent, _ = pair.run(TAUGHT["tensor_parallel"], batch, sequence)[0]
    assert TAUGHT["gap"](found, expected) < 1e-4
    activation = 4 * 16 * TAUGHT["CONFIG"].hidden_size * 4
    if not sequence:
        assert sum(sent.values()) == 4 * TAUGHT["CONFIG"].n_layers * activation


@pytest.mark.parametrize("kind", ["GPipe", "1F1B"])
def test_pipelines_equal_one_process_and_send_activations(pair, batch, truth, kind):
    expected, _ = truth
    results = pair.run(TAUGHT["pipeline"], batch, kind, 2, 0.0)
    found = results[0]["grad"] | results[1]["grad"]
    assert set(found) == set(expected)
    assert TAUGHT["gap"](found, expected) < 1e-4
    activation = 4 * 16 * TAUGHT["CONFIG"].hidden_size * 4
    assert [r["sent"] for r in results] == [{"send": activation}] * 2


def test_zero_takes_the_step_of_one_process_and_keeps_the_bytes(pair, batch):
    model = TAUGHT["make_model"]()
    TAUGHT["loss_of"](model, batch).backward()
    torch.optim.AdamW(model.parameters(), lr=1e-3, eps=1e-4).step()
    after = torch.nn.utils.parameters_to_vector(model.parameters())
    for results in pair.run(TAUGHT["all_stages"], batch):
        for stage, (kept, stepped) in enumerate(results):
            assert (stepped - after).abs().max() < 1e-5
            expected = TAUGHT["zero_bytes"](stage, len(after), 2)
            assert list(kept.values()) == expected


def test_ring_and_split_matrices(pair):
    def ring(all_reduce):
        torch.manual_seed(torch.distributed.get_rank())
        tensor = torch.randn(10)
        ours, sent = all_reduce(tensor)
        torch.distributed.all_reduce(tensor)
        return torch.allclose(ours, tensor), sent

    assert pair.run(ring, TAUGHT["ring_all_reduce"]) == [(True, 40)] * 2
    sent = pair.run(TAUGHT["split_linear"], 0)[0]
    assert sent["row", "forward"] == 2 * sent["column", "forward"]
    assert sent["row", "backward"] * 2 == sent["column", "backward"]


def test_real_bytes_are_those_of_the_ring(pair):
    if not sys.platform.startswith("linux"):
        pytest.skip("only Linux tells how many bytes a connection has delivered")
    for error, sent, size in pair.run(TAUGHT["weigh_collectives"], 0):
        assert error < 1e-5
        for name in ("our ring", "all_reduce"):
            expected = TAUGHT["ring_bytes"]("all_reduce", size, 2)
            assert sent[name] == pytest.approx(expected, rel=0.02)


def test_one_forward_one_backward_keeps_few(pair, batch):
    peak = {
        kind: pair.run(TAUGHT["pipeline"], batch, kind, 4, 0.0)[0]["peak"]
        for kind in ("GPipe", "1F1B")
    }
    assert peak["1F1B"] < 0.6 * peak["GPipe"]  # two of four micro-batches


def test_saved_counts_a_memory_once_and_forgets_it():
    model = torch.nn.Linear(8, 8)
    saved = processes.Saved(model)
    with saved.hooks():
        y = model(torch.randn(4, 8)).exp()  # keeps its input, and its own output
        z = y * y  # keeps y, which is kept already
    assert saved.now == saved.peak == 2 * 4 * 8 * 4
    z.sum().backward()
    del y, z
    assert saved.now == 0


@given(SIZES, SIZES)
@settings(max_examples=60, deadline=None)
def test_bubble_of_equal_stages_is_the_formula(micro, stages):
    share = TAUGHT["uneven_idle"]([1] * stages, micro)
    assert math.isclose(share, TAUGHT["bubble"](micro, stages), abs_tol=1e-12)


def test_formulas():
    assert TAUGHT["bubble"](1, 4) == 0.75
    assert TAUGHT["bubble"](4, 4) == pytest.approx(3 / 7)
    assert TAUGHT["zero_bytes"](0, 10, 8) == [20, 20, 120]
    assert 16 / sum(TAUGHT["zero_bytes"](1, 1, 10**9)) == pytest.approx(4)
    assert 16 / sum(TAUGHT["zero_bytes"](2, 1, 10**9)) == pytest.approx(8)
    assert TAUGHT["layer_bytes"](1, False, 80) == TAUGHT["layer_bytes"](1, True, 80)
    model = TAUGHT["MODELS"]["530B"]
    assert TAUGHT["step_seconds"](model, 256, 1, 1) == math.inf  # does not fit
    assert TAUGHT["step_seconds"](TAUGHT["MODELS"]["70B"], 256, 1, 1) < math.inf  # ZeRO


def test_an_error_is_one_sentence_and_ends_the_group():
    def bad():
        if torch.distributed.get_rank() == 1:
            raise ValueError("no such layer")
        torch.distributed.barrier()

    group = processes.Group(2)
    running = [psutil.Process(p.pid) for p in group.processes]
    with pytest.raises(
        Problem, match=r"Process 1 of the group failed: .*no such layer"
    ):
        group.run(bad)
    assert not any(p.is_running() for p in running)
    with pytest.raises(Problem, match="start a new Group"):
        group.run(bad)
    with pytest.raises(Problem, match="1 to 8"):
        processes.Group(0)


def test_nothing_outlives_a_killed_notebook():
    """The processes end also when whoever started them is killed."""
    script = """
        import time
        from utils.props.processes import Group
        group = Group(1)
        print(*(p.pid for p in group.processes), flush=True)
        time.sleep(60)
    """
    child = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(script)],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        text=True,
    )
    running = [psutil.Process(int(pid)) for pid in child.stdout.readline().split()]
    assert len(running) == 1
    child.kill()
    child.wait()
    _, alive = psutil.wait_procs(running, timeout=20)
    assert not alive


def test_ray_cluster_works_ends_and_leaves_nothing(tmp_path):
    import ray

    before = {name for name in os.environ if name.startswith("RAY_")}
    with ray_cluster.RayCluster(1, tmp_path) as cluster:
        ray.init(cluster.address, log_to_driver=False, logging_level="ERROR")
        assert ray.get(ray.remote(lambda: 6 * 7).remote()) == 42
        assert (tmp_path / "ray").exists()
    assert not ray.is_initialized()
    assert list(tmp_path.iterdir()) == []
    assert {name for name in os.environ if name.startswith("RAY_")} == before
    deadline = time.monotonic() + 20
    while names := [p for p in psutil.Process().children() if "ray" in p.name()]:
        assert time.monotonic() < deadline, names
        time.sleep(0.2)


def test_ray_that_cannot_start_is_one_sentence(tmp_path, monkeypatch):
    def broken(cpus, home):
        raise RuntimeError("the port is taken. And much more.")

    monkeypatch.setattr(ray_cluster, "_ray_node", broken)
    with pytest.raises(Problem, match=r"could not start .*: the port is taken[.]$"):
        ray_cluster.RayCluster(1, tmp_path)
    monkeypatch.setattr("utils.runtime.find_spec", lambda name: None)
    with pytest.raises(Problem, match="needs ray: install"):
        ray_cluster.RayCluster(1, tmp_path)
