"""Packing, training, exact resume on one process and two, and bits per byte."""

import json
import math
import os
import random
import signal
import subprocess
import sys
import time
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file
from torch import nn

from projects.llama3_qlora import distributed
from projects.llama3_qlora.config import LlamaConfig
from projects.llama3_qlora.data import (
    IGNORED,
    Batch,
    Mixture,
    PackedTokens,
    write_tokens,
)
from projects.llama3_qlora.evaluate import bits_per_byte
from projects.llama3_qlora.model import Llama
from projects.llama3_qlora.recipe import TrainConfig, flops_per_token, make_optimizer
from projects.llama3_qlora.train import loss_sum, recomputing, train, update
from tests.process_family import kill
from utils.runtime import ROOT, Problem

CONFIG = LlamaConfig(64, 32, 64, 2, 4, 2, max_positions=64, tie_embeddings=True)
RECIPE = TrainConfig(
    steps=12, learning_rate=3e-3, warmup=3, log_every=4, save_every=5, seed=3
)
CONTEXT, ROWS = 24, 4


def model(seed: int = 0, config: LlamaConfig = CONFIG) -> Llama:
    torch.manual_seed(seed)
    return Llama(config)


@pytest.fixture(scope="module")
def tokens(tmp_path_factory) -> Path:
    """Documents that count upwards in steps of their own: easy to learn."""
    rng = np.random.default_rng(0)
    path = tmp_path_factory.mktemp("tokens") / "count.npy"
    documents = [
        (rng.integers(64) + np.arange(n) * rng.integers(1, 4)) % 64
        for n in rng.integers(2, 60, size=200)
    ]
    write_tokens(documents, path)
    return path


@pytest.fixture
def mixture(tokens) -> Mixture:
    return Mixture({tokens: 1.0}, CONTEXT, ROWS)


# --- data -----------------------------------------------------------------------------


def numbered(lengths: list[int]) -> list[list[int]]:
    """Documents in which every token is another number, so that it says where it is."""
    ends = np.cumsum(lengths)
    return [list(range(end - n, end)) for n, end in zip(lengths, ends, strict=True)]


@settings(max_examples=40, deadline=None)
@given(
    lengths=st.lists(st.integers(0, 30), min_size=4, max_size=40),
    context=st.integers(1, 12),
    seed=st.integers(0, 99),
)
def test_no_target_crosses_a_boundary(tmp_path_factory, lengths, context, seed):
    path = tmp_path_factory.mktemp("packed") / "t.npy"
    if sum(n for n in lengths if n > 1) < context + 1:
        lengths = [*lengths, context + 1]
    write_tokens(numbered(lengths), path)
    packed = PackedTokens(path, context)
    home = np.repeat(np.arange(len(lengths)), lengths)  # token: its document
    asked = []
    for row in packed._pack(seed, 0):
        assert sum(end - first for first, end in row) <= context + 1
    for index in range(packed.rows_per_epoch):
        inputs, targets, documents = packed.row(index, seed)
        real = targets != IGNORED
        np.testing.assert_array_equal(targets[real], inputs[real] + 1)
        np.testing.assert_array_equal(home[targets[real]], home[inputs[real]])
        for i in np.flatnonzero(real):  # numbered alike means of one document
            same = np.flatnonzero(documents == documents[i])
            assert (np.diff(same) == 1).all()
            assert set(home[inputs[same]]) == {home[inputs[i]]}
        asked += targets[real].tolist()
    assert len(asked) == len(set(asked))  # nothing twice in an epoch


@settings(max_examples=20, deadline=None)
@given(lengths=st.lists(st.integers(1, 40), min_size=5, max_size=40))
def test_a_packing_asks_for_every_token_once_and_cuts_no_short_document(
    tmp_path_factory, lengths
):
    path = tmp_path_factory.mktemp("packed") / "t.npy"
    write_tokens(numbered([*lengths, 40]), path)
    packed = PackedTokens(path, 10)
    pieces = [piece for row in packed._pack(5, 2) for piece in row]
    asked = sorted(t for first, end in pieces for t in range(first + 1, end))
    starts = np.load(path.with_suffix(".starts.npy"))
    assert asked == sorted(set(range(starts[-1])) - set(starts[:-1].tolist()))
    short = {(a, b) for a, b in pairwise(starts.tolist()) if 2 <= b - a <= 11}
    assert short <= set(pieces)


