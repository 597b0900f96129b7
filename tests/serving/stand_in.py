"""Stands in for vLLM where only the process matters: takes its options, listens, and answers what readiness asks for.

It is run in place of the serving environment's Python. What it does is told by the variable ``STAND_IN``, a JSON
object: ``delay`` (seconds until it listens), ``code`` and ``says`` (it prints and ends instead), ``names`` (served in
place of the one asked for), ``deaf`` (ignores SIGTERM, as does the worker that it starts), ``dumb``
(fails at every request), ``answer_seconds`` (how long each answer takes
but the first ``slow_after``), ``note`` (a file that gets its environment),
``only`` (a part of the command line without which nothing of this holds).
"""

import argparse
import json
import os
import signal
import subprocess
import sys
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

TOLD = json.loads(os.environ.get("STAND_IN", "{}"))
if not any(TOLD.get("only", "") in word for word in sys.argv):
    TOLD = {}
ANSWER = {
    "text": "a",
    "token_ids": [1],
    "prompt_token_ids": [0],
    "prompt_logprobs": None,
    "logprobs": {
        "token_logprobs": [-1.0],
        "top_logprobs": [{"token_id:1": -1.0}],
        "content": [{"logprob": -1.0, "top_logprobs": []}],
    },
    "message": {"role": "assistant", "content": "a"},
    "finish_reason": "length",
}
WORKER = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); time.sleep(600)"


def options() -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    parser.add_argument("-m", dest="module", choices=["vllm.entrypoints.openai.api_server"], required=True)
    for name in ("model", "host", "dtype", "load-format", "generation-config"):
        parser.add_argument(f"--{name}", required=True)
    parser.add_argument("--served-model-name", nargs="+", required=True)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--kv-cache-memory-bytes", type=int)
    for name in ("enforce-eager", "disable-uvicorn-access-log", "disable-fastapi-docs"):
        parser.add_argument(f"--{name}", action="store_true")
    parser.add_argument("--enable-lora", action="store_true")
    parser.add_argument("--max-loras", type=int)
    parser.add_argument("--max-lora-rank", type=int)
    parser.add_argument("--lora-modules", nargs="+", type=json.loads, default=[])
    return parser.parse_args()


def main() -> None:
    given = options()
    if "note" in TOLD:
        Path(TOLD["note"]).write_text(json.dumps(dict(os.environ)), "utf-8")
    if "code" in TOLD:
        print(TOLD["says"], flush=True)
        sys.exit(TOLD["code"])
    if TOLD.get("deaf"):
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        subprocess.Popen([sys.executable, "-c", WORKER])
    print("loading", flush=True)
    time.sleep(TOLD.get("delay", 0))
    adapters = [module["name"] for module in given.lora_modules]
    cards = [
        {"id": name, "root": given.model, "parent": None, "max_model_len": 8}
        for name in TOLD.get("names", [*given.served_model_name, *adapters])
    ]
    answers = {"/health": b"", "/v1/models": json.dumps({"data": cards}).encode()}

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200 if self.path in answers else 404)
            self.end_headers()
            self.wfile.write(answers.get(self.path, b""))

        def do_POST(self) -> None:
            asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))["model"]
            known = asked in adapters or asked in given.served_model_name
            self.server.asked = getattr(self.server, "asked", 0) + 1
            if self.server.asked > TOLD.get("slow_after", 0):
                time.sleep(TOLD.get("answer_seconds", 0))
            if TOLD.get("dumb"):
                print("(Worker pid=7) AttributeError: no such kernel", flush=True)
            self.send_response(500 if TOLD.get("dumb") else 200 if known else 404)
            self.end_headers()
            model = asked if asked in adapters else given.served_model_name[0]
            self.wfile.write(json.dumps({"model": model, "prompt_token_ids": [0], "choices": [ANSWER]}).encode())

    ThreadingHTTPServer((given.host, given.port), Handler).serve_forever()


if __name__ == "__main__":
    main()
