"""A critic in 8 bits: exact where the numbers are whole, and near otherwise."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from pipeline.chain.compose import compose_config
from pipeline.core.distributed import LaunchConfig
from pipeline.core.errors import ConfigError
from pipeline.engines import prefix
from pipeline.engines.base import ENGINES, ChoiceQuery, Request, Weights, open_engine
from pipeline.engines.int8 import KERNELS, TOKEN_STEPS, Int8Linear, block_size, hadamard, rotated, round_to_int8
from pipeline.engines.models import load_model
from pipeline.records import Message

pytestmark = pytest.mark.skipif(
    KERNELS not in torch.backends.quantized.supported_engines, reason="torch has no 8-bit kernels for this CPU"
)


def layer(weights: torch.Tensor, bias: torch.Tensor | None = None) -> nn.Linear:
    linear = nn.Linear(weights.shape[1], weights.shape[0], bias=bias is not None)
    linear.weight.data = weights
    if bias is not None:
        linear.bias.data = bias
    return linear


def test_whole_numbers_give_the_exact_product():
    """Three features can't be rotated. The largest weight of each row is 127 and the largest of each token 63, so both
    scales are 1."""
    weights = torch.tensor([[127.0, -2.0, 5.0], [3.0, 127.0, -127.0]])
    rounded = Int8Linear(layer(weights, torch.tensor([0.5, -1.0])))
    found = rounded(torch.tensor([[63.0, -4.0, 2.0], [1.0, 63.0, -63.0]]))
    first = [127 * 63 + 8 + 10 + 0.5, 3 * 63 - 4 * 127 - 2 * 127 - 1]
    second = [127 - 126 - 315 + 0.5, 3 + 2 * 127 * 63 - 1]
    assert found.tolist() == [pytest.approx(first), pytest.approx(second)]


def test_the_largest_sums_do_not_overflow():
    """513 features can't be rotated. All products are as large as 8 and 7 bits allow, so a sum of two fills 16 bits."""
    rounded = Int8Linear(layer(torch.ones(2, 513) * torch.tensor([[1.0], [-1.0]])))
    assert rounded(torch.ones(1, 513)).tolist()[0] == pytest.approx([513.0, -513.0], rel=1e-5)


def test_a_rotation_is_orthogonal_and_cancels():
    assert (block_size(8960), block_size(1536), block_size(576), block_size(48), block_size(7)) == (64, 64, 64, 16, 1)
    assert torch.allclose(
        hadamard(4) * 2, torch.tensor([[1.0, 1, 1, 1], [1, -1, 1, -1], [1, 1, -1, -1], [1, -1, -1, 1]])
    )
    torch.manual_seed(0)
    tokens, weights, turn = torch.randn(3, 128), torch.randn(5, 128), hadamard(64)
    assert torch.allclose(rotated(tokens, turn) @ rotated(weights, turn).T, tokens @ weights.T, atol=1e-4)


@pytest.mark.parametrize("large", ["token", "row", "feature"])
def test_a_large_token_row_or_feature_does_not_blur_the_others(large: str):
    torch.manual_seed(0)
    weights, tokens = torch.randn(32, 256), torch.randn(16, 256)
    (tokens[2] if large == "token" else weights[3] if large == "row" else tokens[:, 5]).mul_(100)
    exact = tokens.double() @ weights.double().T
    lengths = tokens.norm(dim=1, keepdim=True) * weights.norm(dim=1)
    error = (Int8Linear(layer(weights))(tokens) - exact).abs() / lengths
    unrotated = 1 / TOKEN_STEPS  # a feature of this size would leave no step to the others
    assert error.mean() < unrotated / 6 and error.max() < unrotated


def test_zeros_stay_zeros_and_shapes_are_kept():
    rounded = Int8Linear(nn.Linear(32, 16, bias=False))
    assert torch.equal(rounded(torch.zeros(2, 7, 32)), torch.zeros(2, 7, 16))


def test_a_critic_in_8_bits_answers_nearly_as_before(random_model: Path):
    def opened(**options: object) -> Any:
        config = ENGINES.parse({"kind": "hf", "path": str(random_model), **options})
        weights = Weights(path=str(random_model), precision="fp32", name="base")
        return open_engine(config, weights, LaunchConfig())

    says = [Message(role="user", content="Which of these is a number?")]
    query = ChoiceQuery(id="q", messages=says, opening="Answer:", choices=(" one", " tree", " two"))
    plain, rounded = opened(), opened(quantization="int8")
    [[before], [after]] = [engine.score([query]) for engine in (plain, rounded)]
    assert before.logprobs != after.logprobs
    assert after.logprobs == pytest.approx(before.logprobs, rel=0.1)
    ask = Request(id="r", messages=says, seed=0, max_new_tokens=3, temperature=0.0)
    assert rounded.generate([ask])[0].text == plain.generate([ask])[0].text != ""


def test_rounding_is_no_reason_to_compute_a_prefix_for_each_row(random_model: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(prefix, "_continued_error", lambda model: 0.1)
    monkeypatch.setattr(prefix, "_FOUND", {})
    model = load_model(str(random_model), "fp32")
    assert not prefix.shares_prefixes(model), "in 32 bits, this is a mistake"
    round_to_int8(model)
    assert prefix.shares_prefixes(model)


def test_where_it_cant_be_used_a_sentence_says_what_to_do(random_model: Path, monkeypatch: pytest.MonkeyPatch):
    with pytest.raises(ConfigError, match=r"engine.path is not set.*set engine.path to the critic's folder"):
        compose_config(["engine.quantization=int8"]).engine.check("engine")
    own = compose_config([f"engine.path={random_model}", "engine.quantization=int8"]).engine
    own.check("engine")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    with pytest.raises(ConfigError, match=r"int8, which is for CPUs.*leave engine.quantization out"):
        own.check("engine")


def test_a_run_from_before_the_setting_keeps_its_keys(random_model: Path):
    plain = compose_config([f"engine.path={random_model}"]).engine.key()
    rounded = compose_config([f"engine.path={random_model}", "engine.quantization=int8"]).engine.key()
    assert "quantization" not in plain and rounded == {**plain, "quantization": "int8"}
