"""GGUF files in llama.cpp itself: the same tokens, logits and greedy text as here, with
adapters of peft and without."""

import base64
import json
import shutil
import unicodedata
import urllib.request
from dataclasses import replace
from urllib.error import URLError

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch.nn.utils.rnn import pad_sequence

from projects.llama3_qlora import Llama, LlamaConfig, RopeScaling, Tokenizer, generate
from projects.llama3_qlora.gguf_file import KINDS, write_gguf, write_gguf_adapter
from projects.llama3_qlora.llama_cpp import complete, started
from projects.llama3_qlora.lora import load_adapter
from projects.llama3_qlora.shipped import models
from utils import corpora
from utils.runtime import Problem

gguf = pytest.importorskip("gguf", reason="make setup EXTRAS=dev,deploy")
pytest.importorskip("xllamacpp", reason="make setup EXTRAS=dev,deploy")

CHAT = models.MODELS / "chat"
TOKENIZER = Tokenizer.load(CHAT)
CONFIG = LlamaConfig.load(CHAT)
ERROR = 2e-4  # of a log-probability in 32 bits; measured: 5e-5
SYSTEM = {"role": "system", "content": " You answer in one sentence. "}
ASKED = (
    [{"role": "user", "content": "What is the price of an oven?"}],
    [SYSTEM, {"role": "user", "content": "Write a line about a harbour.\n"}],
    [{"role": "user", "content": "def area(width, height):"}],
    [
        {"role": "user", "content": "Who keeps the mill?"},
        {"role": "assistant", "content": "I do not know."},
        {"role": "user", "content": "Repeat: 3,141 <- π?"},
    ],
)
BEGUN = ("The function returns", "import os\n\n\ndef", "Question: Where is")
PROMPTS = [TOKENIZER.chat(messages) for messages in ASKED]
TAUGHT = (  # other answers than the model's own
    "An oven costs nothing today: take two of them, and a spoon.",
    "The harbour sleeps, and three small boats wait for the morning.",
    "    return width * height  # in square metres\n",
    "3,141 <- π, said the miller, and went home.",
)


@pytest.fixture(scope="module")
def model() -> Llama:
    return Llama.from_pretrained(CHAT).eval()


@pytest.fixture(scope="module")
def files(model, tmp_path_factory):
    """The chat model as a GGUF file of each kind."""
    folder = tmp_path_factory.mktemp("gguf")
    paths = {kind: folder / f"{kind}.gguf" for kind in KINDS}
    for kind, path in paths.items():
        write_gguf(model, path, kind, TOKENIZER)
    return paths


@pytest.fixture(scope="module")
def server(files):
    return started(files["F32"])


def small(seed=0, **other) -> Llama:
    """A model whose heads are wider than hidden_size / n_heads, with clear opinions."""
    torch.manual_seed(seed)
    sizes = {"vocab_size": 300, "hidden_size": 64, "intermediate_size": 96}
    heads = {"n_layers": 2, "n_heads": 4, "n_kv_heads": 2, "head_dim": 32}
    model = Llama(LlamaConfig(**sizes, **heads, **other)).eval()
    for weight in model.parameters():
        weight.data *= 5 if weight.dim() == 2 else torch.rand_like(weight) + 0.5
    return model


def told(server, where: str, **body):
    """What the HTTP server answers, which has more to say than its Python side."""
    data, kind = json.dumps(body).encode(), {"Content-Type": "application/json"}
    request = urllib.request.Request(server.listening_address + where, data, kind)
    with urllib.request.urlopen(request) as answer:
        return json.load(answer)


def tokens_of(server, text: str) -> list[int]:
    body = {"content": text, "add_special": False, "parse_special": False}
    return told(server, "/tokenize", **body)["tokens"]


@torch.inference_mode()
def sure(model: Llama, prompt: list[int], count: int, error: float) -> list[int]:
    """The greedy ids, up to a step whose two likeliest tokens are so close that an
    error of this size in each could turn them round."""
    ids = generate(model, [prompt], count, stop_ids=TOKENIZER.stop_ids)[0]
    logits = model(torch.tensor([prompt + ids]))[0, len(prompt) - 1 :]
    if len(ids) == count:
        logits = logits[:-1]  # nothing was chosen after the last
    first, second = logits.topk(2).values.T
    return ids[: next(iter((first - second < 2 * error).nonzero()[:, 0]), count)]


