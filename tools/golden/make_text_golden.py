#!/usr/bin/env python3
"""Write small tokenizers and chat templates in the styles of the supported families, and what transformers makes of them.

Usage: make_text_golden.py OUT_DIR

OUT_DIR/tokenizers/NAME/ is a model directory without weights; its cases.json holds texts and their ids both ways.
OUT_DIR/chats/NAME/ has a chat template; its cases.json holds contexts and prompts, or the error that the template raises.
OUT_DIR/README.md (written by hand) explains the files. The templates are this project's own and use the idioms of real ones.
Needs transformers 5 and tokenizers; the training text comes from tools/needle/prose.py.
"""
import argparse
import json
import os
import random
import sys

import transformers
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

HERE = os.path.dirname(os.path.abspath(__file__))
sys.path.insert(0, os.path.join(HERE, os.pardir, "needle"))
from prose import Prose  # noqa: E402 (it lies in the neighbouring folder)

LLAMA3_WORDS = (r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"
                r"|\s+(?!\S)|\s+")
QWEN2_WORDS = LLAMA3_WORDS.replace(r"\p{N}{1,3}", r"\p{N}")
BLANK = "\u2581"

TEXTS = [
    "", " ", "\n", "a", "Hello, world!", "  two blanks  and three   end  ", "tabs\tand\r\nreturns\n\n\nand lines\n",
    "It's we'll they'D I'm you've don't", "1 12 123 1234 12345 3.14159 1,000,000", "snake_case camelCase kebab-case",
    "for (int i = 0; i < n; i++) { sum += a[i] * b[i]; } // done", '{"key": ["value", null, true, -1.5e3]}',
    "Grüße aus Köln, façade, naïve, Ærø, Łódź", "Привет, мир! Как дела?", "Καλημέρα κόσμε", "中文没有空格。标点也不同，对吗？",
    "日本語のテキスト、カタカナとひらがな。", "한국어 텍스트입니다.", "שלום עולם", "مرحبا بالعالم", "नमस्ते दुनिया", "ไทยไม่มีช่องว่าง",
    "emoji 😀😃 family 👨‍👩‍👧‍👦 flag 🇩🇪 skin 👍🏽", "e\u0301 composed é, A\u030a Å, ﬁ ligature, \ufb01", "zero\u200bwidth\u00a0nbsp\u3000wide",
    "<s> looks like a token </s> and <|end|> too", "<|begin_of_text|>twice<|begin_of_text|>", "\u2581 is itself \u2581\u2581 here",
    "a<|end|>b <|end|> c", "math: ∑ᵢ xᵢ² ≤ ∞ → ½", "control \x01\x02\x7f bytes", "x" * 300, "end with blank ", "\ufeffbom first",
    "The quick brown fox jumps over the lazy dog. " * 5, "𝒳 astral 𐍈 plane", "word " * 40 + "\n" * 7 + " " * 9 + "last",
]


def training_texts():
    return [Prose("text golden").text(200_000)] + TEXTS * 30


def special(content):
    return AddedToken(content, special=True, normalized=False)


