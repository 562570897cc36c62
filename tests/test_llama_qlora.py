"""QLoRA: our four bits and adapters train as bitsandbytes, peft and TRL do."""

import copy

import pytest
import torch
import torch.nn.functional as F

from projects.llama3_qlora import Llama, Tokenizer, lora, nf4, questions
from projects.llama3_qlora.quantize import quantize_embedding
from utils.runtime import ROOT

FOLDER = ROOT / "data" / "models" / "base"
CONFIG = lora.LoRAConfig(4, 16)
STEPS, SIZE = 4, 8
MODULES = ("bitsandbytes", "datasets", "peft", "trl")


@pytest.fixture(scope="module", autouse=True)
def installed():
    for name in MODULES:
        pytest.importorskip(name, reason="needs the extra finetuning")


@pytest.fixture(scope="module")
def documents():
    made = questions.examples("train", STEPS * SIZE)
    return questions.as_tokens(Tokenizer.load(FOLDER), made)


@pytest.fixture(scope="module")
def ours():
    torch.manual_seed(0)
    return lora.add_lora(nf4.quantize_nf4(Llama.from_pretrained(FOLDER)), CONFIG)


@pytest.fixture(scope="module")
def theirs(ours, tmp_path_factory):
    """The base in bitsandbytes' four bits, with our fresh adapters in peft."""
    import peft
    import transformers

    fresh = tmp_path_factory.mktemp("fresh")
    lora.save_adapter(ours, CONFIG, fresh)
    four_bits = transformers.BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=torch.float32,
    )
    base = transformers.AutoModelForCausalLM.from_pretrained(
        FOLDER, quantization_config=four_bits, dtype=torch.float32, device_map="cpu"
    )
    base = peft.prepare_model_for_kbit_training(base, use_gradient_checkpointing=False)
    model = peft.PeftModel.from_pretrained(base, fresh, is_trainable=True)
    return model.train()  # in evaluation mode it may compute in 16 bits


@pytest.fixture(scope="module")
def same_scales(ours, theirs):
    """Ours with the few scales that bitsandbytes rounds otherwise on a CPU."""
    model = copy.deepcopy(ours)
    wrapped = dict(theirs.named_modules())
    for name, layer in lora.lora_layers(model).items():
        weight = wrapped[f"base_model.model.{name}"].base_layer.weight
        assert torch.equal(layer.base.codes.flatten(), weight.data.flatten())
        absmax = weight.quant_state.absmax
        layer.base.scales.data.copy_(absmax.view_as(layer.base.scales))
    return model


def batch(documents, number):
    """Inputs and targets of a batch, padded at the right."""
    here = slice(number * SIZE, (number + 1) * SIZE)
    rows = list(zip(documents[0][here], documents[1][here], strict=True))
    width = max(len(ids) for ids, _ in rows)
    inputs = torch.zeros(SIZE, width, dtype=torch.long)
    targets = torch.full((SIZE, width), -100)
    for i, (ids, mask) in enumerate(rows):
        inputs[i, : len(ids)] = torch.tensor(ids)
        targets[i, : len(ids)] = torch.tensor(
            [t if m else -100 for t, m in zip(ids, mask, strict=True)]
        )
    return inputs, targets


def loss_of(logits, targets):
    return F.cross_entropy(logits[:, :-1].flatten(0, 1), targets[:, 1:].flatten())


def test_logits_and_gradients_are_those_of_bitsandbytes_and_peft(
    same_scales, theirs, documents
):
    inputs, targets = batch(documents, 0)
    logits, expected = same_scales(inputs), theirs(inputs).logits
    torch.testing.assert_close(logits, expected, rtol=1e-4, atol=1e-4)
    loss_of(logits, targets).backward()
    loss_of(expected, targets).backward()
    grads = {n: p.grad for n, p in theirs.named_parameters() if p.grad is not None}
    layers = lora.lora_layers(same_scales)
    assert len(grads) == 2 * len(layers)
    for name, layer in layers.items():
        expected = grads[f"base_model.model.{name}.lora_B.default.weight"]
        assert expected.abs().max() > 0
        torch.testing.assert_close(layer.lora_B.grad, expected, rtol=1e-3, atol=1e-6)
    same_scales.zero_grad()
    theirs.zero_grad()


def test_losses_are_those_of_trl(ours, same_scales, theirs, documents, tmp_path):
    import datasets
    import transformers
    import trl

    arguments = trl.SFTConfig(
        output_dir=str(tmp_path),
        max_steps=STEPS,
        per_device_train_batch_size=SIZE,
        train_sampling_strategy="sequential",
        learning_rate=2e-3,
        lr_scheduler_type="constant",
        weight_decay=0.0,
        optim="adamw_torch",
        gradient_checkpointing=False,
        completion_only_loss=True,
        logging_steps=1,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        bf16=False,
        use_cpu=True,
    )
    columns = {"input_ids": documents[0], "completion_mask": documents[1]}
    trainer = trl.SFTTrainer(
        model=theirs,
        args=arguments,
        train_dataset=datasets.Dataset.from_dict(columns),
        processing_class=transformers.AutoTokenizer.from_pretrained(FOLDER),
    )
    for parameter in theirs.parameters():  # which it has turned into bfloat16
        if parameter.requires_grad:
            parameter.data = parameter.data.float()
    trainer.train()
    expected = [line["loss"] for line in trainer.state.log_history if "loss" in line]
    assert len(expected) == STEPS and expected[-1] < 0.7 * expected[0]
    assert losses(same_scales, documents) == pytest.approx(expected, abs=2e-3)
    assert losses(ours, documents) == pytest.approx(expected, abs=2e-2)


def losses(model, documents):
    learnt = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(learnt, lr=2e-3, weight_decay=0.0)
    found = []
    for step in range(STEPS):
        inputs, targets = batch(documents, step)
        loss = loss_of(model(inputs), targets)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(learnt, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        found.append(loss.item())
    return found


def test_weights_take_a_quarter_and_every_adapter_learns(documents):
    model = Llama.from_pretrained(FOLDER)
    full = sum(p.nbytes for p in model.parameters())
    quantize_embedding(nf4.quantize_nf4(model))
    lora.add_lora(model, lora.LoRAConfig(16, 64))
    stored = {t.data_ptr(): t for t in [*model.parameters(), *model.buffers()]}
    assert sum(t.nbytes for t in stored.values()) <= full / 4
    before = {n: p.clone() for n, p in model.named_parameters()}
    first, *_, last = losses(model, documents)
    assert last < 0.7 * first
    for name, parameter in model.named_parameters():
        moved = not torch.equal(parameter, before[name])
        assert moved == ("lora_" in name), name
