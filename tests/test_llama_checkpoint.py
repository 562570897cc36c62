"""Checkpoints: bit for bit between this Llama and transformers, in any layout; damage
is one sentence; an interrupted writing loses nothing."""

import hashlib
import json
import logging
import os
import pickle
import shutil
import subprocess
import sys
from copy import deepcopy
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import LlamaConfig as TheirConfig
from transformers import LlamaForCausalLM
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

from projects.llama3_qlora import checkpoint
from projects.llama3_qlora.config import LlamaConfig, RopeScaling
from projects.llama3_qlora.model import Llama, rope_frequencies
from utils.runtime import ROOT, Problem

SMALL = {
    "vocab_size": 97,
    "hidden_size": 32,
    "intermediate_size": 48,
    "n_layers": 2,
    "n_heads": 4,
    "n_kv_heads": 2,
}
SHARD = 8_000  # bytes: makes several shards of the small model
IDS = torch.arange(24).reshape(2, 12) * 4
WHOLE, INDEX, SUMS = checkpoint.SINGLE, checkpoint.INDEX, checkpoint.SUMS


def ours(tied: bool = False, seed: int = 0, **sizes) -> Llama:
    torch.manual_seed(seed)
    return Llama(LlamaConfig(**SMALL | sizes, tie_embeddings=tied)).eval()


def same(first: nn.Module, second: nn.Module) -> bool:
    """Whether all tensors, the head included, are equal bit for bit."""
    one, two = first.state_dict(), second.state_dict()
    pairs = [(one[name], two[name]) for name in one.keys() | two.keys()]
    return all(a.dtype == b.dtype and torch.equal(a, b) for a, b in pairs)


def close(model: Llama, theirs: LlamaForCausalLM, dtype: torch.dtype) -> None:
    """Logits agree as far as two orders of the same sums do."""
    bound = 1e-6 if dtype == torch.float32 else 1e-2
    torch.testing.assert_close(model(IDS), theirs(IDS).logits, atol=bound, rtol=0)


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def rewrite(folder: Path, **changes: Tensor | None) -> None:
    """Change tensors of `model.safetensors`; None removes one."""
    tensors = {**load_file(folder / WHOLE), **changes}
    kept = {name: t.clone() for name, t in tensors.items() if t is not None}
    save_file(kept, folder / WHOLE)


@pytest.fixture
def whole(tmp_path) -> Path:
    ours().save_pretrained(tmp_path / "whole")
    return tmp_path / "whole"


@pytest.fixture
def sharded(tmp_path) -> Path:
    ours().save_pretrained(tmp_path / "sharded", SHARD)
    assert INDEX in names(tmp_path / "sharded")
    return tmp_path / "sharded"


@pytest.mark.parametrize("limit", [SHARD, 10**9])
@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
class TestBetweenTheTwo:
    def test_theirs_to_ours_and_back(self, tmp_path, limit, tied, dtype):
        torch.manual_seed(1)
        config = TheirConfig(**ours(tied).config.to_hf())
        theirs = LlamaForCausalLM(config).to(dtype).eval()
        theirs.save_pretrained(tmp_path, max_shard_size=limit)
        assert (INDEX in names(tmp_path)) == (limit == SHARD)
        model = Llama.from_pretrained(tmp_path, dtype)
        assert same(model, theirs)
        assert (model.lm_head.weight is model.model.embed_tokens.weight) == tied
        close(model, theirs, dtype)
        model.save_pretrained(tmp_path / "back", limit)
        back = LlamaForCausalLM.from_pretrained(tmp_path / "back", dtype=dtype)
        assert torch.equal(back(IDS).logits, theirs(IDS).logits)

    def test_ours_to_theirs_and_back(self, tmp_path, limit, tied, dtype):
        model = ours(tied).to(dtype)
        model.save_pretrained(tmp_path, limit)
        assert (INDEX in names(tmp_path)) == (limit == SHARD)
        theirs, info = LlamaForCausalLM.from_pretrained(
            tmp_path, dtype=dtype, output_loading_info=True
        )
        assert not any(info.values()), info
        assert same(model, theirs)
        close(model, theirs, dtype)
        theirs.save_pretrained(tmp_path / "back", max_shard_size=limit)
        back = Llama.from_pretrained(tmp_path / "back", dtype)
        assert torch.equal(back(IDS), model(IDS))

    def test_ours_loads_in_ours(self, tmp_path, limit, tied, dtype):
        model = ours(tied).to(dtype)
        model.save_pretrained(tmp_path / "first", limit)
        copy = Llama.from_pretrained(tmp_path / "first", dtype)
        assert same(model, copy)
        assert copy.config == model.config
        copy.save_pretrained(tmp_path / "second", limit)  # mapped tensors, written anew
        assert checkpoint.checksum(tmp_path / "first") == checkpoint.checksum(
            tmp_path / "second"
        )


