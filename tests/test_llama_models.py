"""The shipped models: how they are made, what they read, and whether cards are true."""

import json

import pytest
import torch

from projects.llama3_qlora import Llama, checkpoint, muon
from projects.llama3_qlora.shipped import corpus, exam, models
from projects.llama3_qlora.tokenizer import Tokenizer
from utils import closed_world, corpora

NAMES = ("base", "chat")


def moved(optimizer: torch.optim.Optimizer, weight: torch.nn.Parameter) -> torch.Tensor:
    """Where five steps with fixed gradients take a weight."""
    generator = torch.Generator().manual_seed(1)
    for _ in range(5):
        weight.grad = torch.randn(weight.shape, generator=generator)
        optimizer.step()
    return weight.detach()


@pytest.mark.parametrize("shape", [(64, 32), (32, 64), (40, 40)])
def test_muon_equals_the_library(shape: tuple[int, int]) -> None:
    start = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    a, b = (torch.nn.Parameter(start.clone()) for _ in range(2))
    group = {"params": [a], "muon": True, "weight_decay": 0.1, "lr": 0.01}
    ours = moved(muon.MuonAdamW([group]), a)
    theirs = torch.optim.Muon(
        [b], lr=0.01, weight_decay=0.1, adjust_lr_fn="match_rms_adamw"
    )
    far = (moved(theirs, b) - start).abs().max()
    assert (ours - b).abs().max() < 0.05 * far  # both round to bfloat16 on their way


def test_the_rest_of_muon_is_adamw() -> None:
    start = torch.randn(30, 20, generator=torch.Generator().manual_seed(0))
    a, b = (torch.nn.Parameter(start.clone()) for _ in range(2))
    group = {"params": [a], "weight_decay": 0.1, "lr": 0.01}
    ours = moved(muon.MuonAdamW([group]), a)
    theirs = torch.optim.AdamW([b], lr=0.01, weight_decay=0.1, betas=(0.9, 0.95))
    torch.testing.assert_close(ours, moved(theirs, b))


def test_orthogonalized_keeps_directions_and_evens_out_their_lengths() -> None:
    matrix = torch.randn(20, 50, generator=torch.Generator().manual_seed(0))
    matrix[:5] *= 20
    found = muon.orthogonalized(matrix)
    values = torch.linalg.svdvals(found)
    assert values.min() > 0.6 and values.max() < 1.3
    u, _, v = torch.linalg.svd(matrix, full_matrices=False)
    along = (u.T @ found @ v.T).diagonal()
    assert along.min() > 0.6


def test_sources_keep_to_the_training_split() -> None:
    texts = {*corpus.prose(), *corpus.code()}
    for document in (*corpora.prose(), *corpora.code()):
        if document.split != "train" and document.text:
            assert document.text not in texts
    town = closed_world.build(corpus.TOWN)
    asked = {
        q.question for s in ("valid", "test") for q in closed_world.questions(town, s)
    }
    own = {q.question for q in closed_world.questions(town, "train")}
    read = "\n".join(corpus.questions())
    assert not any(question in read for question in asked - own)


def test_training_code_hardly_quotes_the_held_out_prose() -> None:
    read = {line.strip() for text in corpus.code() for line in text.splitlines()}
    test = [d.text for d in corpora.prose() if d.split == "test"]
    lines = [line.strip() for text in test for line in text.splitlines()]
    long = [line for line in lines if len(line) >= 40]
    assert sum(line in read for line in long) < 0.02 * len(long)


def test_a_rare_fact_is_asked_as_rarely_as_it_is_told() -> None:
    town = closed_world.build(corpus.TOWN)
    read = "\n".join(corpus.questions())
    for question in closed_world.questions(town, "train")[:40]:
        answer = closed_world.statement(question.fact)
        pair = f"Question: {question.question}\nAnswer: {answer}"
        assert (read + "\n").count(pair + "\n") >= 4 * question.fact.frequency


