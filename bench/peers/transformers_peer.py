#!/usr/bin/env python3
"""Measure the prefill of Hugging Face transformers on torch's CPU kernels: bf16, sdpa attention, a fresh cache each time.

Usage: transformers_peer.py MODEL_DIR THREADS [PIECE...]
"""
import sys

import torch
import transformers

from measure import choose, report, timed

PIECES = {"prefill-512": (512, 3), "prefill-4096": (4096, 2)}


def prefill(model, count):
    tokens = torch.randint(0, 100000, (1, count))
    cache = transformers.DynamicCache(config=model.config)
    return timed(lambda: model(input_ids=tokens, past_key_values=cache, use_cache=True, logits_to_keep=1))


def main(directory, threads, *names):
    pieces = choose(PIECES, names)
    torch.manual_seed(0)
    torch.set_num_threads(int(threads))
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    model = transformers.AutoModelForCausalLM.from_pretrained(directory, dtype=torch.bfloat16, attn_implementation="sdpa").eval()
    with torch.inference_mode():
        prefill(model, 32)  # weights are paged in and packed
        for name, (count, repeats) in pieces:
            runs = [count / prefill(model, count) for _ in range(repeats)]
            version = f"{transformers.__version__}, torch {torch.__version__}"
            report("transformers", version, name, "bf16", "bf16", int(threads), "tokens/s", runs)


if __name__ == "__main__":
    main(*sys.argv[1:])