def test_index_and_shards_are_as_transformers_writes_them(sharded, tmp_path):
    LlamaForCausalLM.from_pretrained(sharded).save_pretrained(
        tmp_path / "theirs", max_shard_size=SHARD
    )
    one, two = (
        json.loads((folder / INDEX).read_text())
        for folder in (sharded, tmp_path / "theirs")
    )
    assert one["metadata"]["total_size"] == two["metadata"]["total_size"]
    assert one["weight_map"].keys() == two["weight_map"].keys()
    for file in set(one["weight_map"].values()):
        inside = load_file(sharded / file)
        assert {name for name, f in one["weight_map"].items() if f == file} == {*inside}
        assert sum(t.nbytes for t in inside.values()) <= SHARD or len(inside) == 1


def test_a_mapped_model_can_be_sharded_anew(whole):
    model = Llama.from_pretrained(whole)
    model.save_pretrained(whole, SHARD)
    assert WHOLE not in names(whole)
    assert same(Llama.from_pretrained(whole), ours())


@pytest.mark.parametrize("tied", [False, True])
def test_fp32_file_read_as_bf16(tmp_path, tied):
    ours(tied).save_pretrained(tmp_path)
    model = Llama.from_pretrained(tmp_path, torch.bfloat16)
    assert same(model, ours(tied).bfloat16())


def mapped(path: Path) -> list[range]:
    """Where in memory this process sees the file."""
    lines = Path("/proc/self/maps").read_text().splitlines()
    places = [line.split()[0].split("-") for line in lines if line.endswith(path.name)]
    return [range(int(start, 16), int(end, 16)) for start, end in places]


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_weights_of_the_right_type_are_views_of_the_file(whole):
    model = Llama.from_pretrained(whole)
    places = mapped(whole / WHOLE)
    for weight in model.parameters():
        assert any(weight.data_ptr() in place for place in places)


def test_training_leaves_the_file_alone(whole):
    model = Llama.from_pretrained(whole)
    assert all(weight.requires_grad for weight in model.parameters())
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    model(IDS).square().mean().backward()
    optimizer.step()
    assert not same(model, ours())
    assert same(Llama.from_pretrained(whole), ours())
    checkpoint.verify(whole)


