#!/usr/bin/env python3
"""Measure llama.cpp through its C interface, as llama-cpp-python binds it.

Usage: llama.py MODEL_BF16.gguf MODEL_Q8_0.gguf THREADS [PIECE...]

Keys and values in f16, batches of 2,048 and micro-batches of 512: what llama.cpp's own benchmarks use. Every piece is measured
in all the ways named beside it in PIECES, and the fastest is reported: with flash attention or without, and quantised weights
repacked or not. Which that is depends on the processor. Flash attention adds up values in f16, one after another, and where
the compiler makes table look-ups of that (gcc 12 for Sapphire Rapids) it takes three times as long. A deep context is not prefilled, which would take hours: the state of one prefilled chunk is restored through the public
sequence-state interface until the cache holds `depth` tokens. Positions repeat then, but what attention reads and computes
for a token is that of a true context of that depth.
"""
import ctypes
import importlib.metadata
import json
import os
import signal
import statistics
import sys
import typing

import llama_cpp.llama_cpp as llama

from measure import choose, report, timed

CHUNK = 2048
BATCH, MICRO_BATCH = 2048, 512
DECODE_MICRO_BATCH = 64  # of steps at depth: without flash attention, memory is taken for the scores of a whole micro-batch
TYPE_F16 = 1


class Way(typing.NamedTuple):
    name: str
    is_flash: bool
    is_repacked: bool


FLASH, PLAIN = Way("flash attention", True, True), Way("no flash attention", False, True)
AS_STORED = Way("flash attention, weights as stored", True, False)


@llama.llama_log_callback
def say_nothing(level, text, context):
    pass


