"""What the suites share: the client of the server under test, and a prompt whose continuation the needle model knows."""
import json
import os
import urllib.error
import urllib.request

from openai import OpenAI

URL = os.environ["HADAL_TEST_URL"]
client = OpenAI(base_url=URL + "/v1", api_key="none", max_retries=0, timeout=120)
MODEL = client.models.list().data[0].id

# The model goes on as an earlier occurrence of the last tokens did.
SENTENCE = "The quick brown fox jumps over the lazy dog near the old stone bridge at noon."
PROMPT = SENTENCE + " And again: The quick brown fox"
ANSWER = " jumps over the lazy dog"


def post(path, body, headers=None):
    """(status, headers, parsed body) of a request that need not be a proper one; body is an object or bytes."""
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    request = urllib.request.Request(URL + path, data, {"Content-Type": "application/json", **(headers or {})})
    try:
        with urllib.request.urlopen(request, timeout=120) as answer:
            return answer.status, answer.headers, json.loads(answer.read())
    except urllib.error.HTTPError as error:
        return error.code, error.headers, json.loads(error.read())


def get(path):
    try:
        with urllib.request.urlopen(URL + path, timeout=60) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()