PEAKS = """
import sys, torch
from pathlib import Path
from projects.llama3_qlora.checkpoint import load_weights
from projects.llama3_qlora.config import LlamaConfig
from projects.llama3_qlora.model import Llama

def megabytes(key):
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(l.split()[1]) for l in lines if l.startswith(key)) * 1024 / 1e6

def peaks(model, dtype):
    torch.ones(9, dtype=dtype).sum()
    start = megabytes("VmRSS:")
    Path("/proc/self/clear_refs").write_text("5")  # forget earlier peaks
    load_weights(model, folder, dtype, "cpu")
    print(megabytes("VmHWM:") - start)
    for weight in model.parameters():
        weight.sum()
    print(megabytes("VmHWM:") - start)

folder = Path(sys.argv[1])
with torch.device("meta"):
    models = [Llama(LlamaConfig.load(folder)) for _ in range(2)]
peaks(models.pop(), torch.float32)
peaks(models.pop(), torch.bfloat16)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="the kernel must tell the peak")
def test_loading_takes_memory_once(tmp_path):
    ours(hidden_size=768, intermediate_size=2048, vocab_size=8_000).save_pretrained(
        tmp_path, 30_000_000
    )
    size = sum(path.stat().st_size for path in tmp_path.glob("*.safetensors")) / 1e6
    assert size > 80
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", PEAKS, tmp_path]
    run = subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, check=True
    )
    loaded, used, converted, read = map(float, run.stdout.split())
    assert loaded < 0.2 * size  # nothing is read yet
    assert 0.8 * size < used < 1.3 * size  # then each weight once
    # half for the copies; of the file never more than one shard beside them
    assert 0.4 * size < converted < 0.95 * size and read < 0.95 * size


@pytest.mark.parametrize("first", [SHARD, 2 * SHARD, 10**9])
@pytest.mark.parametrize("second", [SHARD, 2 * SHARD, 10**9])
def test_saving_over_another_layout_leaves_nothing_of_it(tmp_path, first, second):
    ours(seed=1).save_pretrained(tmp_path / "used", first)
    ours().save_pretrained(tmp_path / "used", second)
    ours().save_pretrained(tmp_path / "fresh", second)
    assert names(tmp_path / "used") == names(tmp_path / "fresh")
    assert same(Llama.from_pretrained(tmp_path / "used"), ours())
    checkpoint.verify(tmp_path / "used")


@pytest.mark.parametrize("first", [SHARD, 10**9])
@pytest.mark.parametrize("second", [SHARD, 10**9])
def test_a_full_disk_loses_nothing(tmp_path, monkeypatch, first, second):
    ours(seed=1).save_pretrained(tmp_path, first)
    before = names(tmp_path)

    def full(tensors, path, **_):
        save_file({"cut": torch.zeros(1)}, path)
        if "00001" not in path.name:
            raise OSError(28, "No space left on device")

    monkeypatch.setattr(checkpoint, "save_file", full)
    with pytest.raises(Problem, match=r"could not be written .*No space left"):
        ours().save_pretrained(tmp_path, second)
    assert names(tmp_path) == before
    assert same(Llama.from_pretrained(tmp_path), ours(seed=1))
    checkpoint.verify(tmp_path)


class Stop(BaseException):
    """The process is killed here."""


def stop_at(patch: pytest.MonkeyPatch, step: int) -> None:
    """Stop before change number `step` of the folder: a rename or a removal."""
    changes = 0

    def counted(change):
        def instead(*arguments, **options):
            nonlocal changes
            changes += 1
            if changes > step:
                raise Stop
            return change(*arguments, **options)

        return instead

    patch.setattr(Path, "replace", counted(Path.replace))
    patch.setattr(Path, "unlink", counted(Path.unlink))


@pytest.mark.parametrize("first", [SHARD, 10**9])
@pytest.mark.parametrize("second", [SHARD, 2 * SHARD, 10**9])
def test_stopped_anywhere_old_and_new_are_not_mixed(
    tmp_path, monkeypatch, first, second
):
    old, new, finished = ours(seed=1), ours(), False
    outcomes = []
    while not finished:
        folder = tmp_path / str(len(outcomes))
        old.save_pretrained(folder, first)
        with monkeypatch.context() as patch:
            stop_at(patch, len(outcomes))
            try:
                new.save_pretrained(folder, second)
                finished = True
            except Stop:
                pass
        try:
            model = Llama.from_pretrained(folder)
            outcomes.append("old" if same(model, old) else "new")
            assert same(model, old) or same(model, new)
            if SUMS in names(folder):
                checkpoint.verify(folder)
        except Problem:
            outcomes.append("refused")
    order = ["old", "refused", "new"]
    assert outcomes == sorted(outcomes, key=order.index)
    assert outcomes[0] == "old" and outcomes[-1] == "new"


def test_what_a_killed_writing_left_is_removed(whole):
    (whole / ".partial").mkdir()
    (whole / ".partial" / "model-00001-of-00009.safetensors").write_bytes(b"cut")
    ours().save_pretrained(whole)
    assert names(whole) == {"config.json", WHOLE, SUMS}
    assert (whole / WHOLE).stat().st_mode & 0o444 == 0o444  # others may read it too
    assert same(Llama.from_pretrained(whole), ours())


def test_checksums_are_those_of_sha256sum(sharded):
    found = checkpoint.checksum(sharded)
    assert found.keys() == names(sharded) - {"config.json", SUMS}
    for name, digest in found.items():
        assert hashlib.sha256((sharded / name).read_bytes()).hexdigest() == digest
    checkpoint.verify(sharded)
    if shutil.which("sha256sum"):
        run = ["sha256sum", "--check", "--strict", SUMS]
        subprocess.run(run, cwd=sharded, check=True, capture_output=True)


@pytest.mark.parametrize("name", ["model-00002-of-0", "model.safetensors.index"])
def test_verify_names_the_file_that_changed(sharded, name):
    path = next(path for path in sharded.iterdir() if path.name.startswith(name))
    content = bytearray(path.read_bytes())
    content[-1] ^= 0x2A  # in a tensor; or the last line feed becomes a space
    path.write_bytes(content)
    with pytest.raises(Problem, match=f"{path.name} in sharded does not match"):
        checkpoint.verify(sharded)


def test_verify_wants_every_file_listed_and_there(whole):
    (whole / "tokenizer.json").write_text("{}")
    digest = hashlib.sha256(b"{}").hexdigest()
    line = f"{digest} *tokenizer.json\n"
    (whole / SUMS).write_text((whole / SUMS).read_text() + line)
    checkpoint.verify(whole)
    (whole / "tokenizer.json").unlink()
    with pytest.raises(Problem, match=r"tokenizer.json in whole does not match"):
        checkpoint.verify(whole)
    (whole / SUMS).write_text("")
    with pytest.raises(Problem, match=r"model.safetensors in whole does not match"):
        checkpoint.verify(whole)
    (whole / SUMS).unlink()
    with pytest.raises(Problem, match=r"no SHA256SUMS in whole"):
        checkpoint.verify(whole)


@pytest.mark.parametrize("keep", [0, 7, 300, -1])
def test_a_file_cut_off_is_noticed(whole, sharded, keep):
    for path in (whole / WHOLE, min(sharded.glob("*00002-of*"))):
        path.write_bytes(path.read_bytes()[:keep])
        with pytest.raises(Problem, match=f"{path.name} in .* is cut off"):
            Llama.from_pretrained(path.parent)


def test_a_pointer_or_trailing_bytes_are_no_safetensors(whole):
    content = (whole / WHOLE).read_bytes()
    for wrong in (b"version https://git-lfs.github.com/spec/v1\n", content + b"more"):
        (whole / WHOLE).write_bytes(wrong)
        with pytest.raises(Problem, match=r"model.safetensors in whole is cut off or"):
            Llama.from_pretrained(whole)


NORM, DOWN = "model.norm.weight", "model.layers.1.mlp.down_proj.weight"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({NORM: None}, r"whole lacks the weights model\.norm\.weight\.$"),
        ({NORM: None, DOWN: None}, r"lacks .*down_proj\.weight, model\.norm\.weight"),
        ({"lm_head.weight": None}, r"lacks the weights lm_head\.weight"),
        (
            {"model.layers.2.mlp.bias": torch.ones(2)},
            r"whole has model\.layers\.2\.mlp\.bias in model\.safetensors, unknown",
        ),
        (
            {DOWN: torch.ones(48, 32)},
            r"1\.mlp\.down_proj\.weight in whole/model\.safetensors is F32 of shape "
            r"\(48, 32\), not floating of shape \(32, 48\)",
        ),
        ({NORM: torch.ones(32, dtype=torch.int8)}, r"norm\.weight in .* is I8 of"),
    ],
)
def test_wrong_tensors_are_named_and_the_model_is_not_touched(whole, changes, message):
    rewrite(whole, **changes)
    with torch.device("meta"):
        model = Llama(ours().config)
    with pytest.raises(Problem, match=message):
        checkpoint.load_weights(model, whole, torch.float32, "cpu")
    assert all(weight.is_meta for weight in model.parameters())


def test_many_missing_tensors_are_counted(tmp_path):
    ours().save_pretrained(tmp_path)
    ours(n_layers=3).config.save(tmp_path)
    with pytest.raises(Problem, match=r"k_proj\.weight and 6 more\.$"):
        Llama.from_pretrained(tmp_path)


def test_frequencies_in_old_files_are_ignored(whole):
    rewrite(whole, **{"model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(4)})
    assert same(Llama.from_pretrained(whole), ours())


def test_a_tied_head_may_stand_in_the_file_when_it_is_the_same(tmp_path):
    model = ours(tied=True)
    model.save_pretrained(tmp_path)
    assert "lm_head.weight" not in load_file(tmp_path / WHOLE)
    rewrite(tmp_path, **{"lm_head.weight": model.lm_head.weight.detach()})
    assert same(Llama.from_pretrained(tmp_path), model)
    rewrite(tmp_path, **{"lm_head.weight": model.lm_head.weight.detach() + 1})
    with pytest.raises(Problem, match=r"ties lm_head\.weight, yet it differs"):
        Llama.from_pretrained(tmp_path)


@pytest.mark.parametrize(
    "text",
    [
        "{",
        "[]",
        "{}",
        '{"weight_map": {}}',
        '{"weight_map": {"a": 3}}',
        '{"weight_map": {"a": ["b"]}}',
        '{"weight_map": {"a": "../whole/model.safetensors"}}',
    ],
)
def test_a_damaged_index_is_one_sentence(sharded, text):
    (sharded / INDEX).write_text(text)
    with pytest.raises(Problem, match=r"index\.json in sharded is damaged"):
        Llama.from_pretrained(sharded)


def test_missing_files_are_named(sharded, tmp_path):
    shard = max(sharded.glob("model-*.safetensors"))
    shard.unlink()
    with pytest.raises(Problem, match=f"sharded lacks {shard.name}, which .* names"):
        Llama.from_pretrained(sharded)
    (sharded / INDEX).unlink()
    with pytest.raises(Problem, match=r"sharded has shards but no .*index\.json"):
        Llama.from_pretrained(sharded)
    ours().config.save(tmp_path / "empty")
    with pytest.raises(Problem, match="empty has no weights: neither"):
        Llama.from_pretrained(tmp_path / "empty")
    with pytest.raises(Problem, match="no folder absent"):
        checkpoint.weight_files(tmp_path / "absent")


def test_two_layouts_in_one_folder_are_not_guessed_between(sharded, whole):
    shutil.copy(whole / WHOLE, sharded)
    with pytest.raises(Problem, match="remove the older one"):
        Llama.from_pretrained(sharded)


class Trap:
    """Unpickled, it makes a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


