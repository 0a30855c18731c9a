"""Prompts that are rendered here and sent to servers as token ids: the numbers are those of the model in this process.

The servers compute with the same tiny model and answer in the layouts of vLLM and SGLang.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, ClassVar

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

LOCK = threading.Lock()


class Server(BaseHTTPRequestHandler):
    """vLLM's /v1/completions and SGLang's /generate."""

    model: ClassVar[Any]
    tokenizer: ClassVar[Any]
    seen: ClassVar[list[tuple[str, dict[str, Any]]]] = []
    scores = True

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        Server.seen.append((self.path, body))
        answer = {"/v1/completions": self._complete, "/generate": self._generate}[self.path](body)
        data = json.dumps(answer).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    @torch.inference_mode()
    def _logprobs(self, ids: list[int]) -> torch.Tensor:
        with LOCK:
            logits: torch.Tensor = Server.model(torch.tensor([ids])).logits[0]
        return logits.float().log_softmax(-1)

    def _complete(self, body: dict[str, Any]) -> dict[str, Any]:
        ids = body["prompt"]
        found = self._logprobs(ids)
        choice: dict[str, Any] = {"text": " ok", "finish_reason": "length", "logprobs": None}
        if "logprobs" in body:
            shown = body.get("logprob_token_ids") or found[-1].topk(body["logprobs"]).indices.tolist()
            pairs = zip(shown, found[-1, shown].tolist(), strict=True)
            choice["logprobs"] = {"top_logprobs": [{f"token_id:{token}": value for token, value in pairs}]}
        if "prompt_logprobs" in body and Server.scores:
            choice["prompt_logprobs"] = [None] + [
                {str(token): {"logprob": float(found[place, token]), "rank": 1, "decoded_token": "x"}}
                for place, token in enumerate(ids[1:])
            ]
        if body["max_tokens"] > 1:
            choice["text"] = self._greedy(ids, body)
        return {"choices": [choice], "usage": {"prompt_tokens": len(ids), "completion_tokens": 1}}

    def _greedy(self, ids: list[int], body: dict[str, Any]) -> str:
        reply: list[int] = []
        while len(reply) < body["max_tokens"]:
            token = int(self._logprobs(ids + reply)[-1].argmax())
            if token in body["stop_token_ids"]:
                break
            reply.append(token)
        return str(Server.tokenizer.decode(reply))

    def _generate(self, body: dict[str, Any]) -> dict[str, Any]:
        ids, about = body["input_ids"], dict[str, Any](prompt_tokens=len(body["input_ids"]))
        found = self._logprobs(ids)
        if (start := body.get("logprob_start_len")) is not None:
            scored = [[float(found[place - 1, ids[place]]), ids[place], None] for place in range(start + 1, len(ids))]
            about["input_token_logprobs"] = [[None, ids[start], None], *scored]
        if tokens := body.get("token_ids_logprob"):
            about["output_token_ids_logprobs"] = [[[float(found[-1, token]), token, None] for token in tokens]]
        return {"text": "", "meta_info": about}

    def log_message(self, *_: object) -> None: ...


@pytest.fixture
def url(random_model: Path) -> Iterator[str]:
    Server.model, Server.tokenizer = load_model(str(random_model), "fp32"), load_tokenizer(str(random_model))
    Server.seen, Server.scores = [], True
    server = ThreadingHTTPServer(("127.0.0.1", 0), Server)
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
