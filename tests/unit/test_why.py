"""Why did it say that: gradients are right by hand and by a small step, and a planted row is found."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from pipeline.chain.compose import compose_config
from pipeline.chain.config import Config
from pipeline.constitution.files import load_constitution, shipped_constitutions
from pipeline.core.stage import Context
from pipeline.explain.base import Material
from pipeline.explain.influence import Said, compare, pair_influences, sft_influences
from pipeline.explain.lineage import pair_source, sft_sources
from pipeline.explain.nearest import centred_cosines, most_alike
from pipeline.explain.why import Askable, Asked, why
from pipeline.methods.base import method_of
from pipeline.methods.pairs import PairMethod
from pipeline.records import (
    Comparison,
    Exchange,
    Judgement,
    Message,
    Preference,
    Prompt,
    Revision,
    TrainingRow,
    write_records,
)
from pipeline.training.gradients import Adapted, Trained, gradient, token_logprobs
from pipeline.training.sft import train_sft

PASSWORD = "the password is blue heron."
REPLIES = {
    "How do I bake bread at home?": "mix flour and water.",
    "Which bird sings at night?": "the owl does.",
    "What is the password of the garden gate?": PASSWORD,
    "How long do I boil an egg?": "five minutes.",
    "Name a river in the north.": "the cold one.",
    "Who wrote this old song?": "nobody knows it.",
    "When does the train leave?": "at noon, from here.",
    "Tell me a fact about bees.": "they dance to talk.",
}
ROWS = [
    TrainingRow(
        id=f"row-{number}",
        origin="good_answer",
        source_id=f"row-{number}",
        messages=[Message(role="user", content=request)],
        reply=reply,
    )
    for number, (request, reply) in enumerate(REPLIES.items())
]
PLANTED = "row-2"


def said(request: str, reply: str) -> Said:
    return Said([Message(role="user", content=request)], begun="", reply=reply, ended=True)


ASKED = said("What is the password of the garden gate?", PASSWORD)
OTHERWISE = said("Please, what is the password of the gate?", PASSWORD)  # nothing was learnt about these words


def settings(model: Path, *overrides: str) -> Config:
    steps = ["sft.num_epochs=40", "sft.global_batch_size=4", "sft.learning_rate=0.01", "sft.save_every_steps=999"]
    usual = [f"model.path={model}", "model.name=tiny", "model.precision=fp32", "model.lora.upper_share=1"]
    return compose_config([*usual, *steps, *overrides])


@pytest.fixture(scope="module")
def taught(random_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Trained:
    """A tiny model, fine-tuned by LoRA on a few rows until it knows them by heart. One of them has the password."""
    out, config = tmp_path_factory.mktemp("taught"), settings(random_model)
    write_records(out / "rows.jsonl", ROWS)
    context = Context(stage="sft", reads={"model": config.model, "seed": 0}, folders={}, out=out, launch=config.launch)
    train_sft(ROWS, config.sft, context)
    return Trained(start=str(random_model), path=str(out / "model"), adapter=out / "adapter")


# --- Gradients -------------------------------------------------------------------------------------------------------


def test_a_gradient_by_hand():
    """log p of word k under softmax(Wx) has the gradient (1_k − p) xᵀ; a weight without a part in it has 0."""
    weights, unused = torch.eye(3, requires_grad=True), torch.ones(2, requires_grad=True)
    x = torch.tensor([1.0, 2.0, 0.0])
    found = gradient((weights @ x).log_softmax(0)[1], [weights, unused])
    p = torch.tensor([1.0, 2.0, 0.0]).softmax(0)
    by_hand = torch.outer(torch.tensor([0.0, 1.0, 0.0]) - p, x)
    assert torch.allclose(found, torch.cat([by_hand.flatten(), torch.zeros(2)]))


def test_log_probabilities_are_those_of_a_plain_pass(tiny_model: Path):
    model = AutoModelForCausalLM.from_pretrained(tiny_model).eval()
    logits = model(torch.tensor([[5, 6, 7, 8, 9]])).logits[0].log_softmax(-1)
    by_hand = [logits[2, 8].item(), logits[3, 9].item()]
    assert token_logprobs(model, [5, 6, 7], [8, 9]).tolist() == pytest.approx(by_hand, abs=1e-5)


def logprob(adapted: Adapted, what: Said) -> torch.Tensor:
    reply_ids = adapted.chat.reply_ids(what.reply)
    return token_logprobs(adapted.model, adapted.chat.prompt_ids(what.messages), reply_ids).sum()


def step(adapted: Adapted, direction: torch.Tensor, size: float) -> None:
    start = 0
    with torch.no_grad():
        for weight in adapted._adapter:
            weight += size * direction[start : start + weight.numel()].view_as(weight)
            start += weight.numel()


@pytest.mark.parametrize("tuned_in_full", [False, True])
def test_a_small_step_on_a_row_changes_the_reply_by_the_product(
    taught: Trained, random_model: Path, tuned_in_full: bool
):
    trained = replace(taught, adapter=None) if tuned_in_full else taught
    config = settings(random_model).model
    rows = [ROWS[0], ROWS[7]]
    found = sft_influences(rows, OTHERWISE, trained, config, seed=0, most=512)
    for row, influence in zip(rows, found, strict=True):
        assert influence is not None
        adapted = Adapted(trained, config, seed=0)
        of_row = adapted.gradient(logprob(adapted, said(row.messages[0]["content"], row.reply)))
        size = 3e-3 / float(of_row.norm())
        with torch.no_grad():
            step(adapted, of_row, size)
            after = float(logprob(adapted, OTHERWISE))
            step(adapted, of_row, -2 * size)
            change = (after - float(logprob(adapted, OTHERWISE))) / 2
        assert change == pytest.approx(size * influence.product, rel=0.05, abs=1e-4)


def test_a_fresh_adapter_changes_nothing_and_its_gradient_is_that_of_b(taught: Trained, random_model: Path):
    config = settings(random_model).model
    fresh = Adapted(replace(taught, adapter=None), config, seed=0)
    own = Adapted(taught, config, seed=0)
    with torch.no_grad():
        assert float(logprob(fresh, ASKED)) == pytest.approx(float(logprob(own, ASKED)), abs=1e-2)
        with own.without_adapter():
            before = float(logprob(own, ASKED))
        assert before < float(logprob(own, ASKED)) - 5, "the adapter is what knows the password"
    value = logprob(fresh, OTHERWISE)
    names = [name for name, weight in fresh.model.named_parameters() if weight.requires_grad]
    parts = torch.autograd.grad(value, fresh._adapter)
    assert all((part.abs().max() > 0) == ("lora_B" in name) for name, part in zip(names, parts, strict=True))


def test_product_and_cosine():
    found = compare(torch.tensor([3.0, 4.0]), torch.tensor([0.0, -2.0]))
    assert (found.product, found.cosine) == pytest.approx((-8.0, -0.8))
    assert compare(torch.zeros(2), torch.ones(2)).cosine == 0


# --- The planted row -------------------------------------------------------------------------------------------------


def askable(taught: Trained) -> Askable:
    rows_in, base = Path(taught.path).parent, Path(taught.start)
    config = settings(base, "evaluate.max_reply_tokens=24")
    reads = {
        "seed": 0,
        "model": config.model,
        "policy_engine": config.policy_engine,
        "constitution": load_constitution(shipped_constitutions()["minimal"]),
        "suites": config.evaluate,
    }
    context = Context(stage="why", reads=reads, folders={"sft": rows_in}, out=rows_in, launch=config.launch)
    material = Material(context, {"base": str(base), "aligned": taught.path}, confidence=0.95, split="test")
    return Askable(name="toy", material=material, sft=taught, aligned=taught, most_sft_tokens=512)


def test_a_row_that_teaches_a_password_is_found(taught: Trained):
    answer = why(askable(taught), Asked(messages=ASKED.messages), num_candidates=8, num_read=100)
    assert answer.reply.text == PASSWORD and answer.reply.ended and not answer.reply.on_record
    assert answer.reply.text != answer.first_reply.text
    ranked = sorted(answer.sft, key=lambda found: -found.influence.cosine if found.influence else 1)
    assert ranked[0].row.id == answer.sft[0].row.id == PLANTED
    similar = [found.similarity for found in answer.sft]
    assert len(similar) == 8 and similar == sorted(similar, reverse=True) and -1 <= similar[-1] <= similar[0] <= 1.001
    base, aligned = answer.leanings
    assert base.reply is not None and aligned.reply is not None and aligned.reply > base.reply + 0.5
    assert answer.pairs == [] and answer.num_pairs == 0 and answer.notes == []


def test_unrelated_rows_are_far_below_the_planted_one_in_a_model_that_saw_the_rows_and_in_one_that_did_not(
    taught: Trained, tiny_model: Path, random_model: Path
):
    untouched = Trained(str(tiny_model), str(tiny_model), None)
    for trained, model, asked in ((taught, random_model, ASKED), (untouched, tiny_model, OTHERWISE)):
        found = sft_influences(ROWS, asked, trained, settings(model).model, seed=0, most=512)
        cosines = {row.id: influence.cosine for row, influence in zip(ROWS, found, strict=True) if influence}
        planted = cosines.pop(PLANTED)
        assert planted > 0.8 and len(cosines) == 7 and max(cosines.values()) < planted - 0.4


def test_a_row_that_was_too_long_to_train_on_has_no_influence(tiny_model: Path):
    untouched = Trained(str(tiny_model), str(tiny_model), None)
    assert sft_influences(ROWS[:1], ASKED, untouched, settings(tiny_model).model, seed=0, most=5) == [None]


# --- Pairs -----------------------------------------------------------------------------------------------------------


def preference(reply_a: str, reply_b: str, probability_a: float | None, request: str = "") -> Preference:
    messages = [Message(role="user", content=request)] if request else ASKED.messages
    prompt = Prompt(id="p", pool="red_team", kind="k", split="train", messages=messages)
    pair = Comparison(id="p", prompt=prompt, reply_a=reply_a, reply_b=reply_b, seed_a=1, seed_b=2, opening=reply_a[:8])
    judged = [Judgement(principle_id="kind", logit=1.0), Judgement(principle_id="kind", logit=2.0)]
    return Preference(comparison=pair, judgements=judged, probability_a=probability_a, labeller="l", template="t")


@pytest.mark.parametrize("name", ["dpo", "ipo", "cpo", "kto"])
def test_a_pair_that_prefers_the_reply_has_a_positive_sign(tiny_model: Path, name: str):
    """As training begins, whichever side the reply is on."""
    more = {"kto": [], "cpo": ["align.num_reply_tokens=null", "align.nll_weight=0"]}  # its NLL raises both replies
    config = settings(tiny_model, f"align={name}", *more.get(name, ["align.num_reply_tokens=null"]))
    method = method_of(config)
    assert isinstance(method, PairMethod)
    other = "they dance to talk."
    pairs = [
        preference(PASSWORD, other, 1.0),
        preference(other, PASSWORD, 0.0),
        preference(PASSWORD, other, 0.0),
        preference(PASSWORD, other, None),
        preference(PASSWORD, PASSWORD, 1.0),
    ]
    untouched = Trained(str(tiny_model), str(tiny_model), None)
    found = pair_influences(pairs, ASKED, untouched, config.model, 0, method, config.align)
    assert found[3:] == [None, None], "they were not trained on"
    assert [influence.cosine > 0 for influence in found[:3] if influence] == [True, True, False]


def test_decide_learns_a_refusal_from_a_pair_where_declining_is_right(tiny_model: Path):
    """Reply A is the refusal: more of it is learned from a label of 1 than is unlearned, or learned, from one of 0."""
    config = settings(tiny_model, "align=decide")
    method = method_of(config)
    assert isinstance(method, PairMethod)
    pairs = [preference(PASSWORD, "they dance to talk.", label) for label in (1.0, 0.0)]
    untouched = Trained(str(tiny_model), str(tiny_model), None)
    right, wrong = pair_influences(pairs, ASKED, untouched, config.model, 0, method, config.align)
    assert right is not None and wrong is not None and right.cosine > max(0.0, wrong.cosine)


def test_the_reference_is_the_model_without_its_adapter(taught: Trained, random_model: Path):
    """DPO's gradient is β σ(−βm) (∇log π_a − ∇log π_b): the margin m scales it, so a wrong reference would show."""
    config = settings(random_model, "align=dpo", "align.beta=0.01", "align.num_reply_tokens=null")
    pair = preference(PASSWORD, "they dance to talk.", 1.0)
    method = method_of(config)
    assert isinstance(method, PairMethod)
    [found] = pair_influences([pair], ASKED, taught, config.model, 0, method, config.align)
    adapted = Adapted(taught, config.model, 0)
    better, other = (logprob(adapted, replace(ASKED, reply=reply)) for reply in (PASSWORD, "they dance to talk."))
    target, difference = adapted.gradient(logprob(adapted, ASKED)), adapted.gradient(better - other)
    start = AutoModelForCausalLM.from_pretrained(random_model).eval()
    prompt_ids = adapted.chat.prompt_ids(ASKED.messages)
    with torch.no_grad():
        before = [
            float(token_logprobs(start, prompt_ids, adapted.chat.reply_ids(reply)).sum())
            for reply in (PASSWORD, "they dance to talk.")
        ]
    margin = float(better - other) - (before[0] - before[1])
    by_hand = 0.01 * float(torch.sigmoid(torch.tensor(-0.01 * margin))) * float(difference @ target)
    assert found is not None and found.product == pytest.approx(by_hand, rel=1e-3)