@pytest.mark.parametrize("name", ["pytorch_model.bin", "consolidated.00.pth"])
def test_pickle_is_never_read(tmp_path, name):
    trap = pickle.dumps(Trap(tmp_path / "sprung"))
    pickle.loads(trap)
    (tmp_path / "sprung").unlink()  # it works
    ours().config.save(tmp_path)
    (tmp_path / name).write_bytes(trap)
    with pytest.raises(Problem, match=f"holds only pickle .{name}.*save_pretrained"):
        Llama.from_pretrained(tmp_path)
    ours().save_pretrained(tmp_path)
    assert same(Llama.from_pretrained(tmp_path), ours())
    (tmp_path / WHOLE).write_bytes(trap)
    with pytest.raises(Problem, match="cut off or not safetensors"):
        Llama.from_pretrained(tmp_path)
    assert not (tmp_path / "sprung").exists()


def test_a_shard_has_at_least_one_byte(tmp_path):
    with pytest.raises(Problem, match="max_shard_bytes must be at least 1, not 0"):
        ours().save_pretrained(tmp_path, 0)


# What the published models say in config.json, and how many parameters they have.
STRETCHED = {
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
    "rope_type": "llama3",
}
COMMON = {
    "architectures": ["LlamaForCausalLM"],
    "attention_bias": False,
    "hidden_act": "silu",
    "initializer_range": 0.02,
    "model_type": "llama",
    "pretraining_tp": 1,
    "rms_norm_eps": 1e-05,
    "use_cache": True,
}
LLAMA_2_7B = COMMON | {
    "bos_token_id": 1,
    "eos_token_id": 2,
    "hidden_size": 4096,
    "intermediate_size": 11008,
    "max_position_embeddings": 4096,
    "num_attention_heads": 32,
    "num_hidden_layers": 32,
    "num_key_value_heads": 32,
    "rope_scaling": None,
    "tie_word_embeddings": False,
    "torch_dtype": "float16",
    "vocab_size": 32000,
}
LLAMA_3_8B = LLAMA_2_7B | {
    "bos_token_id": 128000,
    "eos_token_id": 128001,
    "intermediate_size": 14336,
    "max_position_embeddings": 8192,
    "num_key_value_heads": 8,
    "rope_theta": 500000.0,
    "torch_dtype": "bfloat16",
    "vocab_size": 128256,
}
LLAMA_31_8B = LLAMA_3_8B | {
    "attention_dropout": 0.0,
    "eos_token_id": [128001, 128008, 128009],
    "head_dim": None,
    "max_position_embeddings": 131072,
    "mlp_bias": False,
    "rope_scaling": STRETCHED,
}
LLAMA_32_1B = LLAMA_31_8B | {
    "head_dim": 64,
    "hidden_size": 2048,
    "intermediate_size": 8192,
    "num_hidden_layers": 16,
    "rope_scaling": STRETCHED | {"factor": 32.0},
    "tie_word_embeddings": True,
}
SPARSE = {  # the first Llama said no more than it had to
    "model_type": "llama",
    "vocab_size": 32000,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 1,
    "num_attention_heads": 4,
}
PUBLISHED = [
    (LLAMA_2_7B, 6_738_415_616),
    (LLAMA_3_8B, 8_030_261_248),
    (LLAMA_31_8B, 8_030_261_248),
    (LLAMA_32_1B, 1_235_814_400),
]


