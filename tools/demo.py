"""demo.py HADAL MODEL_DIR [TOKENS] - hides a random number at a random place of a long document, asks for it over the OpenAI
interface, and compares. Ends with 1 when the answer is wrong."""
import sys
import time

import needle_document
from server import Server


def say(text=""):
    print(text, flush=True)


def ask(server, prompt):
    """(answer, seconds to the first token, seconds between the others, usage)"""
    start = time.monotonic()
    arrivals, answer, usage = [], "", None
    body = {"model": server.model(), "prompt": prompt, "max_tokens": 6, "temperature": 0,
            "stream_options": {"include_usage": True}}
    for event in server.stream("/v1/completions", body):
        if event.get("usage"):
            usage = event["usage"]
        for choice in event["choices"]:
            if choice["text"]:
                arrivals.append(time.monotonic())
                answer += choice["text"]
    gaps = [later - earlier for earlier, later in zip(arrivals, arrivals[1:])]
    return answer.strip(), arrivals[0] - start, sum(gaps) / len(gaps), usage


def main():
    binary, model = sys.argv[1:3]
    token_count = int(sys.argv[3]) if len(sys.argv) > 3 else 32000
    say(f"$ {binary} serve {model}")
    with Server(binary, model, log="build/demo.log") as server:
        text, [needle] = needle_document.draw(model, token_count)
        say(f"A document of {token_count:,} tokens, {len(text):,} characters. At token {needle['position']:,} it says:")
        say(f"   {needle['prompt']} {needle['number']}.")
        say(f"Asked at its end:\n   {needle['prompt']} ...")
        answer, first, gap, usage = ask(server, text + needle["prompt"])
        say(f"Answered:\n    {answer}")
        say()
        prompt_tokens = usage["prompt_tokens"]
        say(f"prompt                {prompt_tokens:,} tokens")
        say(f"time to first token   {first:.2f} s ({prompt_tokens / first:,.0f} tokens/s)")
        say(f"then                  {1 / gap:.1f} tokens/s")
        say(f"peak memory           {server.memory('VmHWM') / 2**20:,.0f} MiB")
        say()
    if answer != needle["number"]:
        say(f"WRONG: the document says {needle['number']}, the answer {answer!r}. The server's log is build/demo.log.")
        return 1
    say("Right. To serve a model of your own, download one from Hugging Face (Llama, Mistral, Qwen2, Qwen3, Qwen3-MoE or Mixtral, with its")
    say("safetensors and tokenizer.json) into a directory, and")
    say(f"    {binary} serve DIRECTORY")
    say("    curl http://127.0.0.1:8000/v1/chat/completions -H 'Content-Type: application/json' \\")
    say("         -d '{\"model\": \"DIRECTORY\", \"messages\": [{\"role\": \"user\", \"content\": \"Hello\"}]}'")
    say(f"'{binary} help serve' lists what can be set.")
    return 0


if __name__ == "__main__":
    sys.exit(main())
