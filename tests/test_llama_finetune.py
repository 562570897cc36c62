"""QLoRA on one, two and four processes: one run, whoever computes it."""

import json
import os
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file
from torch.profiler import ProfilerActivity, profile

from projects.llama3_qlora import distributed, finetune, lora, memory
from projects.llama3_qlora.config import LlamaConfig
from projects.llama3_qlora.data import Mixture, write_tokens
from projects.llama3_qlora.lora import LoRAConfig
from projects.llama3_qlora.memory import Setting
from projects.llama3_qlora.model import Llama
from projects.llama3_qlora.nf4 import quantize_nf4
from projects.llama3_qlora.recipe import TrainConfig, make_optimizer
from projects.llama3_qlora.train import recomputing, update
from tests.process_family import kill
from utils.runtime import ROOT, Problem

# rows that four do not divide: 66 tokens, 3 rows of A
CONFIG = LlamaConfig(66, 64, 128, 2, 4, 2, max_positions=64, tie_embeddings=True)
LORA = LoRAConfig(rank=3, alpha=6.0)
STEPS, CONTEXT, ROWS = 16, 24, 4
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    """A folder with a base model and tokens that count upwards."""
    folder, rng = tmp_path_factory.mktemp("finetune"), np.random.default_rng(0)
    torch.manual_seed(0)
    Llama(CONFIG).save_pretrained(folder / "base")
    documents = [
        ((rng.integers(66) + np.arange(n) * rng.integers(1, 4)) % 66).tolist()
        for n in rng.integers(2, 60, size=200)
    ]
    write_tokens(documents, folder / "tokens.npy")
    return folder


def flags(place: Path, out: str, **others: object) -> list[str]:
    values = {
        "model": place / "base",
        "tokens": place / "tokens.npy",
        "out": place / out,
        "steps": STEPS,
        "context": CONTEXT,
        "batch-size": ROWS,
        "rank": LORA.rank,
        "alpha": LORA.alpha,
        "warmup": 3,
        "log-every": 1,
        "save-every": 5,
        "learning-rate": 0.01,
    } | others
    return ["--four-bit", *(f"--{name}={value}" for name, value in values.items())]


def start(processes: int, place: Path, out: str, **others: object) -> subprocess.Popen:
    """The script as a reader would start it."""
    launcher = ["-m", "torch.distributed.run", "--standalone"]
    launcher += [f"--nproc-per-node={processes}"]
    script = ["-m", "projects.llama3_qlora.finetune", *flags(place, out, **others)]
    with (place / f"{out}.output").open("w") as output:
        return subprocess.Popen(
            [sys.executable, *(launcher if processes > 1 else []), *script],
            cwd=ROOT,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
            stdout=output,
            stderr=subprocess.STDOUT,
        )


def finish(process: subprocess.Popen, place: Path, out: str) -> Path:
    """Wait for the end, and never leave a process behind."""
    try:
        assert process.wait(300) == 0, (place / f"{out}.output").read_text()
    finally:
        kill(process)
    return place / out


def in_this_process(place: Path, out: str, monkeypatch, **others: object) -> Path:
    monkeypatch.setattr(sys, "argv", ["finetune", *flags(place, out, **others)])
    finetune.main()
    return place / out


@pytest.fixture(scope="module")
def one(place) -> Path:
    """The run on one process."""
    with pytest.MonkeyPatch.context() as patch:
        return in_this_process(place, "one", patch)


def losses(folder: Path) -> list[float]:
    lines = (folder / "log.jsonl").read_text().splitlines()
    return [json.loads(line)["loss"] for line in lines]


def same_run(folder: Path, other: Path) -> None:
    """Losses to 1e-5 of their size, adapters to 1e-4 of the largest change."""
    assert losses(folder) == pytest.approx(losses(other), rel=1e-5)
    ours, theirs = (load_file(f / lora.WEIGHTS) for f in (folder, other))
    assert ours.keys() == theirs.keys()
    for name, tensor in ours.items():
        torch.testing.assert_close(tensor, theirs[name], atol=1e-4, rtol=0)


def same_bytes(folder: Path, world: int, resumed: bool = False) -> None:
    """Bytes by part on every rank are those of the formula. States that were read from
    a checkpoint are filled up as on the first rank."""
    found = json.loads((folder / "report.json").read_text())
    setting = Setting(CONFIG, LORA, world, bf16=False)
    wanted = [memory.kept(setting, rank) for rank in range(world)]
    assert found["computed"]["kept"] == wanted
    for rank in range(world):
        if resumed:
            wanted[rank]["optimizer"] = wanted[0]["optimizer"]
        assert found["ranks"][rank]["kept"] == wanted[rank]
    assert found["world"] == world and found["tokens_per_second"] > 0


def test_one_process_learns_and_counts_its_bytes(one):
    assert losses(one)[-1] < losses(one)[0] - 0.1
    same_bytes(one, 1)


