"""Trains pico or nano: `python -m backends.zoo.train nano --checkpoint DIR --out DIR`.

Interrupt it at any time: it resumes from its checkpoint, and every batch is a function of (seed, step).
Muon on the matrices of the blocks, AdamW on the rest; constant rate after warm-up, linear to zero at the end.
"""

import argparse
import json
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from transformers import AutoTokenizer

from backends.zoo.batches import Batch, Encoder, long_batch, short_batch
from backends.zoo.net import SHAPES, Net
from backends.zoo.probe import exactness, probe_instances, summary

WARMUP_STEPS = 100
MATRIX_RATE, OTHER_RATE = 0.003, 5e-3


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", choices=SHAPES)
    parser.add_argument("--tokenizer", type=Path, required=True)
    parser.add_argument("--checkpoint", type=Path, required=True, help="folder of the resumable state")
    parser.add_argument("--short-steps", type=int, required=True, help="steps on rows of 256 and 512 tokens")
    parser.add_argument("--long-steps", type=int, required=True, help="steps on rows of 1k to 4k tokens, at the end")
    parser.add_argument("--batch-tokens", type=int, default=4096)
    parser.add_argument("--decay-share", type=float, default=0.35)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--matrix-rate", type=float, default=MATRIX_RATE)
    parser.add_argument("--threads", type=int, default=2)
    train(parser.parse_args())


def train(args: argparse.Namespace) -> None:
    torch.set_num_threads(args.threads)
    torch.manual_seed(args.seed)
    args.checkpoint.mkdir(parents=True, exist_ok=True)
    net, tokenizer = Net(SHAPES[args.model]), AutoTokenizer.from_pretrained(args.tokenizer)
    vocabulary = tokenizer.get_vocab()
    net.start_alike([(vocabulary[t[1:]], i) for t, i in vocabulary.items() if t[0] == "Ġ" and t[1:] in vocabulary])
    matrices = [p for n, p in net.named_parameters() if n.startswith("layers") and p.ndim == 2]
    others = [p for n, p in net.named_parameters() if not (n.startswith("layers") and p.ndim == 2)]
    optimizers = [
        torch.optim.Muon(matrices, lr=args.matrix_rate, weight_decay=0.01),
        torch.optim.AdamW(others, lr=OTHER_RATE, betas=(0.9, 0.98), weight_decay=0.0),
    ]
    total = args.short_steps + args.long_steps
    done, history = _resume(args.checkpoint, net, optimizers)
    run = torch.compile(net, dynamic=False)
    encode, probes = Encoder(tokenizer), probe_instances(16)
    started, seen, supervised, losses = time.monotonic(), 0, 0, []
    for step, batch in _batches(args, encode, done, total):
        rate = _rate(step, total, args.decay_share)
        for optimizer, base in zip(optimizers, (args.matrix_rate, OTHER_RATE), strict=True):
            for group in optimizer.param_groups:
                group["lr"] = base * rate
        hidden = run(batch.ids, batch.blocked).flatten(0, 1).index_select(0, batch.where)
        loss = F.cross_entropy(net.logits(hidden).float(), batch.targets, reduction="none") @ batch.weights
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(others, 1.0)
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()
        losses.append(loss.item())
        seen, supervised = seen + batch.ids.numel(), supervised + len(batch.targets)
        if step % 50 == 0 or step == total:
            elapsed = time.monotonic() - started
            mean = sum(losses) / len(losses)
            history.append({"step": step, "loss": round(mean, 4), "seconds": round(elapsed), "answer_tokens": supervised})
            speed = seen / elapsed
            print(
                f"{args.model} {step}/{total} loss {mean:.4f} {speed:,.0f} tokens/s rate {rate:.2f}",
                file=sys.stderr,
                flush=True,
            )
            losses = []
        if step % 250 == 0 or step == total:
            cells = exactness(net, encode, probes)
            print(f"{args.model} {step}/{total} exact: {summary(cells)}", file=sys.stderr, flush=True)
            _save(args.checkpoint, net, optimizers, step, history)


def _rate(step: int, total: int, decay_share: float) -> float:
    decay_steps = max(1, int(total * decay_share))
    return min(1.0, step / WARMUP_STEPS, (total - step + 1) / decay_steps)


def _batches(args: argparse.Namespace, encode: Encoder, done: int, total: int) -> Iterator[tuple[int, Batch]]:
    """Drawn in this process: on two cores a second one costs more than it saves (pico: 26k against 40k tokens/s)."""
    for step in range(done + 1, total + 1):
        if step <= args.short_steps:
            yield step, short_batch(encode, args.seed, step, tokens=args.batch_tokens, progress=step / total)
        else:
            yield step, long_batch(encode, args.seed, step, tokens=args.batch_tokens)


def _resume(folder: Path, net: Net, optimizers: list[Any]) -> tuple[int, list[dict[str, float]]]:
    path = folder / "state.pt"
    if not path.exists():
        return 0, []
    state = torch.load(path, weights_only=True)
    net.load_state_dict(state["net"])
    for optimizer, saved in zip(optimizers, state["optimizers"], strict=True):
        optimizer.load_state_dict(saved)
    return state["step"], json.loads((folder / "history.json").read_text())


def _save(folder: Path, net: Net, optimizers: list[Any], step: int, history: list[dict[str, float]]) -> None:
    state = {"net": net.state_dict(), "optimizers": [o.state_dict() for o in optimizers], "step": step}
    torch.save(state, folder / "state.tmp")
    (folder / "history.json").write_text(json.dumps(history))
    (folder / "state.tmp").replace(folder / "state.pt")


if __name__ == "__main__":
    main()