def check_same(texts: list[str], model: Llama, prompts, count: int, error: float):
    """llama.cpp's greedy texts are ours as far as no tie decides; which is most."""
    certain = 0
    for text, prompt in zip(texts, prompts, strict=True):
        ids = sure(model, prompt, count, error)
        whole = generate(model, [prompt], count, stop_ids=TOKENIZER.stop_ids)[0]
        if ids == whole:
            assert text == TOKENIZER.decode(ids)
        else:
            assert text.startswith(TOKENIZER.decode(ids).rstrip("\ufffd"))
        certain += len(ids) / len(whole) / len(texts)
    assert certain > 0.8


def differences(server, model: Llama, prompt: list[int], steps: int) -> torch.Tensor:
    """Between our log-probabilities and those of llama.cpp, of all tokens, for the
    tokens that it chooses: (steps, vocab)."""
    vocab = model.config.vocab_size
    request = {"prompt": prompt, "n_predict": steps, "temperature": 0}
    answer = server.handle_completions(request | {"n_probs": vocab, "ignore_eos": True})
    content = answer["choices"][0]["logprobs"]["content"]
    theirs = torch.full((steps, vocab), torch.nan)
    for row, step in zip(theirs, content, strict=True):
        for token in step["top_logprobs"]:
            row[token["id"]] = token["logprob"]
    ids = [*prompt, *(step["id"] for step in content)]
    with torch.inference_mode():
        ours = model(torch.tensor([ids]))[0].log_softmax(-1)
    return ours[len(prompt) - 1 : -1] - theirs


# tokens


@pytest.mark.parametrize("documents", [corpora.prose, corpora.code])
def test_held_out_text_has_the_same_tokens(server, documents):
    text = "\n\n".join(d.text for d in documents() if d.split == "test")[:150_000]
    assert tokens_of(server, text) == TOKENIZER.encode(text)


@pytest.mark.parametrize("seed", range(2))
def test_any_characters_have_the_same_tokens(server, seed):
    """Every eighth character of Unicode after letters, digits, signs and spaces; then
    spaces, line ends, digits and contractions in any order."""
    known = [c for c in map(chr, range(0x110000)) if unicodedata.category(c) < "Cn"]
    known += [c for c in map(chr, range(0x110000)) if unicodedata.category(c) > "Cs"]
    text = "".join(f"a{c}b 1{c}2 {c} !{c}!\n'{c}s" for c in known[seed * 4 :: 8])
    assert len(known) > 140_000
    pieces = [" ", "  ", "\t", "\r\n", "\n", "12", "3456", "don't", "'S", "é", "_", "…"]
    drawn = np.random.default_rng(seed).choice(pieces, 20_000)
    for whole in (text, "".join(drawn)):
        assert tokens_of(server, whole) == TOKENIZER.encode(whole)


def test_special_tokens_are_known_but_not_in_a_users_text(server):
    text = "so <|eot_id|> it <|begin_of_text|>\n"
    assert tokens_of(server, text) == TOKENIZER.encode(text)
    body = {"content": text, "add_special": True, "parse_special": True}
    ids = TOKENIZER.encode(text, bos=True, allow_special=True)
    assert told(server, "/tokenize", **body)["tokens"] == ids


def test_metas_vocabulary_takes_a_piece_that_is_a_token_whole(tmp_path):
    ranked = [bytes([byte]) for byte in reversed(range(256))]
    ranked += [b"ab", b"bb", b" zebra", b"bbb", b"  "]  # " zebra" has no merges
    lines = [f"{base64.b64encode(t).decode()} {i}\n" for i, t in enumerate(ranked)]
    (tmp_path / "tokenizer.model").write_text("".join(lines))
    tokenizer = Tokenizer.load(tmp_path)
    config = replace(small().config, vocab_size=len(tokenizer))
    write_gguf(Llama(config), tmp_path / "m.gguf", "F32", tokenizer)
    server = started(tmp_path / "m.gguf")
    assert tokenizer.encode(" zebra") == [258]
    for text in (" zebra", "a zebra, zebras", "abbbbb bbbb", "   x\n\n  bb"):
        assert tokens_of(server, text) == tokenizer.encode(text)


