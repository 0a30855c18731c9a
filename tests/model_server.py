"""A server of a model folder in the layouts of vLLM and SGLang: ``model_server.py --port 8000 --model FOLDER``.

As vLLM, it takes adapters with ``--enable-lora`` and a variable of its environment, and then only what it has loaded.
"""

from __future__ import annotations

import argparse
import json
import os
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, ClassVar

import peft
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

LOCK = threading.Lock()


class OtherTokenizer:
    """Another tokenizer: each of its ids means what the next one means to the given tokenizer."""

    def __init__(self, right: Any) -> None:
        self._right = right

    def decode(self, ids: list[int], **settings: Any) -> str:
        return str(self._right.decode([(number + 1) % len(self._right) for number in ids], **settings))


class Server(BaseHTTPRequestHandler):
    """vLLM's /v1/completions and SGLang's /generate."""

    model: ClassVar[Any]
    tokenizer: ClassVar[Any]
    seen: ClassVar[list[tuple[str, dict[str, Any]]]] = []
    adapters: ClassVar[dict[str, Any]] = {}
    max_rank: ClassVar[int] = 0
    """0: it takes no adapters."""
    scores = True
    vocabulary = 10**9
    layout: ClassVar[str | None] = "prompt"
    """The field of /detokenize with the text, as of vLLM, llama.cpp or SGLang; None: there is no such path."""

    def do_GET(self) -> None:
        self._send({})

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        Server.seen.append((self.path, body))
        if self.path == "/v1/load_lora_adapter":
            self._load_adapter(body)
            return
        answers = {"/v1/completions": self._complete, "/generate": self._generate, "/detokenize": self._detokenize}
        if self.path == "/detokenize" and Server.layout is None:
            self.send_error(404)
            return
        ids = body.get("prompt") or body.get("tokens") or body.get("input_ids")
        if max(ids) >= Server.vocabulary:
            self.send_error(500 if self.path == "/detokenize" else 400)  # as llama.cpp
            return
        answer = answers[self.path](body)
        self._send(answer)

    def _load_adapter(self, body: dict[str, Any]) -> None:
        if not Server.max_rank or os.environ.get("VLLM_ALLOW_RUNTIME_LORA_UPDATING") != "1":
            self._send({"detail": "Not Found"}, 404)
            return
        base = AutoModelForCausalLM.from_pretrained(Server.model.name_or_path, dtype=torch.float32)
        adapted = peft.PeftModel.from_pretrained(base, body["lora_path"])
        if adapted.peft_config["default"].r > Server.max_rank:
            self._send({"error": {"message": "LoRA rank is greater than max_lora_rank"}}, 400)
            return
        Server.adapters[body["lora_name"]] = adapted
        self._send(f"Success: LoRA adapter '{body['lora_name']}' added successfully.")

    def _send(self, answer: Any, status: int = 200) -> None:
        data = answer.encode() if isinstance(answer, str) else json.dumps(answer).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    @torch.inference_mode()
    def _logprobs(self, ids: list[int], adapter: str = "") -> torch.Tensor:
        model = Server.adapters.get(adapter, Server.model)
        with LOCK:
            logits: torch.Tensor = model(torch.tensor([ids])).logits[0]
        return logits.float().log_softmax(-1)

    def _detokenize(self, body: dict[str, Any]) -> dict[str, Any]:
        assert Server.layout is not None
        return {Server.layout: Server.tokenizer.decode(body["tokens"], skip_special_tokens=False)}

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
            choice |= self._write(ids, body)
        return {"choices": [choice], "usage": {"prompt_tokens": len(ids), "completion_tokens": 1}}

    def _write(self, ids: list[int], body: dict[str, Any]) -> dict[str, Any]:
        reply: list[int] = []
        told: list[float] = []
        generator = torch.Generator().manual_seed(body["seed"])
        while len(reply) < body["max_tokens"]:
            last = self._logprobs(ids + reply, body["model"])[-1]
            if temperature := body["temperature"]:
                last = (last / temperature).log_softmax(-1)
                token = int(torch.multinomial(last.exp(), 1, generator=generator))
            else:
                token = int(last.argmax())
            reply.append(token)
            told.append(float(last[token]))
            if token in body["stop_token_ids"]:
                break
        text = Server.tokenizer.decode(reply, skip_special_tokens=True)
        logprobs = {"tokens": [f"token_id:{token}" for token in reply], "token_logprobs": told, "top_logprobs": None}
        return {"text": text, "logprobs": logprobs if body.get("return_tokens_as_token_ids") else None}

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


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--model", required=True)
    parser.add_argument("--no-scores", action="store_true", help="return no log-probabilities of prompts")
    parser.add_argument("--other-tokenizer", action="store_true")
    parser.add_argument("--enable-lora", action="store_true")
    parser.add_argument("--max-lora-rank", type=int, default=0)
    parser.add_argument("--logprobs-mode", default="raw_logprobs")
    args = parser.parse_args()
    Server.max_rank = args.max_lora_rank if args.enable_lora else 0
    Server.scores = not args.no_scores
    Server.model = AutoModelForCausalLM.from_pretrained(args.model, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(args.model)
    Server.tokenizer = OtherTokenizer(tokenizer) if args.other_tokenizer else tokenizer
    ThreadingHTTPServer(("127.0.0.1", args.port), Server).serve_forever(0.05)