def byte_level(words, normalizer=None, vocabulary=900, **model):
    tokenizer = Tokenizer(models.BPE(**model))
    tokenizer.normalizer = normalizer
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([
        pre_tokenizers.Split(Regex(words), "isolated"), pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.train_from_iterator(training_texts(), trainers.BpeTrainer(
        vocab_size=vocabulary, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False))
    return tokenizer


def llama3():
    tokenizer = byte_level(LLAMA3_WORDS, ignore_merges=True)
    tokenizer.add_special_tokens([special(name) for name in ("<|begin_of_text|>", "<|end_of_text|>", "<|end|>")])
    begin = tokenizer.token_to_id("<|begin_of_text|>")
    tokenizer.post_processor = processors.Sequence([
        processors.ByteLevel(trim_offsets=False),
        processors.TemplateProcessing(single="<|begin_of_text|> $A", special_tokens=[("<|begin_of_text|>", begin)])])
    return tokenizer, {"bos_token": "<|begin_of_text|>", "eos_token": "<|end|>", "clean_up_tokenization_spaces": True}


def qwen2():
    """Some tokens are in tokenizer_config.json alone, special and ordinary ones; the end token is named by an object."""
    tokenizer = byte_level(QWEN2_WORDS, normalizers.NFC())
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=False)
    tokenizer.add_special_tokens([special("<|endoftext|>"), special("<|im_start|>"), special("<|im_end|>")])
    size = tokenizer.get_vocab_size()
    flags = {"lstrip": False, "rstrip": False, "single_word": False, "normalized": False}
    added = {"<|endoftext|>": True, "<|im_start|>": True, "<|im_end|>": True, "<think>": False, "</think>": False, "<|end|>": True}
    return tokenizer, {
        "added_tokens_decoder": {str(size - 3 + index): {"content": content, "special": is_special, **flags}
                                 for index, (content, is_special) in enumerate(added.items())},
        "additional_special_tokens": ["<|im_start|>", "<|im_end|>"], "bos_token": None, "pad_token": "<|endoftext|>",
        "eos_token": {"__type": "AddedToken", "content": "<|im_end|>", "special": True, **flags}, "add_bos_token": False}


def sentencepiece(vocabulary=900):
    """A BPE vocabulary with U+2581 for blanks and the 256 bytes, as sentencepiece makes it."""
    trained = Tokenizer(models.BPE())
    trained.pre_tokenizer = pre_tokenizers.Metaspace(replacement=BLANK, prepend_scheme="always", split=True)
    trained.train_from_iterator([text.replace("\n", " ") for text in training_texts()], trainers.BpeTrainer(
        vocab_size=vocabulary, limit_alphabet=120, show_progress=False))
    model = json.loads(trained.to_str())["model"]
    pieces = ["<unk>", "<s>", "</s>"] + [f"<0x{byte:02X}>" for byte in range(256)]
    pieces += [piece for piece in sorted(model["vocab"], key=model["vocab"].get)]
    merges = [tuple(merge) for merge in model["merges"]]
    tokenizer = Tokenizer(models.BPE({piece: index for index, piece in enumerate(dict.fromkeys(pieces))}, merges,
                                     unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    tokenizer.decoder = decoders.Sequence([decoders.Replace(BLANK, " "), decoders.ByteFallback(), decoders.Fuse(),
                                           decoders.Strip(" ", 1, 0)])
    tokenizer.add_special_tokens([special("<unk>"), special("<s>"), special("</s>")])
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return tokenizer


def llama2():
    tokenizer = sentencepiece()
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend(BLANK), normalizers.Replace(" ", BLANK)])
    return tokenizer, {"bos_token": {"__type": "AddedToken", "content": "<s>", "lstrip": False, "rstrip": False,
                                     "single_word": False, "normalized": False}, "eos_token": "</s>", "unk_token": "<unk>"}


def mistral():
    tokenizer = sentencepiece()
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(replacement=BLANK, prepend_scheme="first", split=False)
    return tokenizer, {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "additional_special_tokens": ["<|end|>"]}


def metaspace():
    """The older decoder of the same vocabulary, which treats the first token apart."""
    tokenizer = sentencepiece()
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(replacement=BLANK, prepend_scheme="always", split=True)
    tokenizer.decoder = decoders.Metaspace(replacement=BLANK, prepend_scheme="always")
    return tokenizer, {"bos_token": "<s>", "eos_token": "</s>"}


TOKENIZERS = {"llama3": llama3, "qwen2": qwen2, "llama2": llama2, "mistral": mistral, "metaspace": metaspace}


def fingerprint(ids):
    """FNV-1a over the ids as little-endian u32."""
    value = 0xCBF29CE484222325
    for byte in b"".join(index.to_bytes(4, "little") for index in ids):
        value = (value ^ byte) * 0x100000001B3 % (1 << 64)
    return f"{value:016x}"


def is_whole(tokenizer, ids):
    """Whether every run of <0xNN> tokens is whole characters, where this project and tokenizers agree."""
    run = bytearray()
    for token in tokenizer.convert_ids_to_tokens(ids) + ["end"]:
        if len(token) == 6 and token.startswith("<0x"):
            run.append(int(token[3:5], 16))
            continue
        try:
            run.decode()
        except UnicodeDecodeError:
            return False
        run.clear()
    return True


def decode_cases(name, tokenizer):
    """Texts back, their beginnings, and ids drawn at random, special ones among them."""
    source = random.Random(name)
    sequences = [tokenizer(text).input_ids for text in TEXTS]
    sequences += [ids[:source.randrange(len(ids))] for ids in sequences if len(ids) > 3]
    sequences += [[source.randrange(len(tokenizer)) for _ in range(source.randrange(1, 30))] for _ in range(150)]
    cases = []
    for ids in sequences:
        if ids and is_whole(tokenizer, ids):
            cases.append({"ids": ids, "text": tokenizer.decode(ids, clean_up_tokenization_spaces=False),
                          "skipped": tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)})
    return cases


