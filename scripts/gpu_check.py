"""What a GPU reaches: one file, about ten minutes, one table. It needs no hub and no other model than the embedded one.

    python scripts/gpu_check.py [--output docs/gpu.md] [--small]

1. The rate of large bf16 matrix products: the card's peak as measured, not as printed.
2. SFT and DPO of a model of 1.5 B random weights with LoRA: tokens per second, share of that peak, peak memory. A LoRA
   step computes 4 floating-point operations for each parameter and token (forward, and backward to the activations);
   embeddings of the input are only looked up and don't count.
3. The engine beside plain ``model.generate`` (``scripts/bench_engine.py``). If the package vllm is installed, vLLM
   beside the engine, with the agreement of their log-probabilities (``scripts/check_vllm.py``). Both use
   SmolLM2-135M-Instruct.

``--small`` tries the script itself on a CPU; its numbers mean nothing.
"""

from __future__ import annotations

import argparse
import importlib.util
import platform
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch
import transformers
from bench_training import num_tokens, ours, preferences, sft_rows, timed

from pipeline.chain.compose import compose_config
from pipeline.chat import Renderer
from pipeline.engines.models import load_tokenizer, resolve_path
from pipeline.training.footprint import Shape, shape_of

SCRIPTS = Path(__file__).parent
LARGE = {
    "hidden_size": 1536,
    "intermediate_size": 8960,
    "num_hidden_layers": 28,
    "num_attention_heads": 12,
    "num_key_value_heads": 2,
}
SMALL = {
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}


def device() -> str:
    return "cuda" if torch.cuda.is_available() else "cpu"


def wait() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def matrix_peak(size: int, times: int) -> float:
    """TFLOP/s of bf16 products of two square matrices."""
    left, right = (torch.randn(size, size, dtype=torch.bfloat16, device=device()) for _ in range(2))
    for _ in range(3):
        left @ right
    wait()
    started = time.perf_counter()
    for _ in range(times):
        left @ right
    wait()
    return 2 * size**3 * times / (time.perf_counter() - started) / 1e12


def random_model(folder: Path, sizes: dict[str, int]) -> str:
    """A model of Qwen2's kind with random weights and SmolLM2's tokenizer."""
    tokenizer = load_tokenizer(resolve_path("embedded"))
    config = transformers.Qwen2Config(
        vocab_size=len(tokenizer),
        tie_word_embeddings=False,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        **sizes,
    )
    transformers.AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


def tflops(shape: Shape, tokens_per_second: float) -> float:
    """TFLOP/s of a LoRA step: matrix products with all weights but the embeddings of the input."""
    return 4 * (shape.num_parameters - shape.vocabulary * shape.hidden) * tokens_per_second / 1e12


def training_lines(model: str, num_rows: int, batch: int, peak: float) -> list[str]:
    config = compose_config(
        [
            f"model.path={model}",
            "model.lora.upper_share=1",
            "align=dpo",
            "align.num_reply_tokens=null",
            f"launch.per_device_batch_size={batch}",
            *(f"{name}.global_batch_size={batch}" for name in ("sft", "align")),
            *(f"{name}.num_epochs=1" for name in ("sft", "align")),
            *(f"{name}.save_every_steps=100000" for name in ("sft", "align")),
        ]
    )
    chat, shape = Renderer(load_tokenizer(model)), shape_of(config.model)
    lines = [
        "",
        f"A model of {shape.num_parameters / 1e9:.2f} B random weights, LoRA, bf16, {batch} rows per step. The time "
        "also holds loading the model and merging the adapter.",
        "",
        "| task | tokens | tokens per second | TFLOP/s | share of the peak | peak memory |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for task in ("sft", "dpo"):
        rows = sft_rows(num_rows) if task == "sft" else preferences(config, num_rows)
        tokens = num_tokens(rows, chat)
        if torch.cuda.is_available():
            torch.cuda.reset_peak_memory_stats()
        rate = tokens / timed(lambda folder, task=task, rows=rows: ours(task, config, rows, folder))
        reached = tflops(shape, rate)
        memory = f"{torch.cuda.max_memory_allocated() / 2**30:.1f} GiB" if torch.cuda.is_available() else "–"
        lines.append(f"| {task} | {tokens} | {rate:.0f} | {reached:.3g} | {reached / peak:.1%} | {memory} |")
        print(lines[-1], flush=True)
    return lines


def of_script(name: str, *arguments: str) -> list[str]:
    """What another script prints."""
    command = [sys.executable, str(SCRIPTS / name), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        return [f"`{name}` failed: {(done.stderr.strip().splitlines() or ['no message'])[-1]}"]
    return [line for line in done.stdout.splitlines() if line.startswith("|")]


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--output", type=Path, default=Path("docs/gpu.md"))
    arguments.add_argument("--small", action="store_true")
    args = arguments.parse_args()
    if not torch.cuda.is_available() and not args.small:
        raise SystemExit("error: there is no GPU; try the script itself with --small.")
    small = args.small
    name = torch.cuda.get_device_name() if torch.cuda.is_available() else platform.processor() or "CPU"
    peak = matrix_peak(*((512, 3) if small else (8192, 50)))
    lines = [
        "# What a GPU reaches",
        "",
        f"`python scripts/gpu_check.py{' --small' if small else ''}` on {name}, torch {torch.__version__}, "
        f"transformers {transformers.__version__}.",
        "",
        f"Large bf16 matrix products: {peak:.3g} TFLOP/s.",
    ]
    print(lines[-1], flush=True)
    with tempfile.TemporaryDirectory() as folder:
        model = random_model(Path(folder) / "model", SMALL if small else LARGE)
        lines += training_lines(model, *((8, 4) if small else (2048, 32)), peak)
    rows, new_tokens = ("2", "4") if small else ("256", "128")
    with tempfile.TemporaryDirectory() as folder:
        bench = ["--rows", rows, "--new-tokens", new_tokens, "--output", str(Path(folder) / "bench.md")]
        header = ["| task | rows | plain transformers | engine | ratio |", "| --- | --- | --- | --- | --- |"]
        lines += [
            "",
            "The engine beside plain transformers in 32 bits:",
            "",
            *header,
            *of_script("bench_engine.py", *bench),
        ]
    if importlib.util.find_spec("vllm") is None:
        lines += ["", "vLLM is not installed, so it was not measured."]
    else:
        asked = ["--precision", "bf16", "--rows", rows, "--new-tokens", new_tokens]
        lines += ["", "vLLM beside the engine:", "", *of_script("check_vllm.py", *asked)]
    args.output.write_text("\n".join(lines) + "\n", encoding="utf-8")
    print("\n".join(lines))


if __name__ == "__main__":
    main()