def test_two_processes_killed_and_resumed_equal_one(place, one):
    run = start(2, place, "two")
    log = place / "two" / "log.jsonl"
    try:
        while not log.exists() or log.read_text().count("\n") < 6:
            assert run.poll() is None, (place / "two.output").read_text()
            time.sleep(0.005)
    finally:
        kill(run)
    checkpoint = place / "two" / "checkpoint.safetensors"
    assert 5 <= distributed.read_notes(checkpoint)["step"] < STEPS
    assert not (place / "two" / lora.WEIGHTS).exists()
    two = finish(start(2, place, "two"), place, "two")
    same_run(two, one)
    same_bytes(two, 2, resumed=True)


def test_four_processes_equal_one(place, one):
    four = finish(start(4, place, "four"), place, "four")
    same_run(four, one)
    same_bytes(four, 4)


def test_the_adapter_is_peft_s(place, one):
    """PEFT on the same base, decoded, gives the logits that we give."""
    peft = pytest.importorskip("peft", reason="needs the extra finetuning")
    transformers = pytest.importorskip("transformers")
    ours = quantize_nf4(Llama.from_pretrained(place / "base"))
    decoded = Llama.from_pretrained(place / "base")
    for name, layer in lora.target_layers(ours, lora.LINEARS).items():
        decoded.get_submodule(name).weight.data = layer.dequantized()
    decoded.save_pretrained(place / "decoded")
    lora.load_adapter(ours, one)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(
        place / "decoded", dtype=torch.float32
    )
    theirs = peft.PeftModel.from_pretrained(theirs, one)
    ids = torch.arange(20)[None]
    with torch.no_grad():
        wanted = theirs(ids).logits
        torch.testing.assert_close(ours(ids), wanted, rtol=1e-4, atol=1e-4)
        assert not torch.allclose(decoded(ids), wanted, atol=1e-2)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_sharded_base_weights_stay_bit_for_bit(place, tmp_path, precision):
    """FSDP2's own path, on a world of one: mixed types are gathered as bytes, and the
    few floats of NF4 are not rounded."""
    recipe = TrainConfig(5, learning_rate=0.01, warmup=0, precision=precision)
    mixture = Mixture({place / "tokens.npy": 1.0}, CONTEXT, ROWS)
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{tmp_path}/meet", rank=0, world_size=1
    )
    try:
        plain, parts = (loaded(place, precision) for _ in range(2))
        before = {n: p.detach().clone() for n, p in parts.named_parameters()}
        distributed.shard(parts, precision)
        seen = []
        for model in (plain, parts):
            optimizer = make_optimizer(model, recipe)
            steps = [update(model, optimizer, mixture, recipe, s)[0] for s in range(5)]
            seen.append(steps)
        rel = 1e-6 if precision == "fp32" else 1e-2
        assert seen[0] == pytest.approx(seen[1], rel=rel)
        for name, weight in parts.named_parameters():
            same = torch.equal(distributed.whole(weight), before[name])
            assert same == ("lora_" not in name), name
        layer = parts.model.layers[0].self_attn.q_proj.base
        parts.model.layers[0].unshard()
        assert layer.scales_scale.dtype == layer.offset.dtype == torch.float32
        assert torch.equal(layer.offset, before[name_of(parts, layer, "offset")])
    finally:
        distributed.stop()


def loaded(place: Path, precision: str) -> Llama:
    torch.manual_seed(1)
    model = finetune.base_model(place / "base", "")
    return finetune.load(model, LORA, CPU, True, precision)


def name_of(model: Llama, layer: torch.nn.Module, parameter: str) -> str:
    (name,) = (n for n, module in model.named_modules() if module is layer)
    return f"{name}.{parameter}"


def test_loading_gives_what_quantizing_the_whole_model_gives(place):
    """Block by block, from mapped files: the same numbers, and nothing of the file."""
    model = loaded(place, "fp32")
    whole = quantize_nf4(Llama.from_pretrained(place / "base"))
    torch.manual_seed(1)
    lora.add_lora(whole, LORA)
    wanted = dict(whole.named_parameters())
    assert wanted.keys() == dict(model.named_parameters()).keys()
    for name, weight in model.named_parameters():
        assert torch.equal(weight, wanted[name]), name
        assert weight.requires_grad == ("lora_" in name)


def test_full_precision_blocks_and_random_weights(tmp_path, monkeypatch):
    """The path that measures a shape, without a download, here a tiny one."""
    values = {"shape": "tiny", "out": tmp_path, "steps": 3, "context": 32}
    argv = [f"--{k}={v}" for k, v in values.items()]
    argv += ["--batch-size=2", "--precision=bf16", "--checkpoint-activations"]
    monkeypatch.setattr(sys, "argv", ["finetune", *argv])
    finetune.main()
    found = json.loads((tmp_path / "report.json").read_text())
    setting = Setting(finetune.SHAPES["tiny"], LoRAConfig(), four_bit=False)
    assert found["ranks"][0]["kept"] == memory.kept(setting)
    assert found["computed"]["quantizing"] == 0