def test_a_packed_document_is_read_as_if_alone(mixture):
    batch = mixture.batch(0, 0)
    llama = model().double().eval()
    with torch.no_grad():
        packed = llama(batch.inputs, documents=batch.documents)
        without = llama(batch.inputs)
        compared = 0
        for row in range(ROWS):
            for number in batch.documents[row].unique():
                here = batch.documents[row] == number
                alone = llama(batch.inputs[row][here][None])[0]
                torch.testing.assert_close(packed[row][here], alone)
                compared += 1
    assert compared > ROWS
    assert not torch.allclose(packed, without)


def test_masked_tokens_are_no_targets(tmp_path):
    documents = [[1, 2, 3, 4], [5, 6, 7]]
    masks = [[0, 0, 1, 1], [1, 0, 1]]
    write_tokens(documents, tmp_path / "chat.npy", masks)
    targets = PackedTokens(tmp_path / "chat.npy", 6).row(0, 0)[1]
    assert sorted(t for t in targets if t != IGNORED) == [3, 4, 7]
    write_tokens(documents, tmp_path / "chat.npy")  # without masks: an old one is gone
    targets = PackedTokens(tmp_path / "chat.npy", 6).row(0, 0)[1]
    assert sorted(t for t in targets if t != IGNORED) == [2, 3, 4, 6, 7]


def test_a_batch_is_a_pure_function(tokens):
    first, second = (Mixture({tokens: 1}, CONTEXT, ROWS) for _ in range(2))
    wanted = [first.batch(step, 7) for step in range(80)]  # more than one epoch
    assert first.sources[0].rows_per_epoch < 80 * ROWS
    for step in random.Random(0).sample(range(80), 20):
        for ours, theirs in zip(second.batch(step, 7), wanted[step], strict=True):
            assert torch.equal(ours, theirs)
    assert not torch.equal(first.batch(0, 8).inputs, wanted[0].inputs)
    epoch = first.sources[0].rows_per_epoch
    rows = {tuple(first.sources[0].row(i, 7)[0]) for i in range(epoch)}
    again = {tuple(first.sources[0].row(i, 7)[0]) for i in range(epoch, 2 * epoch)}
    assert rows != again


def test_processes_share_one_batch(mixture):
    whole = mixture.batch(3, 1).inputs
    parts = [mixture.batch(3, 1, rank, 2).inputs for rank in range(2)]
    assert torch.equal(torch.stack(parts, 1).flatten(0, 1), whole)
    with pytest.raises(Problem, match="not a multiple of 3"):
        mixture.batch(0, 0, 0, 3)


def test_sources_are_mixed_by_weight(tmp_path):
    for number in (1, 2):
        write_tokens([[number] * 9] * 7, tmp_path / f"{number}.npy")
    weights = {tmp_path / "1.npy": 3.0, tmp_path / "2.npy": 1.0}
    mixture = Mixture(weights, 8, 100)
    seen = torch.cat([mixture.batch(step, 0).inputs[:, 0] for step in range(10)])
    assert (seen == 1).sum() == 750
    early = seen[:100]
    assert 60 <= (early == 1).sum() <= 90


def test_large_ids_need_32_bits(tmp_path):
    write_tokens([[1, 65_535]], tmp_path / "a.npy")
    write_tokens([[1, 65_536]], tmp_path / "b.npy")
    assert np.load(tmp_path / "a.npy").dtype == np.uint16
    assert PackedTokens(tmp_path / "b.npy", 1).row(0, 0)[1] == [65_536]


