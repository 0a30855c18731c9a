"""The chain with other labellers, constitutions, templates and ways of training."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from transformers import AutoTokenizer

from pipeline.chain.config import Config
from pipeline.chain.runner import run
from pipeline.chat import Renderer
from pipeline.constitution.files import load_constitution
from pipeline.engines.reward_model import load_reward_model
from pipeline.records import Exchange, Preference, RewardScore, read_records
from pipeline.training.reward import tokenised

Tiny = Callable[..., Config]


@pytest.mark.parametrize("labeller", ["ab", "cot"])
def test_other_labellers_run_and_report_their_statistics(tiny: Tiny, labeller: str):
    result = run(tiny(f"preferences={labeller}", "preferences.labeller.min_answer_mass=0", "until=preferences"))
    metrics = result.stages["preferences"].manifest.metrics
    assert metrics["num_pairs"] > 0 and (labeller == "cot" or metrics["num_parse_failures"] == 0)
    assert 0 <= metrics["order_flip_rate"] <= 1 and 0 <= metrics["entropy_bits_mean"] <= 1
    preferences = list(read_records(result.folder / "4-preferences" / "preferences.jsonl", Preference))
    labels = [p.probability_a for p in preferences if p.probability_a is not None]
    assert len(labels) == metrics["num_pairs"] and len(set(labels)) > 1
    if labeller == "cot":
        assert all(0.4 <= label <= 0.6 for label in labels)
        assert any(text for p in preferences for judgement in p.judgements for text in judgement.reasoning)


def test_openings_are_as_short_as_the_decision_and_the_pool_is_the_label(tiny: Tiny):
    result = run(tiny("constitution=default", "preferences.max_opening_tokens=3", "until=align"))
    preferences = list(read_records(result.folder / "4-preferences" / "preferences.jsonl", Preference))
    assert {p.labeller for p in preferences} == {"pool", "constitution"}
    tokenizer = AutoTokenizer.from_pretrained(result.folder / "3-sft" / "model")
    for preference in preferences:
        pair = preference.comparison
        harmful = pair.prompt.pool == "red_team"
        assert preference.probability_a == float(harmful) and not preference.judgements
        written = harmful and preference.labeller == "constitution"
        assert pair.opening == "I won't" and pair.reply_a.startswith(pair.opening)
        assert (pair.reply_a == pair.opening) == pair.begun_a == (not written)
        assert len(tokenizer(pair.reply_b, add_special_tokens=False).input_ids) <= 4, "3, or 4 for half a character"
    metrics = result.stages["align"].manifest.metrics
    assert metrics["num_pairs"] == len(preferences) > 4
    assert {p.probability_a for p in preferences} == {0.0, 1.0}
    assert not (result.stages["preferences"].folder / "work" / "labels-answers.jsonl").exists(), "no labeller is asked"


def test_a_reward_model_of_openings_is_trained_on_what_it_reads(tiny: Tiny):
    ppo = ("align=ppo", "preferences=openings", "align.trust=true", "align.rollout.missing_eos_penalty=null")
    result = run(tiny("constitution=default", *ppo, "until=align"))
    folder = result.stages["reward"].folder
    tokenizer = Renderer(AutoTokenizer.from_pretrained(folder / "model"))
    number = result.stages["reward"].manifest.metrics["num_reply_tokens"]
    assert number == len(tokenizer.text_ids("I won't"))
    rows = list(read_records(folder / "rows.jsonl", Preference))
    for row, preference in zip(tokenised(rows, tokenizer, 512, number)[0], rows, strict=True):
        pair = preference.comparison
        for ids, reply in ((row["chosen_ids"], pair.reply_a), (row["rejected_ids"], pair.reply_b)):
            begun = tokenizer.spelled(tokenizer.text_ids(reply)[:number])
            assert tokenizer.spelled(ids).endswith(f"<|assistant|> {begun}<|end|>\n")
    model = load_reward_model(str(folder / "model"))
    dialogue = [rows[0].comparison.prompt.messages] * 2
    declining, declining_too = model.raw_scores(dialogue, ["I won't", "I won't say how."])
    assert declining == pytest.approx(declining_too, abs=1e-5)
    scores = list(read_records(folder / "scores.jsonl", RewardScore))
    assert {score.num_words_a for score in scores} == {2}, "the words that it reads"


def test_asking_again_what_turns_the_labels_changes_none(tiny: Tiny):
    probed, plain = (
        run(tiny("preferences=ab", "preferences.labeller.min_answer_mass=0", f"preferences.num_probed={number}",
                 "until=preferences")).stages["preferences"].manifest
        for number in (3, 0)
    )  # fmt: skip
    assert probed.content_hash == plain.content_hash and probed.cache_key != plain.cache_key
    assert probed.metrics["num_labels_probed"] == 3 and plain.metrics["num_labels_probed"] == 0
    assert probed.metrics["labels_that_turn"].keys() == {"words", "order", "pool", "length"}
    assert not plain.metrics["labels_that_turn"]
    assert probed.num_calls - plain.num_calls <= 3 * 4, "each label is asked for in two orders, with two changes"


def test_full_fine_tuning_ipo_hard_labels_and_rounds(tiny: Tiny):
    result = run(
        tiny("model.tuning=full", "align=ipo", "align.hard_labels=true", "critique.num_rounds=2", "sft.revisions=last")
    )
    exchanges = list(read_records(result.folder / "2-critique" / "exchanges.jsonl", Exchange))
    assert any(len(exchange.revisions) == 2 for exchange in exchanges)
    assert not (result.stages["sft"].folder / "adapter").exists()
    assert (result.folder / "checkpoint" / "model.safetensors").exists()


def test_a_constitution_about_style_revises_harmless_prompts_too(tiny: Tiny):
    result = run(tiny("constitution=plain_speech", "until=sft"))
    exchanges = list(read_records(result.folder / "2-critique" / "exchanges.jsonl", Exchange))
    assert {e.prompt.pool for e in exchanges if e.revisions} == {"red_team", "ordinary", "look_alike"}
    constitution = load_constitution(result.folder / "constitution.yaml")
    for exchange in exchanges:
        fitting = {principle.id for principle in constitution.principles_for(exchange.prompt.pool)}
        assert {revision.principle_id for revision in exchange.revisions} <= fitting
    assert "num_helpful_samples" in result.stages["critique"].manifest.metrics
    assert "helpful_sample" not in result.stages["sft"].manifest.metrics["num_by_origin"]


def test_a_template_that_refuses_system_turns_is_served(tiny: Tiny, tiny_model: Path, tmp_path: Path):
    folder = tmp_path / "no-system"
    shutil.copytree(tiny_model, folder)
    template = (folder / "chat_template.jinja").read_text()
    refusing = "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system turns') }}{% endif %}"
    (folder / "chat_template.jinja").write_text(refusing + template)
    assert "critique" in run(tiny(f"model.path={folder}", "until=critique")).stages


def test_a_run_without_contrasts_reads_none(tiny: Tiny):
    rows = run(tiny("sft.num_contrasts=0", "until=sft")).stages["sft"].manifest.metrics["num_by_origin"]
    assert "contrast" not in rows and "worked_example" in rows