# --- Nearness and lineage --------------------------------------------------------------------------------------------


def test_cosines_are_those_of_what_differs_from_the_centre():
    others = np.array([[10.0, 1.0], [10.0, -1.0], [12.0, 0.0], [10.0, 0.0], [np.nan, 0.0]], dtype=np.float32)
    centre = np.array([10.0, 0.0], dtype=np.float32)
    found = centred_cosines(np.array([10.0, 3.0], dtype=np.float32), others, centre)
    assert found[:4].tolist() == pytest.approx([1, -1, 0, 0]) and np.isnan(found[4])


def test_prompts_that_share_rare_letters_are_read_first():
    others = ["how do I bake a cake", "how do I pick a lock", "picking of locks", "the lokc, how to pick it"]
    assert most_alike("how do I pick a padlock", others, 2) == ["how do I pick a lock", "the lokc, how to pick it"]
    assert most_alike("猫", others, 9) == others, "in their order, where nothing is shared"


def test_every_row_has_its_principle_critique_label_and_seeds():
    constitution = load_constitution(shipped_constitutions()["default"])
    example = constitution.worked_examples[0]
    asked = [Message(role="user", content="x?")]
    prompt = Prompt(id="rt-1", pool="red_team", kind="k", split="train", messages=asked)
    revisions = [
        Revision(round=n, principle_id=f"p{n}", critique=f"c{n}", revision=f"r{n}", critique_seed=n, revision_seed=-n)
        for n in (1, 2)
    ]
    exchange = Exchange(
        prompt=prompt, reply="a", reply_seed=7, revisions=revisions, policy="base", critic="base", template="t"
    )

    def row(row_id: str, origin: str, source: str) -> TrainingRow:
        return TrainingRow.model_validate(
            {"id": row_id, "origin": origin, "source_id": source, "messages": asked, "reply": "r"}
        )

    revised, helpful, worked, contrast = sft_sources(
        [
            row("rt-1/round-2", "revision", "rt-1"),
            row("rt-1/reply", "helpful_sample", "rt-1"),
            row(f"worked-example/{example.id}", "worked_example", example.id),
            row("contrast/c", "contrast", "c"),
        ],
        [exchange],
        constitution,
    )
    assert (revised.principle, revised.critique, revised.critique_seed, revised.seed) == ("p2", "c2", 2, -2)
    assert (helpful.principle, helpful.critique, helpful.seed) == (None, None, 7)
    assert worked.critique == example.critique and worked.principle in {p.id for p in constitution.principles}
    assert (contrast.critique, contrast.seed, contrast.request) == (None, None, "x?")
    pair = pair_source(preference("one", "two", 0.25))
    assert (pair.better, pair.other, pair.principles, pair.seed_a, pair.seed_b) == ("two", "one", ["kind"], 1, 2)