def test_data_problems(tmp_path, tokens):
    with pytest.raises(Problem, match=r"There is no no\.npy"):
        PackedTokens(tmp_path / "no.npy", 8)
    with pytest.raises(Problem, match="too few"):
        PackedTokens(tokens, 10**6)
    with pytest.raises(Problem, match=r"something\.npy"):
        write_tokens([[1]], tmp_path / "tokens.bin")
    with pytest.raises(Problem, match="no tokens"):
        write_tokens([], tmp_path / "a.npy")
    with pytest.raises(Problem, match="mask of its own length"):
        write_tokens([[1, 2]], tmp_path / "a.npy", [[1]])
    with pytest.raises(Problem, match="weights above 0"):
        Mixture({tokens: 0}, 8, 1)
    path = tmp_path / "cut.npy"
    write_tokens([[1, 2, 3]] * 9, path)
    write_tokens([[1, 2, 3]] * 8, tmp_path / "other.npy")
    (tmp_path / "other.starts.npy").replace(tmp_path / "cut.starts.npy")
    with pytest.raises(Problem, match="do not fit together"):
        PackedTokens(path, 4)
    path.write_bytes(path.read_bytes()[:-5])
    with pytest.raises(Problem, match=r"cut\.npy is damaged"):
        PackedTokens(path, 4)


# --- training on one process ----------------------------------------------------------


def test_it_learns_and_logs(mixture, tmp_path):
    recipe = replace(RECIPE, steps=60, log_every=20, evaluate_every=30, peak_flops=1e12)
    llama = model()
    log = train(llama, mixture, recipe, tmp_path, lambda m: {"answer": 42.0}, None)
    text = (tmp_path / "log.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in text] == log
    lines = [line for line in log if "loss" in line]
    assert [line["step"] for line in lines] == [20, 40, 60]
    assert lines[-1]["loss"] < lines[0]["loss"] - 0.3
    assert [line["step"] for line in log if "answer" in line] == [30, 60]
    last = lines[-1]
    assert last["tokens"] == 60 * ROWS * CONTEXT
    assert last["learning_rate"] == pytest.approx(recipe.rate(59))
    assert last["gradient_norm"] > 0
    mfu = last["tokens_per_second"] * flops_per_token(llama, CONTEXT) / 1e12
    assert last["mfu"] == pytest.approx(mfu)


def test_rate_warms_up_and_decays_to_its_share():
    recipe = TrainConfig(steps=100, learning_rate=1.0, min_rate=0.2, warmup=10)
    assert recipe.rate(0) == pytest.approx(0.1)
    assert recipe.rate(10) == pytest.approx(1.0)
    assert recipe.rate(55) == pytest.approx(0.6)
    assert recipe.rate(100) == pytest.approx(0.2)


def test_only_matrices_are_decayed():
    untied = replace(CONFIG, tie_embeddings=False)
    for llama in (model(), model(config=untied)):
        names = {weight: name for name, weight in llama.named_parameters()}
        decayed, norms, ends = (
            {names[weight] for weight in group["params"]}
            for group in make_optimizer(llama, RECIPE).param_groups
        )
        assert len(decayed) == 2 * 7
        assert all(name.endswith("proj.weight") for name in decayed)
        assert all("norm" in name for name in norms)
        assert decayed | norms | ends == set(names.values())


def test_the_embedding_has_a_learning_rate_of_its_own(mixture):
    recipe = replace(RECIPE, optimizer="muon", embedding_rate=0.25)
    llama = model()
    optimizer = make_optimizer(llama, recipe)
    update(llama, optimizer, mixture, recipe, 0)
    rates = [group["lr"] for group in optimizer.param_groups]
    assert rates == [recipe.rate(0)] * 2 + [0.25 * recipe.rate(0)]


class Fixed:
    """The same large batch, whole or in unequal parts."""

    context, batch_size = CONTEXT, ROWS

    def __init__(self, parts: list[Batch]) -> None:
        self.parts = parts

    def batch(self, step: int, seed: int, rank: int, world: int) -> Batch:
        return self.parts[step % len(self.parts)]


@pytest.mark.parametrize("checkpointed", [False, True])
def test_accumulation_equals_the_large_batch(mixture, checkpointed):
    whole = mixture.batch(0, 0)
    whole.targets[0] = IGNORED  # the parts differ much in targets
    parts = [Batch(*(t[:2] for t in whole)), Batch(*(t[2:] for t in whole))]
    results = []
    for batches in ([whole], parts):
        llama, recipe = model().double(), replace(RECIPE, accumulation=len(batches))
        optimizer = make_optimizer(llama, recipe)
        numbers = update(llama, optimizer, Fixed(batches), recipe, 0)
        results.append((numbers, [p.detach() for p in llama.parameters()]))
    assert results[0][0] == pytest.approx(results[1][0], rel=1e-6)
    for large, small in zip(results[0][1], results[1][1], strict=True):
        torch.testing.assert_close(large, small, rtol=1e-6, atol=1e-8)


def test_recomputed_activations_change_nothing(mixture, tmp_path):
    plain, recomputed = model(), model()
    train(plain, mixture, RECIPE, tmp_path / "a", label=None)
    recipe = replace(RECIPE, checkpoint_activations=True)
    train(recomputed, mixture, recipe, tmp_path / "b", label=None)
    assert list(plain.state_dict()) == list(recomputed.state_dict())
    for a, b in zip(plain.parameters(), recomputed.parameters(), strict=True):
        assert torch.equal(a, b)


def test_recomputing_forgets_activations(mixture):
    """Bytes remembered for the backward pass, without and with."""
    kept = []
    for on in (False, True):
        llama, n_bytes = model(), [0]

        def pack(tensor, n_bytes=n_bytes):
            n_bytes[0] += tensor.nbytes
            return tensor

        remembering = torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t)
        with recomputing(llama, on), remembering:
            loss_sum(llama, mixture.batch(0, 0))
        kept.append(n_bytes[0])
    assert kept[1] < kept[0] / 2