class Engine:
    """One model and one context. Sequence 0 is the one that is measured."""

    def __init__(self, path, threads, context_tokens, way, sequences=4, is_unified=True, micro_batch=MICRO_BATCH):
        model_parameters = llama.llama_model_default_params()
        model_parameters.n_gpu_layers = 0
        model_parameters.use_extra_bufts = way.is_repacked
        self.model = llama.llama_model_load_from_file(path.encode(), model_parameters)
        if not self.model:
            sys.exit(f"llama.cpp cannot load {path}")
        parameters = llama.llama_context_default_params()
        parameters.n_ctx = (context_tokens + 255) // 256 * 256
        parameters.n_batch, parameters.n_ubatch = BATCH, micro_batch
        parameters.n_seq_max, parameters.kv_unified = sequences, is_unified
        parameters.type_k = parameters.type_v = TYPE_F16
        parameters.flash_attn_type = (llama.LLAMA_FLASH_ATTN_TYPE_ENABLED if way.is_flash
                                      else llama.LLAMA_FLASH_ATTN_TYPE_DISABLED)
        parameters.n_threads = parameters.n_threads_batch = threads
        parameters.no_perf = True
        self.context = llama.llama_init_from_model(self.model, parameters)
        if not self.context:
            sys.exit("llama.cpp cannot make a context")
        self.memory = llama.llama_get_memory(self.context)
        self.batch = llama.llama_batch_init(BATCH, 0, 1)

    def close(self):
        llama.llama_batch_free(self.batch)
        llama.llama_free(self.context)
        llama.llama_model_free(self.model)

    def decode(self, rows):
        """One pass over rows of (position, sequence, has_logits)."""
        self.batch.n_tokens = len(rows)
        for index, (position, sequence, has_logits) in enumerate(rows):
            self.batch.token[index] = (index * 7919 + position * 31 + 13) % 100000
            self.batch.pos[index] = position
            self.batch.n_seq_id[index] = 1
            self.batch.seq_id[index][0] = sequence
            self.batch.logits[index] = has_logits
        if llama.llama_decode(self.context, self.batch) != 0:
            sys.exit("llama_decode failed")
        llama.llama_synchronize(self.context)

    def prefill(self, count, first=0, sequence=0):
        for start in range(0, count, BATCH):
            end = min(start + BATCH, count)
            self.decode([(first + position, sequence, position == count - 1) for position in range(start, end)])

    def end(self, sequence=0):
        """The position behind the last one of a sequence."""
        return llama.llama_memory_seq_pos_max(self.memory, sequence) + 1

    def clear(self):
        llama.llama_memory_clear(self.memory, True)

    def state(self, sequence):
        state = (ctypes.c_uint8 * llama.llama_state_seq_get_size(self.context, sequence))()
        if llama.llama_state_seq_get_data(self.context, state, len(state), sequence) != len(state):
            sys.exit("llama.cpp cannot save the state of a sequence")
        return state

    def restore(self, state, sequence):
        if llama.llama_state_seq_set_data(self.context, state, len(state), sequence) == 0:
            sys.exit("llama.cpp cannot restore the state of a sequence")

    def fill(self, depth):
        """Gives sequence 0 `depth` cached tokens, a multiple of the chunk, in the one (unified) cache."""
        if depth == 0:
            return
        self.prefill(CHUNK, sequence=1)
        state = self.state(1)
        llama.llama_memory_seq_rm(self.memory, 1, -1, -1)
        for _ in range(depth // CHUNK):
            self.restore(state, 2)
            llama.llama_memory_seq_cp(self.memory, 2, 0, -1, -1)
            llama.llama_memory_seq_rm(self.memory, 2, -1, -1)


def prefill(count, repeats):
    def measure(path, threads, way):
        engine = Engine(path, threads, count + 64, way)
        engine.prefill(32)  # weights are paged in
        runs = []
        for _ in range(repeats):
            engine.clear()
            runs.append(count / timed(lambda: engine.prefill(count)))
        engine.close()
        return "tokens/s", runs
    return measure


def decode(depth, tokens, repeats):
    def measure(path, threads, way):
        engine = Engine(path, threads, depth + 2 * CHUNK + tokens * (repeats + 1), way, micro_batch=DECODE_MICRO_BATCH)
        engine.fill(depth)
        engine.decode([(engine.end(), 0, True)])
        runs = []
        for _ in range(repeats):
            seconds = timed(lambda: [engine.decode([(engine.end(), 0, True)]) for _ in range(tokens)])
            runs.append(1000 * seconds / tokens)
        engine.close()
        return "ms/token", runs
    return measure


def chunk(depth, count, repeats):
    def measure(path, threads, way):
        engine = Engine(path, threads, depth + 2 * CHUNK + count * (repeats + 1), way)
        engine.fill(depth)
        runs = [count / timed(lambda: engine.prefill(count, engine.end())) for _ in range(repeats)]
        engine.close()
        return "tokens/s", runs
    return measure


def batch(size, depth, steps, repeats):
    """Sequences with a cache of their own, as unlike prompts have; tokens/s of all together."""
    def measure(path, threads, way):
        engine = Engine(path, threads, size * (depth + 512), way, size, is_unified=False)
        engine.prefill(depth)
        state = engine.state(0)
        for sequence in range(1, size):
            engine.restore(state, sequence)
        step = lambda: engine.decode([(engine.end(sequence), sequence, True) for sequence in range(size)])
        step()
        runs = [size * steps / timed(lambda: [step() for _ in range(steps)]) for _ in range(repeats)]
        engine.close()
        return "tokens/s", runs
    return measure


def in_a_child(measure, path, threads, way):
    """What measure returns, or None where llama.cpp dies of it: of some processors it uses instructions that they have not."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(reading)
        with os.fdopen(writing, "w") as result:
            json.dump(measure(path, threads, way), result)
        os._exit(0)
    os.close(writing)
    with os.fdopen(reading) as result:
        text = result.read()
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    if status < 0:
        print(f"peers: llama.cpp died of {signal.Signals(-status).name} ({way.name}); that way is left out", file=sys.stderr)
    return json.loads(text) if status == 0 else None


def fastest(measure, ways, path, threads):
    """The unit, the runs and the name of the way that is fastest in the median."""
    results = [(*result, way.name) for way in ways if (result := in_a_child(measure, path, threads, way)) is not None]
    if not results:
        sys.exit("llama.cpp runs these weights in no way on this processor")
    best = min if results[0][0] == "ms/token" else max
    return best(results, key=lambda result: statistics.median(result[1]))


PIECES = {
    "prefill-512": (prefill(512, 3), [FLASH, PLAIN]),
    "prefill-4096": (prefill(4096, 2), [FLASH, PLAIN]),
    "decode-0": (decode(0, 16, 5), [FLASH]),
    "decode-4096": (decode(4096, 16, 3), [FLASH, PLAIN]),
    "decode-32768": (decode(32768, 4, 3), [FLASH, PLAIN]),
    "decode-131072": (decode(131072, 4, 3), [FLASH, PLAIN]),
    "chunk-32768": (chunk(32768, 256, 2), [FLASH, PLAIN]),
    "batch-8": (batch(8, 4096, 8, 3), [FLASH, PLAIN]),
    "q8-decode-0": (decode(0, 16, 5), [FLASH, AS_STORED]),
}


def main(bf16_path, q8_path, threads, *names):
    llama.llama_log_set(say_nothing, None)
    llama.llama_backend_init()
    version = importlib.metadata.version("llama-cpp-python")
    for name, (measure, ways) in choose(PIECES, names):
        weights, path = ("q8_0", q8_path) if name.startswith("q8-") else ("bf16", bf16_path)
        unit, runs, way = fastest(measure, ways, path, int(threads))
        report("llama.cpp", f"llama-cpp-python {version}, {way}", name, weights, "f16", int(threads), unit, runs)


if __name__ == "__main__":
    main(*sys.argv[1:])
