"""Prompts that are rendered here and sent to servers as token ids: the numbers are those of the model in this process.

The server computes with the same tiny model, and answers in the layouts of vLLM and SGLang (``tests/model_server.py``).
"""

from __future__ import annotations

import json
import shutil
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from pipeline.chain.compose import compose_config
from pipeline.core.distributed import LaunchConfig
from pipeline.core.errors import ConfigError, StageError
from pipeline.engines.base import Answer, Ask, ChoiceQuery, Completion, ReplyQuery, Request, Weights, open_engine
from pipeline.engines.chat_server import read_reply
from pipeline.engines.hf import HFEngine
from pipeline.engines.models import load_model, load_tokenizer
from pipeline.records import Message
from tests.fakes import JoinedServer
from tests.model_server import OtherTokenizer, Server


@pytest.fixture
def url(random_model: Path) -> Iterator[str]:
    Server.model, Server.tokenizer = load_model(str(random_model), "fp32"), load_tokenizer(str(random_model))
    Server.seen, Server.scores, Server.layout, Server.vocabulary = [], True, "prompt", 10**9
    server = JoinedServer(("127.0.0.1", 0), Server)
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/v1"
    server.shutdown()
    server.server_close()


def answers(url: str, model: Path, asks: list[Ask], scores: str) -> dict[str, Any]:
    options = ["engine.model=m", f"engine.base_url={url}", "engine.prompts=tokens", f"engine.tokenizer={model}"]
    config = compose_config(["engine=server", "preferences=ab", *options, f"engine.scores={scores}"]).engine
    tested: Any = open_engine(config, Weights(path="", name=""), LaunchConfig())
    return {result.id: result for result in tested.answers(asks)}


def here(model: Path, asks: list[Any]) -> dict[str, Any]:
    engine = HFEngine(load_model(str(model), "fp32"), load_tokenizer(str(model)), name="here")
    scored = [a for a in asks if not isinstance(a, Request)]
    written = [a for a in asks if isinstance(a, Request)]
    found = [*(engine.score(scored) if scored else []), *(engine.generate(written) if written else [])]
    return {result.id: result for result in found}


SYSTEM, USER = Message(role="system", content="Be good."), Message(role="user", content="How do I bake <|end|> bread?")
QUERIES: list[Any] = [
    ReplyQuery(id="long", messages=[SYSTEM, USER], reply="You mix flour and water, then you wait."),
    ReplyQuery(id="short", messages=[USER], reply="No."),
    ReplyQuery(id="empty", messages=[USER], reply=""),
    ChoiceQuery(id="choice", messages=[USER], opening="The better reply is (", choices=("A", "B")),
]


@pytest.mark.parametrize("scores", ["vllm", "sglang"])
def test_a_server_scores_replies_and_choices_as_the_model_in_this_process(url: str, random_model: Path, scores: str):
    found, expected = answers(url, random_model, QUERIES, scores), here(random_model, QUERIES)
    for query in QUERIES:
        assert found[query.id].logprobs == pytest.approx(expected[query.id].logprobs, abs=1e-4)
    assert {path for path, _ in Server.seen} == ({"/v1/completions"} if scores == "vllm" else {"/generate"})


def test_a_choice_among_the_listed_tokens_is_exact_and_others_are_bounded(
    url: str, random_model: Path, monkeypatch: pytest.MonkeyPatch
):
    expected = here(random_model, QUERIES)["choice"].logprobs
    monkeypatch.setattr("pipeline.engines.prompts.MOST_LISTED", 300)
    [found] = answers(url, random_model, QUERIES[3:], "none").values()
    assert found.logprobs == pytest.approx(expected, abs=1e-4)
    with torch.inference_mode():
        logprobs = Server.model(torch.tensor([Server.seen[0][1]["prompt"]])).logits[0, -1].float().log_softmax(-1)
    number = int((logprobs >= max(expected) - 1e-4).sum())  # the likelier choice is listed last
    monkeypatch.setattr("pipeline.engines.prompts.MOST_LISTED", number)
    [bounded] = answers(url, random_model, QUERIES[3:], "none").values()
    assert max(bounded.logprobs) == pytest.approx(max(expected), abs=1e-4)
    assert min(expected) <= min(bounded.logprobs) <= max(expected) + 1e-4


def test_replies_continue_a_given_beginning_and_end_where_the_model_ends_them(url: str, tiny_model: Path):
    Server.model, Server.tokenizer = load_model(str(tiny_model), "fp32"), load_tokenizer(str(tiny_model))
    asks: list[Any] = [
        Request(id=f"{n}", messages=[USER], seed=0, max_new_tokens=12, temperature=0.0, prefix=prefix)
        for n, prefix in enumerate(("", "I can't", "the"))
    ]
    found, expected = answers(url, tiny_model, asks, "none"), here(tiny_model, asks)
    assert [found[ask.id].text for ask in asks] == [expected[ask.id].text for ask in asks]
    assert all(isinstance(result, Completion) for result in found.values())
    for _, body in Server.seen:  # or vLLM would take a repetition penalty from the model's own configuration
        assert body["repetition_penalty"] == 1.0 and body["top_k"] == -1 and body["stop_token_ids"]


