"""LoRA: equal to PEFT, learns, merges exactly, is saved and mixed."""

import copy
import json

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from projects.llama3_qlora import Llama, LlamaConfig, adapters, lora, nf4
from projects.llama3_qlora.lora import LoRAConfig
from projects.llama3_qlora.quantize import Int8Linear
from utils.runtime import Problem

SIZES = LlamaConfig(256, 64, 128, 2, 4, 2, tie_embeddings=True)


@pytest.fixture
def model():
    torch.manual_seed(0)
    return Llama(SIZES)


def adapted(model, seed=1, **settings):
    """The model with adapters that do something."""
    config = LoRAConfig(**settings)
    lora.add_lora(model, config)
    generator = torch.Generator().manual_seed(seed)
    for layer in lora.lora_layers(model).values():
        layer.lora_B.data.normal_(std=0.1, generator=generator)
        layer.lora_A.data.normal_(std=0.1, generator=generator)
    return config


def tokens(rows=3):
    return torch.randint(256, (rows, 12), generator=torch.Generator().manual_seed(2))


def by_peft(folder, tmp_path, base):
    """What peft makes of an adapter folder on the same base, in transformers."""
    peft = pytest.importorskip("peft", reason="needs the extra finetuning")
    transformers = pytest.importorskip("transformers")
    base.save_pretrained(tmp_path / "base")
    theirs = transformers.AutoModelForCausalLM.from_pretrained(
        tmp_path / "base", dtype=torch.float32
    )
    return peft.PeftModel.from_pretrained(theirs, folder, is_trainable=True)


@pytest.mark.parametrize(
    "make", [lambda w: linear_of(w), nf4.NF4Linear, Int8Linear], ids=["16", "nf4", "8"]
)
def test_wraps_any_linear(make):
    base = make(torch.randn(96, 64))
    layer = lora.LoRALinear(base, LoRAConfig(4, 8))
    x = torch.randn(2, 3, 64)
    assert torch.equal(layer(x), base(x))  # nothing has changed yet
    nn.init.normal_(layer.lora_B)
    expected = base(x) + x @ layer.change().T
    torch.testing.assert_close(layer(x), expected, rtol=1e-4, atol=1e-4)


def linear_of(weight):
    layer = nn.Linear(weight.shape[1], weight.shape[0], bias=False)
    layer.weight.data = weight
    return layer


def test_only_the_adapters_learn(model):
    lora.add_lora(model, LoRAConfig(4))
    before = copy.deepcopy(model.state_dict())
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad])
    for _ in range(3):
        F.cross_entropy(
            model(tokens())[:, :-1].flatten(0, 1), tokens()[:, 1:].flatten()
        ).backward()
        optimizer.step()
    moved = {n for n, t in model.state_dict().items() if not torch.equal(t, before[n])}
    assert moved == {n for n in before if "lora_" in n}


def test_gradient_flows_at_the_first_step_to_b_and_at_the_second_to_a(model):
    lora.add_lora(model, LoRAConfig(4))
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], 1.0)
    for step in range(2):
        optimizer.zero_grad()
        model(tokens()).square().sum().backward()
        for layer in lora.lora_layers(model).values():
            assert layer.lora_B.grad.abs().max() > 0
            assert (layer.lora_A.grad.abs().max() > 0) == (step == 1)
        optimizer.step()


def test_equal_to_peft_forward_gradient_and_merge(model, tmp_path):
    plain = copy.deepcopy(model)
    config = adapted(model, rank=4, alpha=8)
    lora.save_adapter(model, config, tmp_path / "adapter")
    theirs = by_peft(tmp_path / "adapter", tmp_path, plain)
    torch.testing.assert_close(model(tokens()), theirs(tokens()).logits)
    model(tokens()).square().mean().backward()
    theirs(tokens()).logits.square().mean().backward()
    grads = {n: p.grad for n, p in theirs.named_parameters() if p.grad is not None}
    ours = lora.lora_layers(model)
    assert len(grads) == 2 * len(ours)
    for name, layer in ours.items():
        for part in ("lora_A", "lora_B"):
            expected = grads[f"base_model.model.{name}.{part}.default.weight"]
            torch.testing.assert_close(layer.get_parameter(part).grad, expected)
    merged, whole = lora.merge(model), theirs.merge_and_unload()
    expected = dict(whole.named_parameters())
    for name, weight in merged.named_parameters():
        assert torch.equal(weight, expected[name]), name