def write_json(directory, name, content, indent=None):
    with open(os.path.join(directory, name), "w", encoding="utf-8") as file:
        json.dump(content, file, ensure_ascii=False, indent=indent)
        file.write("\n")


def write_tokenizer(directory, name, make):
    os.makedirs(directory, exist_ok=True)
    made, config = make()
    made.save(os.path.join(directory, "tokenizer.json"), pretty=False)
    write_json(directory, "tokenizer_config.json", {"tokenizer_class": "PreTrainedTokenizerFast", **config}, 1)
    tokenizer = transformers.AutoTokenizer.from_pretrained(directory)
    encode = [{"text": text, "ids": tokenizer(text).input_ids, "bare": tokenizer(text, add_special_tokens=False).input_ids}
              for text in TEXTS]
    # The C side joins the same texts in the same way.
    round_text = "".join(text + "\n" for text in TEXTS if text)
    long_text = round_text * (3 * (1 << 20) // len(round_text.encode()))
    long_ids = tokenizer(long_text).input_ids
    cases = {
        "vocabulary": len(tokenizer), "bos": tokenizer.bos_token_id, "eos": tokenizer.eos_token_id, "encode": encode,
        "long": {"rounds": long_text.count(TEXTS[4]), "count": len(long_ids), "fnv1a": fingerprint(long_ids)},
        "decode": decode_cases(name, tokenizer)}
    write_json(directory, "cases.json", cases)
    print(f"{name}: {len(tokenizer)} entries, {len(encode)} texts, {len(cases['decode'])} id sequences")


def write_chat(directory, name, templates, config, contexts):
    """templates: {file name: text}, or under "config" what tokenizer_config.json says."""
    os.makedirs(directory, exist_ok=True)
    tokenizer = Tokenizer(models.BPE({"a": 0}, []))
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([special(token) for token in ("<s>", "</s>", "<|end|>")])
    tokenizer.save(os.path.join(directory, "tokenizer.json"), pretty=False)
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": "<s>", "eos_token": "</s>", **config}
    for file_name, text in templates.items():
        if file_name == "config":
            settings["chat_template"] = text
            continue
        os.makedirs(os.path.dirname(os.path.join(directory, file_name)), exist_ok=True)
        with open(os.path.join(directory, file_name), "w", encoding="utf-8", newline="") as file:
            file.write(text)
    write_json(directory, "tokenizer_config.json", settings, 1)
    loaded = transformers.AutoTokenizer.from_pretrained(directory)
    cases = []
    for context in contexts:
        case = {"context": json.dumps(context, ensure_ascii=False)}
        arguments = dict(context)
        try:
            case["text"] = loaded.apply_chat_template(arguments.pop("messages"), tokenize=False, **arguments)
        except Exception as error:  # whatever the template raised
            if type(error).__name__ != "TemplateError":
                raise
            case["error"] = str(error)
        cases.append(case)
    write_json(directory, "cases.json", cases, 1)
    print(f"{name}: {len(cases)} prompts")


def read_template(name):
    with open(os.path.join(HERE, "templates", name), encoding="utf-8", newline="") as file:
        return file.read()


WEATHER = {"type": "function", "function": {
    "name": "get_weather", "description": "The weather <now> & later, in \"plain\" words — für alle", "parameters": {
        "type": "object", "properties": {
            "city": {"type": "string", "description": "A city's name"},
            "days": {"type": "array", "items": {"type": "integer"}, "default": [1, 2]},
            "unit": {"type": "string", "enum": ["c", "f"]}}, "required": ["city"]}}}
CLOCK = {"type": "function", "function": {"name": "clock", "description": "The time", "parameters": {
    "type": "object", "properties": {}}, "return": {"type": "string"}}}
USER = {"role": "user", "content": "  What's the weather in Köln?\n"}
SYSTEM = {"role": "system", "content": "Be brief. "}
ANSWER = {"role": "assistant", "content": "Sunny, 20.5 °C."}


def call(name="get_weather", arguments=None, **more):
    return {"role": "assistant", "content": None, "tool_calls": [{"id": "call12345", "type": "function", "function": {
        "name": name, "arguments": arguments if arguments is not None else {"city": "Köln", "days": [1, 2], "exact": True, "p": 0.1}}}],
        **more}


def tool(content="{\"sun\": true}"):
    return {"role": "tool", "name": "get_weather", "content": content, "tool_call_id": "call12345"}


THINKING = {"role": "assistant", "content": "<think>\nHm, sun.\n</think>\n\nSunny."}
DIALOGUES = [
    [USER], [SYSTEM, USER], [USER, ANSWER, USER], [SYSTEM, USER, ANSWER, {"role": "user", "content": "And tomorrow?"}],
    [USER, call(), tool()], [SYSTEM, USER, call(), tool(), ANSWER, USER], [USER, THINKING, USER],
    [USER, {"role": "assistant", "content": "Sunny.", "reasoning_content": "Hm."}, USER, call(), tool("plain text"), tool("twice")],
    [USER, call(arguments="{\"city\": \"Rome\"}"), tool()],
    [{"role": "user", "content": "line\r\nbreaks and \"quotes\" and 'more' and \\back"}],
    [{"role": "user", "content": ""}],
]


def contexts_of(dialogues, *variants):
    return [{"messages": dialogue, **variant} for dialogue in dialogues for variant in variants]


def chats():
    plain, generate = {"add_generation_prompt": False}, {"add_generation_prompt": True}
    tools = {"tools": [WEATHER, CLOCK], "add_generation_prompt": True}
    two_calls = {"role": "assistant", "content": "", "tool_calls": 2 * call()["tool_calls"]}
    yield "llama3-tools", {"chat_template.jinja": read_template("llama3-tools.jinja"), "config": "not this one"}, {}, contexts_of(
        DIALOGUES[:7] + DIALOGUES[9:] + [[USER, two_calls]], plain, tools, {**tools, "tools_in_user_message": False},
        {**generate, "date_string": "1 Jan 2030", "documents": [{"title": "T", "text": "x"}]})
    yield "qwen3", {"config": read_template("qwen3.jinja")}, {}, contexts_of(
        DIALOGUES, plain, generate, tools, {**generate, "enable_thinking": False}, {**tools, "enable_thinking": True})
    yield "mistral-tools", {"config": read_template("mistral-tools.jinja")}, {"eos_token": {
        "__type": "AddedToken", "content": "</s>", "lstrip": False, "rstrip": False, "single_word": False, "normalized": False}}, (
            contexts_of(DIALOGUES[:6] + DIALOGUES[8:] + [[USER, USER], [ANSWER]], plain, tools))
    yield "named", {"config": [{"name": "default", "template": read_template("named-default.jinja")},
                               {"name": "tool_use", "template": read_template("named-tools.jinja")}]}, {}, contexts_of(
        [DIALOGUES[0], DIALOGUES[4]], plain, generate, tools, {"tools": []})
    yield "files", {"chat_template.jinja": read_template("named-default.jinja"),
                    "additional_chat_templates/tool_use.jinja": read_template("named-tools.jinja")}, {}, contexts_of(
        [DIALOGUES[0]], plain, tools)
    values = {"none": None, "yes": True, "no": False, "numbers": [0, -7, 3.0, 0.1, 1e16, 1.5e-7, 123456789.125],
              "words": ["pear", "Apple", "fig", "apple"], "empty": [], "text": "  Ärger's \"quoted\"\tpath\\n ", "deep": {"b": {
                  "items": [1, {"keys": None}], "values": "v"}, "a": [True, "it's", 'say "hi"'], "é": "ü"},
              "number": 42, "lines": "one\n\n  two\nthree\n", "tools": [WEATHER], "people": [
                  {"name": "Ann", "age": 31, "tags": ["x"]}, {"name": "Bob", "age": 7, "tags": []}, {"name": "Cy", "age": 31}]}
    yield "idioms", {"config": read_template("idioms.jinja")}, {"pad_token": "<|end|>", "image_token": "<s>"}, [
        {"messages": [SYSTEM, USER, ANSWER, THINKING], **values}, {"messages": [{"role": "user", "content": "x", "name": None}], **values, "text": "", "number": 0}]
    yield "line-ends", {"chat_template.jinja": read_template("idioms.jinja").replace("\n", "\r\n")}, {}, [
        {"messages": [USER, ANSWER], **values}]


def main():
    arguments = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    arguments.add_argument("out")
    options = arguments.parse_args()
    transformers.logging.set_verbosity_error()
    for name, make in TOKENIZERS.items():
        write_tokenizer(os.path.join(options.out, "tokenizers", name), name, make)
    for name, templates, config, contexts in chats():
        write_chat(os.path.join(options.out, "chats", name), name, templates, config, contexts)


if __name__ == "__main__":
    main()