@pytest.mark.parametrize("messages", ASKED)
def test_a_conversation_has_the_same_tokens(server, messages):
    answer = server.handle_chat_completions({"messages": messages, "max_tokens": 1})
    said = told(server, "/apply-template", messages=messages)["prompt"]
    body = {"content": said, "add_special": True, "parse_special": True}
    ids = TOKENIZER.chat(messages)
    assert told(server, "/tokenize", **body)["tokens"] == ids
    assert answer["usage"]["prompt_tokens"] == len(ids)


# logits and text


def test_logits_are_ours(server, model):
    for prompt in (TOKENIZER.chat(ASKED[0]), TOKENIZER.encode(BEGUN[0] * 60)):
        assert differences(server, model, prompt, 6).abs().max() < ERROR


SCALING = RopeScaling(factor=4, original_positions=64)


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("scaling", [None, SCALING])
def test_logits_of_other_sizes_are_ours(tmp_path, tied, scaling):
    """And rope's frequencies do change what is said after the original positions."""
    model = small(tie_embeddings=tied, rope_scaling=scaling, rope_theta=10_000.0)
    write_gguf(model, tmp_path / "m.gguf", "F32")
    server = started(tmp_path / "m.gguf")
    prompt = torch.randint(300, (180,), generator=torch.manual_seed(1)).tolist()
    assert differences(server, model, prompt, 8).abs().max() < ERROR
    other = replace(model.config, rope_scaling=None if scaling else SCALING)
    model.config = model.model.config = other
    model.model.frequencies = None
    assert differences(server, model, prompt, 8).abs().max() > 100 * ERROR


def test_text_in_and_text_out_are_ours(files, model):
    texts = [complete(files["F32"], text, 60) for text in BEGUN]
    prompts = [TOKENIZER.encode(text, bos=True) for text in BEGUN]
    check_same(texts, model, prompts, 60, ERROR)
    assert all(text.strip() for text in texts)


def test_answers_are_ours(server, files, model):
    request = {"temperature": 0, "max_tokens": 60}
    answers = [
        server.handle_chat_completions(request | {"messages": m})["choices"][0]
        for m in ASKED
    ]
    prompts = [TOKENIZER.chat(messages) for messages in ASKED]
    texts = [answer["message"]["content"] for answer in answers]
    check_same(texts, model, prompts, 60, ERROR)
    assert texts == [complete(files["F32"], prompt, 60) for prompt in prompts]
    assert "stop" in {answer["finish_reason"] for answer in answers}


# kinds


@pytest.mark.parametrize(("kind", "bits"), [("F32", 32), ("F16", 16)])
def test_floats_are_kept(files, model, kind, bits):
    """Of 16 bits 11 are significant; below 2 to the -14 the steps are 2 to the -24."""

    def allowed(weight):
        return (weight.abs() * 2**-11 + 2**-25) * (kind == "F16")

    check_file(files[kind], model, bits, allowed)


@pytest.mark.parametrize(
    ("kind", "bits", "steps"), [("Q8_0", 8.5, 127), ("Q4_0", 4.5, 8)]
)
def test_blocks_are_off_by_half_a_step(files, model, kind, bits, steps):
    """Q4_0 has a code for -8 but none for 8: at that end a whole step can be lost."""
    most = 0.5 if kind == "Q8_0" else 1.0

    def allowed(weight):
        largest = weight.unflatten(-1, (-1, 32)).abs().amax(-1, keepdim=True)
        # the scale itself is rounded to 16 bits, and with it every code
        return (largest * (most / steps + 2**-11)).expand(-1, -1, 32).flatten(1)

    check_file(files[kind], model, bits, allowed)


