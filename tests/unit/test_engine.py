"""The local engine gives the same reply in a batch as alone; the loop around it repeats no finished request."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, DynamicCache
from transformers.cache_utils import DynamicLayer

from pipeline.engines import embedded, hf
from pipeline.engines.base import ChoiceQuery, ReplyQuery, Request
from pipeline.engines.decoding import make_room
from pipeline.engines.hf import HFEngine
from pipeline.engines.models import load_model, load_tokenizer
from pipeline.engines.prefix import cache_of, reads_padding, shares_prefixes
from pipeline.engines.sampling import nucleus_sample
from pipeline.engines.worklist import generate_all, score_all
from pipeline.records import Message
from tests.fakes import FakeEngine, FakeLogbook

LONG = "A shared beginning, long enough that it is worth computing once for all rows of a batch. " * 3


def engine(random_model: Path, **options: object) -> HFEngine:
    return HFEngine(load_model(str(random_model), "fp32"), load_tokenizer(str(random_model)), "tiny", **options)  # type: ignore[arg-type]


def asks(temperature: float) -> list[Request]:
    return [
        Request(
            id=str(i),
            messages=[Message(role="user", content=LONG), Message(role="user", content="word " * (i % 5) + str(i))],
            seed=i,
            max_new_tokens=10,
            temperature=temperature,
            top_p=0.9,
        )
        for i in range(9)
    ]


def replies(engine: HFEngine, requests: list[Request]) -> dict[str, str]:
    return {done.id: done.text for batch in engine.batches(requests) for done in engine.generate(batch)}


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_order_batching_and_sharing_change_nothing(random_model: Path, temperature: float):
    requests = asks(temperature)
    alone = replies(engine(random_model, batch_rows=1), requests)
    assert len(set(alone.values())) > 3
    assert replies(engine(random_model, batch_rows=4), requests[::-1]) == alone
    assert replies(engine(random_model, batch_rows=9, share_prefix=False), requests) == alone
    assert replies(engine(random_model, batch_rows=9, batch_tokens=10**6), requests[3:]) == {
        row_id: text for row_id, text in alone.items() if int(row_id) >= 3
    }


def test_a_model_without_training_and_with_a_large_vocabulary_is_examined(tiny_model: Path):
    config = AutoConfig.from_pretrained(tiny_model)
    config.update({"vocab_size": 200_000, "hidden_size": 8, "intermediate_size": 8, "head_dim": 4})
    model = AutoModelForCausalLM.from_config(config)
    torch.nn.init.zeros_(model.lm_head.weight)  # each token has a log-probability of −12.2
    assert shares_prefixes(model) and not reads_padding(model)


def test_a_reply_that_has_ended_leaves_the_batch(random_model: Path):
    limits = [2, 2, 2, 2, 12, 12, 3, 12]
    requests = [
        Request(**{**vars(ask), "max_new_tokens": limit}) for ask, limit in zip(asks(1.0), limits, strict=False)
    ]
    one_batch = engine(random_model, batch_rows=8)
    rows: list[int] = []
    one_batch._model.register_forward_pre_hook(
        lambda model, args, kwargs: rows.append(len(kwargs["input_ids"])), with_kwargs=True
    )
    together = {done.id: (done.text, done.num_tokens, done.finish) for done in one_batch.generate(requests)}
    assert rows[0] == 1 and rows[1] == 8 and rows[-1] == 3, "the shared beginning, all prompts, the longest replies"
    alone = engine(random_model, batch_rows=1)
    for request in requests:
        [done] = alone.generate([request])
        assert together[request.id] == (done.text, done.num_tokens, done.finish)


def test_room_for_tokens_holds_the_same_keys_and_values():
    plain, start = DynamicLayer(), torch.randn(2, 3, 5, 4)
    plain.update(start, -start)
    cache = DynamicCache()
    cache.layers = [DynamicLayer()]
    cache.layers[0].update(start, -start)
    make_room(cache, num_copies=3, room=4)
    plain.batch_repeat_interleave(3)
    [roomy] = cache.layers
    for layer in (plain, roomy):
        layer.update(torch.ones(6, 3, 2, 4), torch.zeros(6, 3, 2, 4))
        layer.batch_select_indices(torch.tensor([0, 5]))
        layer.update(torch.full((2, 3, 2, 4), 2.0), torch.full((2, 3, 2, 4), 3.0))
    assert torch.equal(roomy.keys, plain.keys) and torch.equal(roomy.values, plain.values)
    assert cache.get_seq_length() == 9
    with pytest.raises(AssertionError, match="room"):
        roomy.update(torch.ones(2, 3, 1, 4), torch.ones(2, 3, 1, 4))


def test_greedy_is_what_transformers_gives(random_model: Path):
    model, tokenizer = load_model(str(random_model), "fp32"), load_tokenizer(str(random_model))
    request = asks(0.0)[4]
    prompt = tokenizer.apply_chat_template(request.messages, tokenize=False, add_generation_prompt=True)
    ids = tokenizer(prompt, return_tensors="pt", add_special_tokens=False).input_ids
    output = model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=10, do_sample=False)
    expected = tokenizer.decode(output[0, ids.shape[1] :], skip_special_tokens=True).strip()
    assert replies(engine(random_model), asks(0.0))["4"] == expected


def test_a_seed_is_a_draw(random_model: Path):
    one = asks(1.0)[0]
    other = Request(**{**vars(one), "id": "other", "seed": 99})
    found = replies(engine(random_model), [one, other])
    assert found["0"] != found["other"]


def test_too_long_prompts_are_marked_not_cut(random_model: Path):
    long = Request(**{**vars(asks(0.0)[0]), "id": "long", "max_new_tokens": 5000})
    [done] = engine(random_model).generate([long])
    assert (done.finish, done.text) == ("too_long", "")


def test_reply_logprobs_equal_a_plain_forward_pass(random_model: Path):
    model, tokenizer = load_model(str(random_model), "fp32"), load_tokenizer(str(random_model))
    queries = [
        ReplyQuery(id=f"{i}", messages=[Message(role="user", content=LONG + "x " * i)], reply="Yes. " * (1 + i))
        for i in range(4)
    ]
    tested = engine(random_model)
    found = {a.id: a.logprobs[0] for batch in tested.batches(queries) for a in tested.score(batch)}
    for query in queries:
        prompt = tokenizer.apply_chat_template(query.messages, tokenize=False, add_generation_prompt=True)
        head = tokenizer(prompt, add_special_tokens=False).input_ids
        tail = [*tokenizer(query.reply, add_special_tokens=False).input_ids, tokenizer.eos_token_id]
        logprobs = model(torch.tensor([head + tail])).logits[0].log_softmax(-1)
        expected = [logprobs[len(head) + i - 1, token].item() for i, token in enumerate(tail)]
        assert found[query.id] == pytest.approx(sum(expected) / len(expected), abs=1e-4)


def test_choice_logprobs_are_of_the_next_token(random_model: Path):
    model, tokenizer = load_model(str(random_model), "fp32"), load_tokenizer(str(random_model))
    query = ChoiceQuery(
        id="q", messages=[Message(role="user", content="Which?")], opening="It is (", choices=("A", "B")
    )
    tested = engine(random_model)
    [answer] = tested.score([query])
    prompt = tokenizer.apply_chat_template(query.messages, tokenize=False, add_generation_prompt=True)
    ids = [token for text in (prompt, "It is (") for token in tokenizer(text, add_special_tokens=False).input_ids]
    logprobs = model(torch.tensor([ids])).logits[0, -1].log_softmax(-1)
    expected = [logprobs[tokenizer.convert_tokens_to_ids(letter)].item() for letter in "AB"]
    assert answer.logprobs == pytest.approx(expected, abs=1e-4)


def test_texts_that_do_not_fit_the_context_get_no_number(random_model: Path):
    model = load_model(str(random_model), "fp32")
    fits = Request(id="fits", messages=[Message(role="user", content="Hi.")], seed=0, max_new_tokens=1, temperature=0)
    model.config.max_position_embeddings = 60
    small = HFEngine(model, load_tokenizer(str(random_model)), "small")
    long = [Message(role="user", content=LONG)]
    replies = [ReplyQuery(id=str(n), messages=turns, reply="Yes.") for n, turns in enumerate((long, fits.messages))]
    assert [answer.is_readable for answer in small.score(replies)] == [False, True]
    choices = [
        ChoiceQuery(id=str(n), messages=turns, opening="A:", choices=(" a", " b"))
        for n, turns in enumerate((long, fits.messages))
    ]
    assert [answer.is_readable for answer in small.score(choices)] == [False, True]


@pytest.mark.parametrize(
    "saved",
    [
        {"no_repeat_ngram_size": 1},
        {"repetition_penalty": 5.0},
        {"suppress_tokens": [40, 41, 42, 43, 44, 45]},
        {"min_new_tokens": 9},
        {"num_beams": 3},
        {"guidance_scale": 3.0},
        {"stop_strings": ["e"]},
        {"forced_eos_token_id": 5},
    ],
    ids=lambda saved: next(iter(saved)),
)
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_the_models_own_generation_settings_change_nothing(random_model: Path, saved: dict, temperature: float):
    model, tokenizer = load_model(str(random_model), "fp32"), load_tokenizer(str(random_model))
    plain = replies(HFEngine(model, tokenizer, "plain"), asks(temperature))
    own = model.generation_config
    own.update(**saved)
    assert replies(HFEngine(model, tokenizer, "own"), asks(temperature)) == plain
    assert model.generation_config is own, "it is saved with a model that is trained"


def test_thoughts_are_no_reply(random_model: Path, monkeypatch: pytest.MonkeyPatch):
    tested = engine(random_model)

    def texts(written: str) -> str:
        return tested.text_of(tested._chat.text_ids(written))

    assert texts("<think>Hm.</think>\n\nYes.") == texts("Hm.</think>Yes.") == "Yes."
    assert texts("<think>Hm. I must") == ""
    assert texts("I think <b> is bold.") == "I think <b> is bold."


def test_sampling_inverts_the_cumulative_distribution():
    logits = torch.log(torch.tensor([[0.5, 0.3, 0.2]])).repeat(5, 1)
    uniforms = torch.tensor([0.0, 0.49, 0.51, 0.79, 0.81], dtype=torch.float64)
    ones = torch.ones(5, dtype=torch.float64)
    assert nucleus_sample(logits, uniforms, ones, ones).tolist() == [0, 0, 1, 1, 2]
    # top_p = 0.6 keeps the first two tokens, renormalised to 5/8 and 3/8.
    assert nucleus_sample(logits, uniforms, ones, 0.6 * ones).tolist() == [0, 0, 0, 1, 1]
    assert nucleus_sample(logits, uniforms, 0 * ones, ones).tolist() == [0] * 5
    # T = 1/2 squares the probabilities: 0.25, 0.09, 0.04 over 0.38.
    halves = nucleus_sample(logits, torch.tensor([0.65, 0.66, 0.89, 0.90, 0.99], dtype=torch.float64), 0.5 * ones, ones)
    assert halves.tolist() == [0, 1, 1, 2, 2]


def test_sampled_frequencies_match_the_distribution():
    probabilities = torch.tensor([0.1, 0.2, 0.7])
    rows = 20000
    uniforms = torch.rand(rows, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    ones = torch.ones(rows, dtype=torch.float64)
    tokens = nucleus_sample(probabilities.log().repeat(rows, 1), uniforms, ones, ones)
    assert torch.bincount(tokens, minlength=3) / rows == pytest.approx(probabilities, abs=0.015)


def request(number: int) -> Request:
    return Request(id=str(number), messages=[], seed=0, max_new_tokens=1, temperature=0.0)


def test_finished_asks_are_not_paid_for_twice(tmp_path: Path):
    requests = [request(i) for i in range(5)]
    first = FakeEngine()
    generate_all(first, "x", requests[:3], FakeLogbook(tmp_path), "log")
    second = FakeEngine(reply=lambda r: "another draw")
    done = generate_all(second, "x", requests, FakeLogbook(tmp_path), "log")
    # Batches are (0, 1), (2, 3), (4): the half-finished one is repeated whole, and its old row wins.
    assert second.asked == ["2", "3", "4"]
    assert [done[str(i)].text for i in range(5)] == [
        "Reply to 0.",
        "Reply to 1.",
        "Reply to 2.",
        "another draw",
        "another draw",
    ]


def test_scores_of_both_kinds_come_back_by_id(tmp_path: Path):
    queries = [
        ChoiceQuery(id="c", messages=[], opening="", choices=("A", "B")),
        ReplyQuery(id="r", messages=[], reply="x"),
    ]
    fake = FakeEngine(answer=lambda q: [-1.0] if isinstance(q, ReplyQuery) else [math.log(0.5)] * 2)
    answers = score_all(fake, "x", queries, FakeLogbook(tmp_path), "log")
    assert answers["r"].logprobs == [-1.0] and len(answers["c"].logprobs) == 2


@pytest.mark.parametrize(
    ("kind", "asked"), [(ReplyQuery, {"reply": "so"}), (ChoiceQuery, {"opening": "", "choices": ("A", "B")})]
)
def test_queries_that_follow_the_same_examples_are_scored_together(random_model: Path, kind: Any, asked: Any):
    """Otherwise nothing could be read once; a dialogue of its own kind doesn't get a batch of its own."""
    scorer = engine(random_model)
    shown = {name: [{"role": "system", "content": f"Examples of {name}. " * 8}] * 2 for name in ("yes", "no")}
    queries = [
        kind(id=f"{name}{n}", messages=[*turns, {"role": "user", "content": "word " * n}], **asked)
        for n in range(1, 6)
        for name, turns in shown.items()
    ]
    lone = kind(id="lone", messages=[*shown["no"], *shown["yes"], {"role": "user", "content": "x"}], **asked)
    batches = [{ask.id.rstrip("12345") for ask in batch} for batch in scorer.batches([*queries, lone])]
    assert sorted(batches, key=str) == [{"lone"}, {"no"}, {"yes"}]


