"""Rows of tokens as a tree, against hand-worked trees."""

from __future__ import annotations

from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, MistralConfig, MistralForCausalLM

from pipeline.engines.trees import TokenTree, reads_trees, trees

CPU = torch.device("cpu")


def test_a_tree_has_each_token_once():
    tree = TokenTree([[1, 2, 3], [1, 2, 4, 5], [6]])
    inputs = tree.inputs(CPU)
    assert inputs["input_ids"].tolist() == [[1, 2, 3, 4, 5, 6]]
    assert inputs["position_ids"].tolist() == [[0, 1, 2, 2, 3, 0]]
    assert tree.places(4).tolist() == [[0, 1, 2, 0], [0, 1, 3, 4], [5, 0, 0, 0]]
    reads = inputs["attention_mask"][0, 0].int().tolist()
    assert reads == [
        [1, 0, 0, 0, 0, 0],
        [1, 1, 0, 0, 0, 0],
        [1, 1, 1, 0, 0, 0],
        [1, 1, 0, 1, 0, 0],  # 4 does not read 3, which is in another row
        [1, 1, 0, 1, 1, 0],
        [0, 0, 0, 0, 0, 1],
    ]


def test_equal_tokens_after_unlike_beginnings_stand_apart():
    assert TokenTree([[1, 7], [2, 7]]).tokens == [1, 7, 2, 7]
    assert TokenTree([[1, 7], [1, 7]]).tokens == [1, 7]


def test_rows_are_divided_into_trees_of_a_size():
    rows = [[1, 2, 3], [9, 9], [1, 2, 4], [9, 8, 7, 6, 5, 4]]
    divided = [(numbers, tree.tokens) for numbers, tree in trees(rows, most=4)]
    assert divided == [([0, 2], [1, 2, 3, 4]), ([3], [9, 8, 7, 6, 5, 4]), ([1], [9, 9])]
    assert [numbers for numbers, _ in trees(rows, most=None)] == [[0, 2, 3, 1]]
    assert list(trees([])) == []
    alike = [[1, 2, last] for last in range(3, 10)]  # a common beginning counts once in each tree
    assert [numbers for numbers, _ in trees(alike, most=5)] == [[0, 1, 2], [3, 4, 5], [6]]


def test_which_models_read_trees(tiny_model: Path):
    assert reads_trees(AutoModelForCausalLM.from_pretrained(tiny_model).eval())
    shape = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    settings = MistralConfig(vocab_size=50, num_key_value_heads=2, sliding_window=4, **shape)
    assert not reads_trees(MistralForCausalLM(settings).eval()), "a window sees only near tokens"


def test_a_model_that_ignores_positions_does_not_read_trees(tiny_model: Path):
    model = AutoModelForCausalLM.from_pretrained(tiny_model).eval()
    model.config.bos_token_id = 3  # another configuration: what was found out for the model is kept
    forward = model.forward
    model.forward = lambda *args, position_ids=None, **options: forward(*args, **options)
    assert not reads_trees(model)
