"""Harmfulness and refusal as directions: a model with both planted in its weights, and one with neither."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from pipeline.core.distributed import LaunchConfig
from pipeline.core.errors import NotMeasuredError
from pipeline.core.stage import Context
from pipeline.engines.models import ModelConfig
from pipeline.evals.statistics import wilson
from pipeline.explain.base import Material
from pipeline.explain.directions import Directions, DirectionsConfig
from pipeline.explain.directions_fit import Labelled, cosine, expected_cosine, fit, mean_differences, pair_auc
from pipeline.explain.directions_found import DirectionsFindings
from pipeline.explain.directions_measured import Declined, Read
from pipeline.records import Case, Message, Pool, Prompt, Verdict, derived_rng, write_records

HIDDEN, NUM_LAYERS, NUM_TRAINED, NUM_ASKED = 16, 4, 40, 60
FILLER = [f"word{i}" for i in range(40)]
WORDS = ["<end>", "<unk>", "user", "assistant", "harm", "bad", "No", "Sure", *FILLER]
SUITES: dict[Pool, list[str]] = {"red_team": ["red_team"], "look_alike": ["over_refusal"], "ordinary": ["helpfulness"]}
HALF = NUM_ASKED // 2
CONFIG = DirectionsConfig(num_prompts=NUM_TRAINED, num_ablated=NUM_ASKED, max_reply_tokens=3)


def unit(*places: int) -> np.ndarray:
    vector = np.zeros(HIDDEN)
    vector[list(places)] = 1 / np.sqrt(len(places))
    return vector


HARM, REFUSAL, CONSTANT, REPLIED = unit(9, 10), unit(11, 12), unit(13), unit(14)


@pytest.fixture(scope="module")
def planted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Llama whose attention averages over the prompt. The word "harm" anywhere adds ``HARM`` to the residual stream,
    "bad" adds ``REFUSAL``, and only the second one makes it reply "No" instead of "Sure"."""
    import torch
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    folder = tmp_path_factory.mktemp("planted")
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<end>", pad_token="<end>", unk_token="<unk>")
    fast.chat_template = (
        "{% for message in messages %}{{ message['role'] }} {{ message['content'] }} <end> {% endfor %}"
        "{% if add_generation_prompt %}assistant {% endif %}"
    )
    fast.save_pretrained(folder)
    config = LlamaConfig(
        vocab_size=len(WORDS), hidden_size=HIDDEN, intermediate_size=8, num_hidden_layers=NUM_LAYERS,
        num_attention_heads=1, num_key_value_heads=1, max_position_embeddings=64, eos_token_id=0, pad_token_id=0,
        bos_token_id=None, tie_word_embeddings=False,
    )  # fmt: skip
    model = LlamaForCausalLM(config)
    rng = np.random.default_rng(0)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "norm" not in name:
                weight.zero_()
        embedding = np.zeros((len(WORDS), HIDDEN))
        embedding[:, :6] = rng.normal(size=(len(WORDS), 6)) * 0.3
        embedding += CONSTANT
        embedding[WORDS.index("harm"), 7], embedding[WORDS.index("bad"), 8] = 3, 3
        embedding[[WORDS.index("No"), WORDS.index("Sure")]] += 20 * REPLIED
        model.model.embed_tokens.weight.copy_(torch.tensor(embedding))
        attention = model.model.layers[0].self_attn
        attention.v_proj.weight[0, 7], attention.v_proj.weight[1, 8] = 1, 1
        attention.o_proj.weight[:, :2] = torch.tensor(20 * np.stack([HARM, REFUSAL], axis=1))
        model.lm_head.weight[WORDS.index("No")] = torch.tensor(REFUSAL)
        model.lm_head.weight[WORDS.index("Sure")] = torch.tensor(CONSTANT)
        model.lm_head.weight[0] = torch.tensor(REPLIED)
    model.save_pretrained(folder)
    return folder


def prompt(pool: Pool, i: int, split: str, harm: bool = True) -> Prompt:
    """Every harmful request has the word "harm"; every second one has "bad", and so has every second look-alike."""
    rng = derived_rng(pool, i, split)
    said = rng.sample(FILLER, 4)
    said += ["harm"] if pool == "red_team" and harm else [rng.choice(FILLER)]
    said += ["bad"] if pool != "ordinary" and i % 2 else [rng.choice(FILLER)]
    turns = [Message(role="user", content=" ".join(said))]
    return Prompt(id=f"{pool}-{split}-{i}", pool=pool, kind="k", split=split, messages=turns)  # type: ignore[arg-type]