@pytest.mark.parametrize(("values", "parameters"), PUBLISHED)
def test_published_sizes(values, parameters):
    with torch.device("meta"):
        model = Llama(LlamaConfig.from_hf(values))
        theirs = LlamaForCausalLM(TheirConfig(**deepcopy(values)))
    assert sum(p.numel() for p in model.parameters()) == parameters
    shapes = {name: t.shape for name, t in model.state_dict().items()}
    assert shapes == {name: t.shape for name, t in theirs.state_dict().items()}


@pytest.mark.parametrize("values", [SPARSE, *(values for values, _ in PUBLISHED)])
def test_published_configs_mean_what_transformers_takes_them_for(values, tmp_path):
    config = LlamaConfig.from_hf(values)
    theirs = TheirConfig(**deepcopy(values))  # which writes into what it is given
    assert config.norm_eps == theirs.rms_norm_eps
    assert config.max_positions == theirs.max_position_embeddings
    assert config.tie_embeddings == theirs.tie_word_embeddings
    assert config.bos_id == theirs.bos_token_id
    eos = theirs.eos_token_id
    assert list(config.eos_ids) == (eos if isinstance(eos, list) else [eos])
    assert torch.allclose(
        rope_frequencies(config), LlamaRotaryEmbedding(theirs).inv_freq, rtol=1e-6
    )
    theirs.save_pretrained(
        tmp_path
    )  # transformers leaves out what it takes for granted
    assert LlamaConfig.load(tmp_path) == config
    config.save(tmp_path)
    assert LlamaConfig.load(tmp_path) == config