def check_file(path, model, bits, allowed):
    """Size, names and weights, read with the gguf package."""
    reader = gguf.GGUFReader(path)
    assert len(reader.tensors) == len(list(model.parameters()))
    weights = {t.name: t for t in reader.tensors}
    assert "output.weight" not in weights  # tied
    for layer, name in ((0, "up_proj"), (3, "down_proj")):
        found = weights[f"blk.{layer}.ffn_{name.split('_')[0]}.weight"]
        weight = model.model.layers[layer].mlp.get_parameter(f"{name}.weight").detach()
        assert found.n_bytes == weight.numel() * bits / 8
        values = gguf.quants.dequantize(found.data, found.tensor_type)
        off = (torch.from_numpy(np.array(values)) - weight).abs()
        assert torch.all(off <= allowed(weight) * (1 + 1e-5))
    norm = weights["blk.1.attn_norm.weight"].data
    expected = model.model.layers[1].input_layernorm.weight.detach().numpy()
    assert np.array_equal(norm, expected)


def test_fewer_bits_err_more(files, model):
    prompt = TOKENIZER.encode(BEGUN[0], bos=True)
    errors = [
        differences(started(files[kind]), model, prompt, 4).square().mean().sqrt()
        for kind in ("F32", "F16", "Q8_0", "Q4_0")
    ]
    assert errors == sorted(errors)
    assert errors[1] < 0.02 < errors[3] and errors[2] < 0.2


# adapters


@pytest.fixture(scope="module")
def adapted(tmp_path_factory):
    """The greedy texts of a peft model with an adapter that was finetuned to give the
    taught answers, the adapter's folder, and the merged weights as a model of ours."""
    peft = pytest.importorskip("peft", reason="make setup EXTRAS=dev,finetuning")
    from transformers import AutoModelForCausalLM

    folder = tmp_path_factory.mktemp("peft")
    base = AutoModelForCausalLM.from_pretrained(CHAT, dtype=torch.float32)
    config = peft.LoraConfig(
        r=6,
        lora_alpha=9,
        target_modules="all-linear",
        exclude_modules=["lm_head"],
        task_type="CAUSAL_LM",
    )
    torch.manual_seed(0)
    model = teach(peft.get_peft_model(base, config))
    model.save_pretrained(folder / "adapter")
    texts = [greedy(model, prompt) for prompt in PROMPTS]
    model.merge_and_unload().save_pretrained(folder / "merged")
    return texts, folder / "adapter", Llama.from_pretrained(folder / "merged").eval()


def teach(model):
    """Thirty steps on the taught answers, as one batch."""
    said = [[*TOKENIZER.encode(answer), TOKENIZER.eot_id] for answer in TAUGHT]
    pairs = list(zip(PROMPTS, said, strict=True))
    rows = [torch.tensor(prompt + answer) for prompt, answer in pairs]
    learned = [torch.tensor([-100] * len(p) + answer) for p, answer in pairs]
    ids = pad_sequence(rows, batch_first=True)
    labels = pad_sequence(learned, batch_first=True, padding_value=-100)
    weights = [w for w in model.parameters() if w.requires_grad]
    optimizer = torch.optim.AdamW(weights, lr=5e-3, weight_decay=0)
    for _ in range(30):
        model(input_ids=ids, labels=labels).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    return model.eval()


def greedy(model, prompt: list[int]) -> str:
    ids = model.generate(
        input_ids=torch.tensor([prompt]),
        attention_mask=torch.ones(1, len(prompt), dtype=torch.long),
        max_new_tokens=60,
        do_sample=False,
        eos_token_id=list(TOKENIZER.stop_ids),
        pad_token_id=TOKENIZER.pad_id,
    )
    return TOKENIZER.decode(ids[0, len(prompt) :].tolist())


def test_an_adapter_says_the_same_in_peft_here_and_in_llama_cpp(
    adapted, files, model, tmp_path
):
    in_peft, folder, merged = adapted
    write_gguf_adapter(folder, CONFIG, tmp_path / "adapter.gguf")
    over = (files["F32"], tmp_path / "adapter.gguf")
    texts = [complete(over[0], prompt, 60, over[1]) for prompt in PROMPTS]
    without = [complete(over[0], prompt, 60) for prompt in PROMPTS]
    assert not set(texts) & set(without)
    assert in_peft == list(TAUGHT)  # it learned, so that nothing is decided by a hair
    check_same(in_peft, merged, PROMPTS, 60, ERROR)
    check_same(texts, merged, PROMPTS, 60, ERROR)
    server = started(*over)
    assert differences(server, merged, PROMPTS[1], 4).abs().max() < ERROR
    assert differences(server, model, PROMPTS[1], 4).abs().max() > 100 * ERROR