def test_bf16_learns_with_fp32_weights(mixture, tmp_path):
    exact = train(model(), mixture, RECIPE, tmp_path / "a", label=None)
    llama = model()
    recipe = replace(RECIPE, precision="bf16")
    log = train(llama, mixture, recipe, tmp_path / "b", label=None)
    assert all(weight.dtype == torch.float32 for weight in llama.parameters())
    assert log[-1]["loss"] != exact[-1]["loss"]
    assert log[-1]["loss"] == pytest.approx(exact[-1]["loss"], abs=0.05)


def test_muon_needs_whole_matrices(mixture, tmp_path, monkeypatch):
    monkeypatch.setattr(distributed, "rank_and_world", lambda: (0, 2))
    with pytest.raises(Problem, match="one process"):
        train(model(), mixture, replace(RECIPE, optimizer="muon"), tmp_path)


def test_training_problems(mixture, tmp_path):
    with pytest.raises(Problem, match="at least 1"):
        TrainConfig(steps=0)
    with pytest.raises(Problem, match="fp16"):
        TrainConfig(steps=1, precision="fp16")
    with pytest.raises(Problem, match="above 0"):
        TrainConfig(steps=1, learning_rate=0)
    train(model(), mixture, RECIPE, tmp_path, label=None)
    with pytest.raises(Problem, match="learning_rate"):
        train(model(), mixture, replace(RECIPE, learning_rate=1.0), tmp_path)
    train(model(), mixture, replace(RECIPE, log_every=1), tmp_path, label=None)
    wider = model(config=replace(CONFIG, intermediate_size=96))
    with pytest.raises(Problem, match="another model"):
        train(wider, mixture, RECIPE, tmp_path, label=None)
    path = tmp_path / "checkpoint.safetensors"
    path.write_bytes(path.read_bytes()[:-8])
    with pytest.raises(Problem, match="damaged"):
        train(model(), mixture, RECIPE, tmp_path, label=None)


def test_a_loss_that_is_not_finite_stops_and_keeps_the_checkpoint(mixture, tmp_path):
    class Breaks(nn.Linear):
        calls = 0

        def forward(self, x):
            self.calls += 1
            return super().forward(x) * (math.nan if self.calls == 8 else 1)

    llama = model()
    head = Breaks(32, 64, bias=False)
    head.weight, llama.lm_head = llama.lm_head.weight, head
    with pytest.raises(Problem, match="At step 7 the loss is nan"):
        train(llama, mixture, RECIPE, tmp_path, label=None)
    assert distributed.read_notes(tmp_path / "checkpoint.safetensors")["step"] == 5
    assert all(weight.isfinite().all() for weight in llama.parameters())