@pytest.mark.parametrize("values", [values for values, _ in PUBLISHED])
def test_our_config_is_the_published_one_to_transformers(
    values, tmp_path, caplog, monkeypatch
):
    monkeypatch.setattr(logging.getLogger("transformers"), "propagate", True)
    config = LlamaConfig.from_hf(values)
    config.save(tmp_path)
    with caplog.at_level(logging.WARNING):
        back = TheirConfig.from_pretrained(tmp_path)
    assert not caplog.records
    ignored = {"dtype", "_name_or_path"}
    one, two = back.to_dict(), TheirConfig(**deepcopy(values)).to_dict()
    different = {name for name in one.keys() & two.keys() if one[name] != two[name]}
    assert different <= ignored
    old = config.to_hf()  # what a reader of the older format finds
    assert old["rope_theta"] == config.rope_theta
    assert old["rope_scaling"] == values["rope_scaling"]


@pytest.mark.parametrize("scaling", [None, RopeScaling(4.0, 1.0, 4.0, 64)])
@pytest.mark.parametrize("eos", [(), (5,), (5, 6)])
def test_every_field_survives_both_ways(tmp_path, scaling, eos):
    config = LlamaConfig(
        **SMALL,
        head_dim=16,
        max_positions=256,
        norm_eps=2e-5,
        rope_theta=12_345.0,
        rope_scaling=scaling,
        bos_id=None,
        eos_ids=eos,
    )
    config.save(tmp_path)
    assert LlamaConfig.load(tmp_path) == config
    TheirConfig.from_pretrained(tmp_path).save_pretrained(tmp_path / "theirs")
    assert LlamaConfig.load(tmp_path / "theirs") == config


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model_type": "mistral"}, "'mistral' model, not a Llama"),
        ({"attention_bias": True}, "no biases"),
        ({"hidden_act": "gelu"}, "SiLU"),
        ({"rope_scaling": {"type": "linear", "factor": 2.0}}, "'linear' is not Llama"),
        ({"rope_scaling": {"rope_type": "llama3", "factor": 8.0}}, "lacks low_freq"),
        ({"quantization_config": {"quant_method": "gptq"}}, "quantized"),
        ({"num_attention_heads": 48}, "hidden_size 4096 must be a multiple of n_heads"),
        ({"num_key_value_heads": 5}, "must be a multiple of n_kv_heads 5"),
    ],
)
def test_what_llama_3_lacks_is_refused(changes, message):
    with pytest.raises(Problem, match=message):
        LlamaConfig.from_hf(LLAMA_31_8B | changes)


@pytest.mark.parametrize("text", ["{", "[1]", "null", "\xff"])
def test_a_damaged_config_is_one_sentence(tmp_path, text):
    (tmp_path / "config.json").write_bytes(text.encode("latin-1"))
    with pytest.raises(Problem, match=r"config\.json in .* is damaged"):
        LlamaConfig.load(tmp_path)