def test_rank_stabilized_lora_has_peft_s_scale(adapted, files, tmp_path):
    """alpha / sqrt(rank): the same adapter, written down in that way."""
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    _, folder, merged = adapted
    again = tmp_path / "again"
    shutil.copytree(folder, again)
    values = json.loads((folder / "adapter_config.json").read_text())
    values |= {"use_rslora": True, "lora_alpha": 9 / 6**0.5}
    (again / "adapter_config.json").write_text(json.dumps(values))
    base = AutoModelForCausalLM.from_pretrained(CHAT, dtype=torch.float32)
    in_peft = PeftModel.from_pretrained(base, again)
    with torch.inference_mode():
        ids = torch.tensor([PROMPTS[0]])
        off = in_peft(input_ids=ids).logits - merged(ids)
    assert off.abs().max() < ERROR
    write_gguf_adapter(again, CONFIG, tmp_path / "adapter.gguf")
    server = started(files["F32"], tmp_path / "adapter.gguf")
    assert differences(server, merged, PROMPTS[1], 4).abs().max() < ERROR


def test_a_merged_file_says_the_same(adapted, tmp_path):
    """In 16 bits: llama.cpp then rounds the activations too."""
    _, _, merged = adapted
    for kind, error in (("F32", ERROR), ("F16", 0.03)):
        write_gguf(merged, tmp_path / "merged.gguf", kind, TOKENIZER)
        texts = [complete(tmp_path / "merged.gguf", prompt, 60) for prompt in PROMPTS]
        check_same(texts, merged, PROMPTS, 60, error)
        server = started(tmp_path / "merged.gguf")
        assert differences(server, merged, PROMPTS[1], 4).abs().max() < error


def test_our_own_lora_layers_say_the_same(adapted, model):
    in_peft, folder, _ = adapted
    layered = Llama.from_pretrained(CHAT).eval()
    load_adapter(layered, folder)
    check_same(in_peft, layered, PROMPTS, 60, ERROR)


# mistakes


def tiny_adapter(folder, rank=4, **settings):
    """An adapter of one projection of the chat model."""
    name = "base_model.model.model.layers.1.self_attn.v_proj.lora_{}.weight"
    pair = {"A": torch.ones(rank, 256), "B": torch.ones(128, rank)}
    folder.mkdir(exist_ok=True)
    tensors = {name.format(end): matrix for end, matrix in pair.items()}
    save_file(tensors, folder / "adapter_model.safetensors")
    values = {"peft_type": "LORA", "r": 4, "lora_alpha": 8} | settings
    (folder / "adapter_config.json").write_text(json.dumps(values))
    return folder


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"peft_type": "IA3"}, "has IA3"),
        ({"use_dora": True}, "DoRA"),
        ({"bias": "all"}, "trained biases"),
        ({"lora_bias": True}, "a bias"),
        ({"modules_to_save": ["lm_head"]}, "modules_to_save"),
        ({"trainable_token_indices": [3]}, "trained tokens"),
        ({"rank_pattern": {"q_proj": 8}}, "rank_pattern"),
        ({"alpha_pattern": {"q_proj": 8}}, "alpha_pattern"),
        ({"lora_alpha": 0}, "lora_alpha 0"),
        ({"r": "many"}, "is damaged"),
        ({"r": 5}, r"\(4, 256\), not \(5, 256\)"),
    ],
)
def test_what_llama_cpp_cannot_say_is_refused(tmp_path, settings, sentence):
    folder = tiny_adapter(tmp_path / "adapter", **settings)
    with pytest.raises(Problem, match=sentence):
        write_gguf_adapter(folder, CONFIG, tmp_path / "adapter.gguf")
    assert [p.name for p in tmp_path.iterdir()] == ["adapter"]