def test_loads_what_peft_saves(model, tmp_path):
    peft = pytest.importorskip("peft", reason="needs the extra finetuning")
    transformers = pytest.importorskip("transformers")
    model.save_pretrained(tmp_path / "base")
    theirs = transformers.AutoModelForCausalLM.from_pretrained(
        tmp_path / "base", dtype=torch.float32
    )
    settings = peft.LoraConfig(
        r=3, lora_alpha=5, target_modules=["q_proj", "down_proj"], task_type="CAUSAL_LM"
    )
    theirs = peft.get_peft_model(theirs, settings)
    for name, weight in theirs.named_parameters():
        if "lora_B" in name:
            nn.init.normal_(weight, std=0.1)
    theirs.save_pretrained(tmp_path / "adapter")
    config = lora.load_adapter(model, tmp_path / "adapter")
    assert config == LoRAConfig(3, 5, ("down_proj", "q_proj"))
    torch.testing.assert_close(model(tokens()), theirs(tokens()).logits)


def test_saved_and_loaded_is_the_same(model, tmp_path):
    plain = copy.deepcopy(model)
    config = adapted(model, rank=2, targets=("v_proj", "up_proj"))
    lora.save_adapter(model, config, tmp_path)
    lora.load_adapter(plain, tmp_path)
    assert torch.equal(model(tokens()), plain(tokens()))


def test_merged_is_a_plain_model_that_computes_the_same(model):
    adapted(model)
    before = model(tokens())
    lora.merge(model)
    assert not lora.lora_layers(model)
    torch.testing.assert_close(model(tokens()), before, rtol=1e-4, atol=1e-5)


def test_nf4_base_merges_into_floats(model):
    nf4.quantize_nf4(model)
    adapted(model)
    before = model(tokens())
    lora.merge(model)
    torch.testing.assert_close(model(tokens()), before, rtol=1e-4, atol=1e-5)


def test_many_adapters_in_one_batch(model, tmp_path):
    single = {}
    settings = [{"rank": 2}, {"rank": 5, "targets": ("q_proj", "down_proj")}]
    for seed, how in enumerate(settings):
        one = copy.deepcopy(model)
        config = adapted(one, seed, **how)
        lora.save_adapter(one, config, tmp_path / str(seed))
        single[str(seed)] = one
    plain = copy.deepcopy(model)
    chosen = adapters.add_adapters(model, {n: tmp_path / n for n in single})
    rows = ["1", None, "0", "1"]
    chosen.use(rows)
    together = model(tokens(4))
    for i, name in enumerate(rows):
        alone = single.get(name, plain)(tokens(4)[i : i + 1])
        torch.testing.assert_close(together[i : i + 1], alone, rtol=1e-4, atol=1e-5)
    assert (together[0] - plain(tokens(4))[0]).abs().max() > 0.01


def test_equal_to_pefts_mixed_batch(model, tmp_path):
    plain = copy.deepcopy(model)
    for seed, name in enumerate("ab"):
        one = copy.deepcopy(model)
        lora.save_adapter(one, adapted(one, seed, rank=3), tmp_path / name)
    theirs = by_peft(tmp_path / "a", tmp_path, plain)
    theirs.load_adapter(tmp_path / "b", "b")
    theirs.eval()
    chosen = adapters.add_adapters(model, {n: tmp_path / n for n in "ab"})
    chosen.use(["b", "a", None])
    names = ["b", "default", "__base__"]
    with torch.no_grad():
        expected = theirs(tokens(), adapter_names=names).logits
        torch.testing.assert_close(model(tokens()), expected, rtol=1e-4, atol=1e-5)


def test_bad_input_is_one_sentence(model, tmp_path):
    with pytest.raises(Problem, match="rank of 1 or more"):
        LoRAConfig(0)
    with pytest.raises(Problem, match="some of q_proj"):
        LoRAConfig(targets=("wq",))
    with pytest.raises(Problem, match="no adapters to save"):
        lora.save_adapter(model, LoRAConfig(), tmp_path)
    with pytest.raises(Problem, match="no adapter that can be read"):
        lora.load_adapter(model, tmp_path)
    other = Llama(LlamaConfig(256, 128, 128, 2, 4))
    lora.save_adapter(other, adapted(other), tmp_path / "other")
    before = model(tokens())
    with pytest.raises(Problem, match="does not fit this model: "):
        lora.load_adapter(model, tmp_path / "other")
    assert torch.equal(model(tokens()), before)  # untouched
    settings = tmp_path / "other" / "adapter_config.json"
    values = json.loads(settings.read_text()) | {"use_dora": True}
    settings.write_text(json.dumps(values))
    with pytest.raises(Problem, match=r"not plain LoRA \(use_dora\)"):
        lora.load_adapter(model, tmp_path / "other")
    (tmp_path / "other" / "adapter_model.safetensors").write_bytes(b"\0" * 9)
    with pytest.raises(Problem, match="missing or damaged"):
        lora.load_adapter(model, tmp_path / "other")
    adapted(model)
    with pytest.raises(Problem, match="adapters already"):
        lora.add_lora(model, LoRAConfig())
    with pytest.raises(Problem, match="no adapter x"):
        adapters.Adapters(["a"]).use(["a", None, "x"])