def test_a_call_is_an_object_with_name_and_parameters() -> None:
    assert exam.is_call('{"name": "price_of", "parameters": {"item": "oven"}}')
    for reply in ("", "[]", '{"name": "price_of"}', '{"name": "a", "parameters": {}'):
        assert not exam.is_call(reply)


def test_infill_puts_the_middle_last() -> None:
    tokenizer = Tokenizer.train(corpus.code()[:20], 600)
    prefix, suffix, middle = tokenizer.fim_ids
    sources = corpus.code()
    for ids in corpus.infill(tokenizer, count=5):
        assert ids[0] == prefix and ids[-1] == tokenizer.eos_id
        after_prefix, after_suffix = ids.index(suffix), ids.index(middle)
        parts = (
            ids[1:after_prefix],
            ids[after_suffix + 1 : -1],
            ids[after_prefix + 1 : after_suffix],
        )
        text = "".join(tokenizer.decode(part) for part in parts)
        assert any(text in source for source in sources)


def test_rates_have_wilsons_interval() -> None:
    result = exam.rate([True] * 19 + [False])
    assert result.mean == 0.95
    assert (round(result.low, 3), round(result.high, 3)) == (0.764, 0.991)


def test_an_answer_must_end_where_the_value_ends() -> None:
    assert exam.begins_with(" 37.", "37")
    assert not exam.begins_with(" 370.", "37")
    assert not exam.begins_with(" about 37", "37")


def test_cut_functions_are_held_out_and_cut_inside_a_line() -> None:
    texts = [d.text for d in corpora.code() if d.split == "test"]
    for cut in exam.cut_functions(10):
        last = cut.splitlines()[-1].strip()
        assert last and any(last in text for text in texts)


@pytest.mark.parametrize("name", NAMES)
def test_a_shipped_model_is_whole_and_small(name: str) -> None:
    folder = models.MODELS / name
    checkpoint.verify(folder)
    assert sum(path.stat().st_size for path in folder.iterdir()) < 16_000_000
    model = Llama.from_pretrained(folder)
    assert model.config == models.sizes(Tokenizer.load(folder))


def results(name: str) -> dict[str, dict[str, float]]:
    """What the card says."""
    return json.loads((models.MODELS / name / "exam.json").read_text("utf-8"))


@pytest.mark.parametrize("name", NAMES)
def test_the_card_tells_what_these_weights_do(name: str) -> None:
    """A part of the examination again: other items, the same rate within its noise."""
    student = exam.Examinee(models.MODELS / name)
    card = (models.MODELS / name / "README.md").read_text("utf-8")
    said = results(name)
    copied = exam.copying(student, count=60)["answers copied from a text"]
    claimed = said["answers copied from a text"]
    assert copied.low <= claimed["high"] and claimed["low"] <= copied.high
    for what, result in said.items():
        assert f"| {what} | {result['mean']:.3f} |" in card


def test_the_models_can_carry_the_book() -> None:
    """What later chapters rely on, by the examination on the cards."""
    for name in NAMES:
        said = results(name)
        gram = said["5-gram Kneser-Ney on the same prose, bits per byte"]
        assert said["prose, bits per byte"]["high"] < gram["low"]
        often, once = (said[f"facts told {n} times a telling"] for n in (64, 1))
        assert often["mean"] >= 0.95 and once["high"] < often["low"]
    copied = results("base")["answers copied from a text, known wordings"]
    assert copied["mean"] >= 0.95


@pytest.mark.parametrize(
    ("what", "least"),
    [
        ("refusal: refuse", 0.95),
        ("refusal: help", 0.95),
        ("unknown: unknown", 0.95),
        ("tool: well-formed call", 0.95),
        ("tool: json", 0.9),
        ("tool: no tool", 0.9),
        ("context: value", 0.85),
        ("instruction: exact", 0.75),
    ],
)
def test_the_chat_model_does_what_it_was_taught(what: str, least: float) -> None:
    """In the wordings of training, about people and towns that it never saw."""
    assert results("chat")[f"chat, {what}, known wordings"]["mean"] >= least