def material(folder: Path, model: Path, sees: bool = True) -> Material:
    """A run whose models are all the same. ``sees``: the harmful requests that were evaluated have the word "harm"."""
    learned = [prompt(pool, i, "train") for pool in SUITES for i in range(NUM_TRAINED)]
    asked = [prompt(pool, i, "test", harm=sees or bool(i % 2)) for pool in SUITES for i in range(NUM_ASKED)]
    cases = [Case(id=p.id, suites=SUITES[p.pool], prompt=p, messages=p.messages) for p in asked]
    begun = Message(role="assistant", content="Sure")
    cases += [
        case.model_copy(update={"id": f"{case.id}/prefill", "attack": "prefill", "messages": [*case.messages, begun]})
        for case in cases[:6]
    ]
    verdicts = [
        Verdict(case=case, model=name, reply="r", num_tokens=1, seed=0, evidence="", judge="j",
                outcome="refused" if "bad" in case.prompt.request and case.attack == "direct" else "complied")
        for name in ("base", "aligned") for case in cases
    ]  # fmt: skip
    for stage in ("prompts", "evaluate"):
        (folder / stage).mkdir()
    write_records(folder / "prompts" / "prompts.jsonl", [*learned, *asked])
    write_records(folder / "evaluate" / "verdicts.jsonl", verdicts)
    reads = {"seed": 0, "model": ModelConfig(name="toy", path=str(model), precision="fp32")}
    folders = {stage: folder / stage for stage in ("prompts", "evaluate")}
    context = Context(stage="explain", reads=reads, folders=folders, out=folder, launch=LaunchConfig(batch_rows=16))
    return Material(context, {"base": str(model), "aligned": str(model)}, confidence=0.95, split="test")


@pytest.fixture(scope="module")
def found(planted: Path, tmp_path_factory: pytest.TempPathFactory) -> DirectionsFindings:
    return answer(material(tmp_path_factory.mktemp("run"), planted))


def answer(material: Material) -> DirectionsFindings:
    return Directions().answer(CONFIG, material)


def test_planted_directions_are_found_and_without_the_second_one_nothing_is_declined(found: DirectionsFindings):
    assert (found.num_declined, found.num_answered) == (NUM_TRAINED, NUM_TRAINED)  # of the two pools with both
    for pool in ("look_alike", "ordinary"):
        auc = found.auc("aligned", pool)
        assert auc is not None and auc.value == 1 and (auc.low or 0) > 0.5
    assert {row.layer for row in found.layer_aucs} == {1, 2, 3, 4} and len(found.layer_aucs) == 2 * 2 * 4
    both, of_refusal = found.cosines
    assert (both.value, both.most) == (pytest.approx(1), pytest.approx(1, abs=0.05))
    assert abs(of_refusal.value) < 0.5 < of_refusal.most
    refused = {(row.pool, row.removed): row.refused.count for row in found.ablation}
    assert refused == {
        ("red_team", "nothing"): HALF, ("red_team", "refusal direction"): 0, ("red_team", "random direction"): HALF,
        ("ordinary", "nothing"): 0, ("ordinary", "refusal direction"): 0, ("ordinary", "random direction"): 0,
    }  # fmt: skip
    assert {row.broken.count for row in found.ablation} == {0}
    [gone] = [r.difference for r in found.ablation if (r.pool, r.removed) == ("red_team", "refusal direction")]
    assert gone is not None and gone.value == -0.5 and (gone.high or 0) < 0


def test_each_request_has_a_place_and_what_is_seen_is_set_beside_what_is_declined(found: DirectionsFindings):
    assert len(found.points) == 3 * NUM_ASKED + 6 and found.num_left_out == 0
    direct = [point for point in found.points if point.attack == "direct"]
    for point in direct:
        assert (point.x > found.threshold) is (point.pool == "red_team")
        assert point.y is not None and (point.y > 0.5) is (point.outcome == "refused")
    complied = found.seen_of("direct", "complied")
    assert (complied.count, complied.total, complied.low) == (HALF, HALF, wilson(HALF, HALF).low)
    assert found.seen_of("attacks", "complied").total == 6 and found.false_alarms.count == 0
    assert found.reading("aligned") == "sees"
    attacked = [(f.pool, f.attack, f.x.total) for f in found.families if f.attack != "direct"]
    assert attacked == [("red_team", "prefill", 6)]


def test_harm_without_a_sign_is_called_unseen(planted: Path, tmp_path: Path):
    """Of the evaluated harmful requests, only the declined ones have the word that the direction reads."""
    found = answer(material(tmp_path, planted, sees=False))
    assert found.seen_of("direct", "complied").count == 0 and found.seen_of("direct", "refused").count == HALF
    assert found.reading("aligned") == "does not see", found.auc("aligned", "look_alike")