# --- killed and resumed ---------------------------------------------------------------


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_a_checkpoint_holds_all_that_the_next_step_needs(tokens, tmp_path, optimizer):
    class Stops(Mixture):
        def batch(self, step, *others):
            if step == 8:
                raise InterruptedError
            return super().batch(step, *others)

    recipe = replace(RECIPE, optimizer=optimizer, precision="bf16")
    whole, first, second = model(), model(), model(seed=9)
    weights = {tokens: 1.0}
    train(whole, Mixture(weights, CONTEXT, ROWS), recipe, tmp_path / "a", label=None)
    with pytest.raises(InterruptedError):
        train(first, Stops(weights, CONTEXT, ROWS), recipe, tmp_path / "b", label=None)
    mixture = Mixture(weights, CONTEXT, ROWS)
    train(second, mixture, recipe, tmp_path / "b", label=None)
    for ours, theirs in zip(second.parameters(), whole.parameters(), strict=True):
        assert torch.equal(ours, theirs)


def start(processes: int, tokens: Path, folder: Path, steps: int) -> subprocess.Popen:
    """The script as a reader would start it, in a process group of its own."""
    CONFIG.save(folder.parent / "config")
    launcher = [
        "torch.distributed.run",
        "--standalone",
        f"--nproc-per-node={processes}",
    ]
    values = {
        "model": folder.parent / "config",
        "tokens": tokens,
        "out": folder,
        "steps": steps,
        "context": CONTEXT,
        "batch-size": ROWS,
        "accumulation": processes,
        "save-every": 5,
        "log-every": 1,
        "warmup": 3,
    }
    flags = [f"--{name}={value}" for name, value in values.items()]
    run = [*(launcher if processes > 1 else []), "projects.llama3_qlora.train", *flags]
    if processes > 1:
        run.insert(3, "-m")
    with (folder.parent / "output").open("w") as output:
        return subprocess.Popen(
            [sys.executable, "-m", *run],
            cwd=ROOT,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )


def finish(process: subprocess.Popen, folder: Path, code: int = 0) -> None:
    """Wait for the end and never leave a process behind."""
    try:
        assert process.wait(300) == code, (folder.parent / "output").read_text()
    finally:
        kill(process)


def wait_for(log: Path, lines: int, process: subprocess.Popen) -> None:
    """Until the run has logged so many steps."""
    while not log.exists() or log.read_text().count("\n") < lines:
        assert process.poll() is None, f"ended by itself before step {lines}"
        time.sleep(0.001)


def same_run(folder: Path, other: Path) -> None:
    """Weights, optimizer and losses, bit for bit."""
    ours, theirs = (
        load_file(place / "checkpoint.safetensors") for place in (folder, other)
    )
    assert ours.keys() == theirs.keys()
    assert any("exp_avg" in name for name in ours)
    for name in ours:
        assert torch.equal(ours[name], theirs[name]), name
    assert losses(folder) == losses(other)


def losses(folder: Path) -> list[float]:
    lines = (folder / "log.jsonl").read_text().splitlines()
    return [json.loads(line)["loss"] for line in lines]


@pytest.mark.parametrize("processes", [1, 2])
def test_killed_and_resumed_equals_not_killed(tokens, tmp_path, processes):
    """With two processes the model is sharded by FSDP2 over gloo."""
    steps, whole, killed = 24, tmp_path / "whole", tmp_path / "killed"
    finish(start(processes, tokens, whole, steps), whole)
    run = start(processes, tokens, killed, steps)
    wait_for(killed / "log.jsonl", random.randint(6, 18), run)
    kill(run)
    at = distributed.read_notes(killed / "checkpoint.safetensors")["step"]
    assert 5 <= at < steps and not (killed / "model.safetensors").exists()
    finish(start(processes, tokens, killed, steps), killed)
    same_run(killed, whole)
    # and both are what one process computes here
    recipe = TrainConfig(steps, warmup=3, accumulation=processes, log_every=1)
    here = model()
    mixture = Mixture({tokens: 1.0}, CONTEXT, ROWS)
    train(here, mixture, recipe, tmp_path / "here", label=None)
    assert losses(killed) == pytest.approx(losses(tmp_path / "here"), abs=1e-5)
    trained = Llama.from_pretrained(killed)
    for a, b in zip(here.parameters(), trained.parameters(), strict=True):
        torch.testing.assert_close(a, b, atol=1e-4, rtol=0)