@pytest.mark.parametrize("kind", ["choices", "replies"])
def test_examples_are_computed_once_for_all_batches(random_model: Path, monkeypatch: pytest.MonkeyPatch, kind: str):
    computed: list[int] = []

    def counted(model: Any, ids: torch.Tensor, **options: Any) -> Any:
        computed.append(ids.shape[1])
        return cache_of(model, ids, **options)

    monkeypatch.setattr(hf, "cache_of", counted)
    asked = [_after_examples(kind, group, number) for group in "ab" for number in range(8)]
    shared = engine(random_model, batch_rows=3)
    batches = shared.batches(asked)
    found = {answer.id: answer.logprobs for batch in batches for answer in shared.score(batch)}
    assert len(batches) >= 6 and len(computed) == 2 and min(computed) > 20
    alone = engine(random_model, batch_rows=1, share_prefix=False)
    expected = {answer.id: answer.logprobs for query in asked for answer in alone.score([query])}
    assert {name: pytest.approx(logprobs, abs=1e-4) for name, logprobs in expected.items()} == found
    mixed = shared.score([asked[0], asked[8]])
    assert [found[answer.id] for answer in mixed] == [pytest.approx(answer.logprobs, abs=1e-4) for answer in mixed]


def test_a_model_that_has_learnt_reads_its_examples_again(random_model: Path):
    asked = [_after_examples("choices", "a", number) for number in range(4)]
    model = load_model(str(random_model), "fp32")
    ours = HFEngine(model, load_tokenizer(str(random_model)), "tiny")
    before = [answer.logprobs for answer in ours.score(ours.batches(asked)[0])]
    with torch.no_grad():
        for weights in model.parameters():
            weights.mul_(1.5)
    after = [answer.logprobs for answer in ours.score(ours.batches(asked)[0])]
    fresh = HFEngine(model, load_tokenizer(str(random_model)), "tiny", share_prefix=False)
    assert after == [pytest.approx(answer.logprobs, abs=1e-4) for answer in fresh.score(fresh.batches(asked)[0])]
    assert after != before