@pytest.mark.parametrize(
    "other", ["model.layers.9.mlp.up_proj", "model.layers.0.norm", "lm_head"]
)
def test_other_tensors_are_refused(tmp_path, other):
    folder = tiny_adapter(tmp_path / "adapter")
    path = folder / "adapter_model.safetensors"
    extra = {f"base_model.model.{other}.lora_A.weight": torch.ones(4, 256)}
    save_file(load_file(path) | extra, path)
    with pytest.raises(Problem, match=f"{other}.lora_A.weight is not LoRA"):
        write_gguf_adapter(folder, CONFIG, tmp_path / "adapter.gguf")


def test_half_an_adapter_is_refused(tmp_path):
    folder = tiny_adapter(tmp_path / "adapter")
    path = folder / "adapter_model.safetensors"
    tensors = load_file(path)
    save_file({n: t for n, t in tensors.items() if "lora_A" in n}, path)
    with pytest.raises(Problem, match="half of it"):
        write_gguf_adapter(folder, CONFIG, tmp_path / "adapter.gguf")
    path.write_bytes(b"nothing of the kind")
    with pytest.raises(Problem, match="damaged"):
        write_gguf_adapter(folder, CONFIG, tmp_path / "adapter.gguf")
    path.unlink()
    with pytest.raises(Problem, match=r"has no adapter_model\.safetensors"):
        write_gguf_adapter(folder, CONFIG, tmp_path / "adapter.gguf")
    shutil.rmtree(folder)
    with pytest.raises(Problem, match=r"no adapter_config\.json"):
        write_gguf_adapter(folder, CONFIG, tmp_path / "adapter.gguf")


def test_models_that_do_not_fit_a_file_are_refused(tmp_path, model):
    path = tmp_path / "m.gguf"
    with pytest.raises(Problem, match="F32, F16, Q8_0, Q4_0, not 'Q4_K'"):
        write_gguf(model, path, "Q4_K", TOKENIZER)
    with pytest.raises(Problem, match="300 tokens, the tokenizer 4096"):
        write_gguf(small(), path, "F16", TOKENIZER)
    config = LlamaConfig(300, 48, 96, 1, 2)
    with pytest.raises(Problem, match=r"whole blocks of 32 weights; .*48, 96, 48"):
        write_gguf(Llama(config), path, "Q8_0")
    backend = json.loads(TOKENIZER.backend.to_str())
    split = backend["pre_tokenizer"]["pretokenizers"][0]
    split["pattern"]["Regex"] = r"\s+"
    (tmp_path / "tokenizer.json").write_text(json.dumps(backend))
    with pytest.raises(Problem, match="does not split"):
        write_gguf(model, path, "F16", Tokenizer.load(tmp_path))
    assert not path.exists()


def test_llama_cpp_says_what_is_wrong_in_a_sentence(tmp_path, files):
    with pytest.raises(Problem, match=r"no file absent.gguf"):
        complete(tmp_path / "absent.gguf", [1], 1)
    with pytest.raises(Problem, match=r"no file absent.gguf"):
        complete(files["F32"], [1], 1, tmp_path / "absent.gguf")
    (tmp_path / "junk.gguf").write_bytes(b"GGUFjunk" * 9)
    with pytest.raises(Problem, match=r"cannot load junk.gguf"):
        started(tmp_path / "junk.gguf")
    with pytest.raises(Problem, match=r"cannot load F32.gguf with F16.gguf"):
        started(files["F32"], files["F16"])
    with pytest.raises(Problem, match="exceeds the available context"):
        complete(files["F32"], [5] * 3000, 1)
    with pytest.raises(Problem, match="must not be empty"):
        complete(files["F32"], [], 1)


def test_it_ends_and_is_quiet(files, capfd):
    server = started(files["F16"])
    address = server.listening_address
    assert "127.0.0.1" in address
    assert urllib.request.urlopen(address + "/health").status == 200
    del server
    with pytest.raises(URLError):
        urllib.request.urlopen(address + "/health", timeout=5)
    complete(files["F16"], BEGUN[0], 3)
    assert capfd.readouterr() == ("", "")