def test_a_server_that_scores_no_prompts_is_named_after_a_few_queries(url: str, random_model: Path):
    Server.scores = False
    many: list[Ask] = [ReplyQuery(id=str(i), messages=[USER], reply="No.") for i in range(8)]
    with pytest.raises(StageError, match=r"no log-probabilities of a given reply; correct scores"):
        answers(url, random_model, many, "vllm")
    [one] = answers(url, random_model, many[:1], "vllm").values()
    assert isinstance(one, Answer) and not one.is_readable


@pytest.mark.parametrize("scores", ["none", "vllm", "sglang"])
def test_a_server_is_asked_before_a_run_in_the_way_of_the_run(url: str, random_model: Path, scores: str):
    options = ["engine=server", "engine.model=m", f"engine.base_url={url}", "preferences=ab", "engine.prompts=tokens"]
    config = compose_config([*options, f"engine.tokenizer={random_model}", f"engine.scores={scores}"]).engine
    config.reach("engine")
    (path, _), (then, _) = Server.seen
    assert then == "/detokenize" and path == ("/generate" if scores == "sglang" else "/v1/completions")
    if scores == "vllm":
        Server.scores = False
        with pytest.raises(ConfigError, match=r"^engine\.scores is 'vllm', but http.* no log-probabilities of a given"):
            config.reach("engine")


def _tokens(url: str, tokenizer: Path) -> Any:
    options = ["engine=server", "engine.model=m", f"engine.base_url={url}", "preferences=ab", "engine.prompts=tokens"]
    return compose_config([*options, f"engine.tokenizer={tokenizer}"]).engine


@pytest.mark.parametrize("layout", ["prompt", "content", "text"])
def test_a_tokenizer_that_is_not_the_servers_is_refused_before_a_run(
    url: str, random_model: Path, layout: str, monkeypatch: pytest.MonkeyPatch
):
    warnings: list[str] = []
    monkeypatch.setattr("pipeline.engines.probing.warn", warnings.append)
    Server.layout = layout
    config = _tokens(url, random_model)
    config.reach("engine")
    Server.tokenizer = OtherTokenizer(Server.tokenizer)
    with pytest.raises(ConfigError, match=r"^engine\.prompts is 'tokens', but token ids mean something else to http.*"
                       r"Grüße.* there; set engine\.tokenizer to the tokenizer of its model\.$"):  # fmt: skip
        config.reach("engine")
    assert warnings == []


def test_token_ids_beyond_the_servers_vocabulary_are_refused_before_a_run(url: str, random_model: Path):
    Server.vocabulary = 5
    with pytest.raises(ConfigError, match=r"^engine\.prompts is 'tokens', .*Grüße.* are an error \(.* there; set "):
        _tokens(url, random_model).reach("engine")


def test_a_server_that_can_not_say_what_token_ids_mean_is_a_warning(
    url: str, random_model: Path, monkeypatch: pytest.MonkeyPatch
):
    warnings: list[str] = []
    monkeypatch.setattr("pipeline.engines.probing.warn", warnings.append)
    for layout in (None, "other"):
        Server.layout = layout
        _tokens(url, random_model).reach("engine")
    assert [f"{url} can't say" in text and "engine.tokenizer" in text for text in warnings] == [True, True]


@pytest.mark.parametrize(
    ("overrides", "sentence"),
    [
        ("engine.prompts=tokens", "engine.prompts is 'tokens', which needs engine.tokenizer=FOLDER_OR_ID"),
        ("engine.scores=vllm", "engine.scores is set, which needs engine.prompts=tokens"),
        ("engine.tokenizer=x", "engine.tokenizer is set, which needs engine.prompts=tokens"),
        ("preferences=likelihood", "engine.prompts=tokens and engine.scores=vllm or sglang"),
    ],
)
def test_settings_that_do_not_fit_are_one_sentence(overrides: str, sentence: str):
    with pytest.raises(ConfigError) as caught:
        compose_config(["engine=server", "engine.model=m", "preferences=ab", *overrides.split()])
    assert sentence in str(caught.value)


def test_likelihood_works_with_a_server_that_scores(random_model: Path):
    overrides = ["engine=server", "engine.model=m", "engine.prompts=tokens", f"engine.tokenizer={random_model}"]
    config = compose_config([*overrides, "engine.scores=sglang", "preferences=likelihood"])
    assert config.engine.scores_replies


def test_llama_cpp_lists_tokens_in_the_layout_of_chat_for_completions_too():
    entry = {"id": 49, "token": "A", "logprob": -0.5}
    choice = {"text": "A", "finish_reason": "length", "logprobs": {"content": [{**entry, "top_logprobs": [entry]}]}}
    assert read_reply(json.dumps({"choices": [choice]})).listed == [("token_id:49", -0.5)]


@pytest.mark.parametrize("lost", ["tokenizer.json", "chat_template.jinja", "config.json"])
def test_a_tokenizer_that_can_t_render_is_named_before_a_run(random_model: Path, tmp_path: Path, lost: str):
    folder = tmp_path / "tokenizer"
    shutil.copytree(random_model, folder, ignore=shutil.ignore_patterns(lost, "generation_config.json"))
    options = ["engine=server", "preferences=ab", "engine.model=m", "engine.prompts=tokens"]
    with pytest.raises(
        ConfigError, match=r"^engine\.tokenizer is '.*/tokenizer', which can't render a prompt \(.+\); give"
    ):
        compose_config([*options, f"engine.tokenizer={folder}"]).engine.check("engine")
    compose_config([*options, f"engine.tokenizer={random_model}"]).engine.check("engine")