def test_sharded_bf16_keeps_fp32_weights(mixture, tmp_path):
    """FSDP2's own precision, on a world of one process."""
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{tmp_path}/meet", rank=0, world_size=1
    )
    try:
        whole, parts = model(), model()
        distributed.shard(parts, "bf16")
        first, second = (
            [
                update(llama, optimizer, mixture, RECIPE, step)[0]
                for optimizer in [make_optimizer(llama, RECIPE)]
                for step in range(4)
            ]
            for llama in (whole, parts)
        )
        assert first != second and first == pytest.approx(second, abs=0.02)
        for weight in parts.parameters():
            assert weight.dtype == torch.float32
    finally:
        distributed.stop()


def test_sigterm_saves_and_says_so(tokens, tmp_path):
    folder = tmp_path / "out"
    run = start(1, tokens, folder, 10_000)
    wait_for(folder / "log.jsonl", 3, run)
    run.send_signal(signal.SIGTERM)
    finish(run, folder, code=1)
    done = distributed.read_notes(folder / "checkpoint.safetensors")["step"]
    output = (tmp_path / "output").read_text()
    assert output.splitlines()[-1].startswith(f"Stopped by SIGTERM after step {done}")
    assert "Traceback" not in output


# --- evaluation -----------------------------------------------------------------------


class Uniform(nn.Module):
    """Knows nothing: every one of 64 tokens is as likely."""

    def forward(self, ids):
        return torch.zeros(*ids.shape, 64)


def encode(text: str) -> list[int]:
    return [ord(letter) % 64 for letter in text]


def test_bits_per_byte_of_a_model_that_knows_nothing():
    texts = ["a" * 50, "é" * 7, "b"]  # one token a letter, é has two bytes
    score = bits_per_byte(Uniform(), encode, texts, 8, 0)
    assert score.per_document == pytest.approx([6, 3, 6])
    assert score.bits_per_byte == pytest.approx(6 * 58 / 65)
    interval = score.interval()
    assert interval.low <= score.bits_per_byte <= interval.high
    assert interval.count == 3


@settings(max_examples=15, deadline=None)
@given(
    sizes=st.lists(st.integers(1, 60), min_size=1, max_size=4),
    context=st.integers(2, 20),
    data=st.data(),
)
def test_windows_overlap_and_count_each_token_once(sizes, context, data):
    stride = data.draw(st.integers(1, context))
    texts = ["".join(chr(97 + (i * i) % 23) for i in range(n)) for n in sizes]
    llama = model().eval()
    score = bits_per_byte(llama, encode, texts, context, 1, stride, batch_size=3)
    for text, nats in zip(texts, score.nats, strict=True):
        ids = [1, *encode(text)]
        wanted, end = 0.0, 0
        for place in range(1, len(ids)):  # one token at a time, from the same history
            if place > end:
                end = min(len(ids) - 1, context if end == 0 else end + stride)
            history = torch.tensor([ids[max(0, end - context) : place]])
            assert history.shape[1] >= min(place, context - stride + 1)
            with torch.no_grad():
                wanted -= llama(history)[0, -1].log_softmax(-1)[ids[place]].item()
        assert nats == pytest.approx(wanted, rel=1e-4)


def test_evaluation_problems():
    with pytest.raises(Problem, match="stride"):
        bits_per_byte(Uniform(), encode, ["a"], 8, 0, stride=9)
    with pytest.raises(Problem, match="nothing to score"):
        bits_per_byte(Uniform(), encode, ["a", ""], 8, 0)