def test_named_shapes_are_llama_s():
    counts = {}
    for name, config in finetune.SHAPES.items():
        with torch.device("meta"):
            counts[name] = sum(p.numel() for p in Llama(config).parameters())
    assert counts["8b"] == 8_030_261_248 and counts["70b"] == 70_553_706_496


# --- the formula ----------------------------------------------------------------------


@settings(max_examples=60, deadline=None)
@given(rows=st.integers(1, 40), columns=st.integers(1, 5), world=st.integers(1, 9))
def test_parts_are_those_of_a_chunked_tensor(rows, columns, world):
    chunks = torch.zeros(rows, columns).chunk(world)
    assert memory.part((rows, columns), world) == chunks[0].numel()
    sizes = [memory.own((rows, columns), world, rank) for rank in range(world)]
    assert sizes == [c.numel() for c in chunks] + [0] * (world - len(chunks))


def peak_bytes(work) -> int:
    """The most bytes allocated at once, beyond those before, in one call on the CPU."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as found:
        work()
    events = found.profiler.kineto_results.events()
    changes = sorted(
        (e.start_ns(), e.nbytes()) for e in events if e.name() == "[memory]"
    )
    return int(np.cumsum([n_bytes for _, n_bytes in changes]).max())


@pytest.mark.parametrize("precision, again", [("fp32", False), ("bf16", True)])
def test_what_passes_in_a_step_is_estimated_to_a_tenth(tmp_path, precision, again):
    config = replace(CONFIG, vocab_size=512, hidden_size=128, intermediate_size=384)
    config = replace(config, n_layers=4, head_dim=32, max_positions=256)
    write_tokens([np.arange(2000) % 512], tmp_path / "t.npy")
    with torch.device("meta"):
        model = Llama(config)
    finetune.load(model, LORA, CPU, True, precision)
    recipe = TrainConfig(2, precision=precision, checkpoint_activations=again)
    optimizer = make_optimizer(model, recipe)
    mixture = Mixture({tmp_path / "t.npy": 1.0}, 256, 2)
    with recomputing(model, again):
        update(model, optimizer, mixture, recipe, 0)
        found = peak_bytes(lambda: update(model, optimizer, mixture, recipe, 1))
    setting = Setting(config, LORA, 1, True, precision == "bf16", 2, 256, again)
    wanted = sum(memory.passing(setting).values()) + memory.kept(setting)["gradients"]
    assert found == pytest.approx(wanted, rel=0.1)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_quantizing_takes_no_more_than_said(dtype):
    config = replace(CONFIG, hidden_size=256, intermediate_size=1024)
    weight = torch.randn(1024, 256, dtype=dtype)
    found = peak_bytes(lambda: finetune.NF4Linear(weight)) + weight.nbytes
    assert 0.8 * memory.quantizing(config) < found <= memory.quantizing(config)


# --- mistakes -------------------------------------------------------------------------


@pytest.mark.parametrize(
    "wrong, sentence",
    [
        ({"batch-size": 0}, "batch_size of 1"),
        ({"targets": "query"}, "not query"),
        ({"rank": 0}, "rank of 1 or more"),
        ({"tokens": "none.npy"}, "no none.npy"),
        ({"model": "nowhere"}, "no folder nowhere"),
    ],
)
def test_one_sentence(place, monkeypatch, wrong, sentence):
    with pytest.raises(Problem, match=sentence):
        in_this_process(place, "wrong", monkeypatch, **wrong)


def test_rows_of_nf4_are_multiples_of_64(tmp_path, place, monkeypatch):
    Llama(replace(CONFIG, hidden_size=32)).save_pretrained(tmp_path / "narrow")
    with pytest.raises(Problem, match="rows of a multiple of 64, not 32"):
        in_this_process(place, "no", monkeypatch, model=tmp_path / "narrow")


def test_a_batch_that_processes_cannot_share(place, monkeypatch):
    monkeypatch.setattr(distributed, "rank_and_world", lambda: (0, 3))
    with pytest.raises(Problem, match="not a multiple of 3 processes"):
        in_this_process(place, "wrong", monkeypatch)


def test_too_few_gpus(monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    finetune.check_devices(False)
    with pytest.raises(Problem, match="sees 0 here"):
        finetune.check_devices(True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setenv("LOCAL_RANK", "2")
    with pytest.raises(Problem, match="Process 2 needs a GPU"):
        finetune.check_devices(False)


@pytest.mark.parametrize("shape", ["8b", "70b"])
def test_the_readme_says_what_the_formula_says(shape):
    lines = (ROOT / "README.md").read_text("utf-8").splitlines()
    (row,) = [line for line in lines if line.startswith(f"| {shape.upper()} |")]
    said = [cell.strip() for cell in row.strip("|").split("|")[1:]]
    for world, number in zip((1, 2, 4, 8), said, strict=True):
        setting = Setting(finetune.SHAPES[shape], LoRAConfig(8, 16.0), world)
        parts = [*memory.kept(setting).values(), *memory.passing(setting).values()]
        total = sum(parts)
        digits = len(number.partition(".")[2])
        assert f"{total / 1e9:.{digits}f}" == number