def _after_examples(kind: str, group: str, number: int) -> Any:
    turns = [
        (f"{group}: is this a tree?", "Yes"),
        (f"{group}: and is that a stone?", "No"),
        (f"What about {number}?", ""),
    ]
    messages = [
        Message(role=role, content=text)
        for turn in turns
        for role, text in zip(("user", "assistant"), turn, strict=True)
    ][:-1]
    if kind == "choices":
        return ChoiceQuery(id=f"{group}{number}", messages=messages, opening="", choices=("Yes", "No"))
    return ReplyQuery(id=f"{group}{number}", messages=messages, reply=f"It is {number}.")


def test_another_machine_may_convert_the_embedded_model_at_the_same_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    source = tmp_path / "model.gguf"
    source.touch()

    def convert(_: Path, draft: Path) -> None:
        [folder] = [Path(lock.removesuffix(".lock")) for lock in map(str, draft.parent.glob("*.lock"))]
        for place in (draft, folder):
            place.mkdir(exist_ok=True)
            (place / "config.json").touch()

    monkeypatch.setattr(embedded, "embedded_gguf", lambda: source)
    monkeypatch.setattr(embedded, "cache_home", lambda: tmp_path / "cache")
    monkeypatch.setattr(embedded, "_convert", convert)
    folder = embedded.embedded_model()
    assert [path.name for path in folder.iterdir()] == ["config.json"]
    assert not [*folder.parent.glob("convert-*")]