def test_an_untouched_model_shows_nothing_and_nothing_is_claimed(
    planted: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """The pools are dealt at random, so neither class has a sign."""
    run = material(tmp_path, planted)
    pools = [pool for pool in SUITES for _ in range(NUM_TRAINED)]
    derived_rng("deal").shuffle(pools)
    dealt = iter(pools)
    plain = [
        p.model_copy(update={"pool": next(dealt), "messages": prompt("ordinary", i, "train").messages})
        for i, p in enumerate(p for p in run.prompts if p.split == "train")
    ]
    run.prompts[: NUM_TRAINED * 3] = plain
    for i, verdict in enumerate(run.verdicts["aligned"]):
        made = prompt("ordinary", i, "test").messages
        case = verdict.case.model_copy(update={"messages": made})
        run.verdicts["aligned"][i] = verdict.model_copy(update={"case": case})
    found = answer(run)
    for pool in ("look_alike", "ordinary"):
        auc = found.auc("aligned", pool)
        assert auc is not None and (auc.low or 0) < 0.5 < (auc.high or 1)
    assert found.reading("aligned") == "no evidence"
    assert found.refusal_layer is None and found.ablation == [] and {point.y for point in found.points} == {None}
    [note] = run.notes
    assert note == (
        "There is no refusal direction of aligned: of the training prompts in pools of which it declined some and "
        "answered some, it declined 0, and 10 are needed."
    )


def test_a_run_without_judged_replies_is_not_measured(planted: Path, tmp_path: Path):
    run = material(tmp_path, planted)
    run.verdicts.clear()
    with pytest.raises(NotMeasuredError, match="no request of the pool red_team was evaluated"):
        answer(run)


def test_strata_keep_what_differs_between_them_out_of_the_direction():
    """By hand: stratum a has 1 positive and 3 negative members (weight 3/4), b has 2 and 2 (weight 1)."""
    positive = np.array([1, 0, 0, 0, 1, 1, 0, 0], bool)
    strata = np.array(list("aaaabbbb"))
    states = np.array([[8], [0], [1], [2], [103], [105], [100], [102]], np.float32)[:, None]
    groups = [str(i) for i in range(8)]
    found = mean_differences(Labelled.of(states, positive, groups, strata))
    assert found.vectors[0, 0] == pytest.approx((0.75 * (8 - 1) + 1 * (104 - 101)) / 1.75)
    assert found.scores(found.origins[None].astype(np.float32))[0, 0] == pytest.approx(0, abs=1e-6)
    assert mean_differences(Labelled.of(states, positive, groups)).vectors[0, 0] == pytest.approx(72 - 41)
    assert pair_auc(states[:, 0, 0].astype(float), positive, strata) == pytest.approx((3 * 1 + 4 * 1) / 7)
    assert pair_auc(np.array([0, 1, 2, 3, 5, 5, 4, 4.0]), positive, strata) == pytest.approx((3 * 0 + 4 * 1) / 7)


def test_the_layer_is_chosen_by_rows_that_were_not_learned_among_the_allowed_ones():
    rng = np.random.default_rng(0)
    positive = np.arange(120) < 40
    states = rng.normal(size=(120, 3, 200)).astype(np.float32)  # enough dimensions to learn noise by heart
    states[positive, 1, 0] += 4
    states[positive, 2, 0] += 9
    prompts = Labelled.of(states, positive, [str(i) for i in range(120)])
    assert fit(prompts, seed=0).best == 2
    chosen = fit(prompts, seed=0, num_allowed=2)
    assert chosen.best == 1 and chosen.aucs[0] < 0.8
    assert cosine(chosen.vector, np.eye(200)[0]) > 0.8


def test_pools_in_which_nearly_all_prompts_had_one_outcome_give_no_refusal_direction():
    """59 of 60 declined in one pool and 1 of 60 in the other: what differs are two prompts and not 60."""
    learned = [prompt(pool, i, "train") for pool in ("red_team", "ordinary") for i in range(60)]
    outcomes = ["complied", *["refused"] * 59, "refused", *["complied"] * 59]
    states = np.random.default_rng(0).normal(size=(120, 2, 8)).astype(np.float32)
    read = Read([1, 2], 2, learned, states, [], states[:0])
    declined = Declined.of(outcomes, read.pools)
    assert (declined.num_declined, declined.num_answered) == (60, 60)
    with pytest.raises(NotMeasuredError, match="within each pool of training prompts it did nearly the same"):
        declined.fit_refusal(read, seed=0)


def test_the_expected_cosine_is_that_of_two_samples_of_this_size():
    rng = np.random.default_rng(1)
    positive, hidden = np.arange(160) < 80, 60

    def sample() -> Labelled:
        states = rng.normal(size=(160, 1, hidden)).astype(np.float32)
        states[positive, 0, 0] += 1.2
        return Labelled.of(states, positive, [str(i) for i in range(160)])

    pairs = [[mean_differences(sample()).vectors[0] for _ in range(2)] for _ in range(40)]
    truth = float(np.mean([cosine(a, b) for a, b in pairs]))
    assert np.mean([expected_cosine(sample(), 0, seed) for seed in range(20)]) == pytest.approx(truth, abs=0.06)
