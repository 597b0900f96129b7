"""Manifests: an artifact is complete or absent, and a change of one byte is named."""

from __future__ import annotations

import hashlib
import json
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tunegate.contracts.artifact import produce
from tunegate.contracts.errors import ArtifactError, OutputExistsError
from tunegate.contracts.manifest import FileEntry, Manifest, content_digest, input_digest, read_manifest, verify

FILES = {"a.txt": b"alpha", "deep/b.bin": bytes(range(256)), "empty": b""}


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def build(folder: Path) -> None:
    for name, data in FILES.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)


def make(output: Path, **settings: object) -> Manifest:
    return produce(output, kind="merged", parents={"base": "0" * 64}, settings=settings, build=build)


def test_a_finished_artifact_verifies_and_says_what_it_came_from(tmp_path: Path) -> None:
    made = make(tmp_path / "out", rank=4)
    read = verify(tmp_path / "out", kind="merged")
    assert read == made
    assert [entry.path for entry in read.files] == ["a.txt", "deep/b.bin", "empty"]
    assert read.parents == {"base": "0" * 64}
    assert read.settings == {"rank": 4}
    assert "torch" in read.tools


def test_the_digest_does_not_depend_on_order_time_or_place(tmp_path: Path) -> None:
    entries = [FileEntry(name, len(data), "ab" * 32) for name, data in FILES.items()]
    shuffled = entries.copy()
    random.Random(3).shuffle(shuffled)
    assert content_digest("merged", entries) == content_digest("merged", shuffled)
    assert content_digest("merged", entries) != content_digest("quantized", entries)
    make(tmp_path / "one")
    make(tmp_path / "elsewhere" / "two")
    assert verify(tmp_path / "one").content_digest == verify(tmp_path / "elsewhere" / "two").content_digest


@pytest.mark.parametrize("name", sorted(FILES))
def test_one_changed_byte_is_named(name: str, tmp_path: Path) -> None:
    make(tmp_path / "out")
    data = bytearray((tmp_path / "out" / name).read_bytes() or b"x")
    data[0] ^= 1
    (tmp_path / "out" / name).write_bytes(bytes(data))
    with pytest.raises(ArtifactError) as caught:
        verify(tmp_path / "out")
    assert caught.value.items == (f"{name}: changed",)


def test_missing_and_extra_files_are_named_each(tmp_path: Path) -> None:
    make(tmp_path / "out")
    (tmp_path / "out" / "a.txt").unlink()
    (tmp_path / "out" / "stray").write_text("x")
    with pytest.raises(ArtifactError) as caught:
        verify(tmp_path / "out")
    assert caught.value.items == ("a.txt: missing", "stray: extra")


def test_a_link_is_no_file_of_an_artifact(tmp_path: Path) -> None:
    make(tmp_path / "out")
    (tmp_path / "out" / "link").symlink_to("/etc/passwd")
    with pytest.raises(ArtifactError, match="plain file"):
        verify(tmp_path / "out")


@pytest.mark.parametrize(
    "edit",
    [
        lambda d: d["files"].pop(),
        lambda d: d["files"].__setitem__(0, {**d["files"][0], "path": "../escape"}),
        lambda d: d.__setitem__("kind", "verdict"),
        lambda d: d["settings"].__setitem__("rank", 8),
        lambda d: d.__setitem__("schema_version", 99),
        lambda d: d.pop("files"),
    ],
    ids=["file dropped", "path escapes", "kind", "settings", "schema", "malformed"],
)
def test_an_edited_manifest_is_refused(edit: object, tmp_path: Path) -> None:
    make(tmp_path / "out", rank=4)
    path = tmp_path / "out" / "manifest.json"
    document = json.loads(path.read_text("utf-8"))
    edit(document)  # type: ignore[operator]
    path.write_text(json.dumps(document), "utf-8")
    with pytest.raises(ArtifactError):
        verify(tmp_path / "out")


def _edited(path: Path, **changes: object) -> None:
    document = json.loads(path.read_text("utf-8"))
    path.write_text(json.dumps(document | changes), "utf-8")


def test_no_file_is_added_or_excused_by_calling_it_volatile(tmp_path: Path) -> None:
    """A file that is named volatile may differ; that there is one may not."""
    make(tmp_path / "out")
    manifest = tmp_path / "out" / "manifest.json"
    (tmp_path / "out" / "stray").write_bytes(b"")
    files = [
        *json.loads(manifest.read_text("utf-8"))["files"],
        {"path": "stray", "size_bytes": 0, "sha256": sha256(b"")},
    ]
    kept = manifest.read_bytes()
    for volatile in (["stray"], ["a.txt", "stray"]):
        _edited(manifest, files=files, volatile=volatile)
        with pytest.raises(ArtifactError, match="was edited"):
            verify(tmp_path / "out")
        manifest.write_bytes(kept)


def test_volatile_bytes_do_not_change_the_digest_and_their_names_do(tmp_path: Path) -> None:
    def timed(name: str, seconds: str, volatile: tuple[str, ...]) -> str:
        def timed_build(folder: Path) -> None:
            build(folder)
            (folder / "timings.json").write_text(seconds)

        out = tmp_path / name
        return produce(out, kind="merged", parents={}, settings={}, build=timed_build, volatile=volatile).content_digest

    one, two = (timed(name, name, ("timings.json",)) for name in ("1.0", "2.0"))
    assert one == two
    plain = [FileEntry(name, len(data), sha256(data)) for name, data in FILES.items()]
    assert content_digest("merged", plain) == make(tmp_path / "without").content_digest
    assert one != content_digest("merged", plain)


def test_the_wrong_kind_is_refused(tmp_path: Path) -> None:
    make(tmp_path / "out")
    with pytest.raises(ArtifactError, match="wrong kind"):
        verify(tmp_path / "out", kind="adapter")


def test_the_same_work_is_kept_and_other_work_refused(tmp_path: Path) -> None:
    make(tmp_path / "out", rank=4)
    stamp = (tmp_path / "out" / "a.txt").stat().st_mtime_ns
    make(tmp_path / "out", rank=4)
    assert (tmp_path / "out" / "a.txt").stat().st_mtime_ns == stamp
    with pytest.raises(OutputExistsError) as caught:
        make(tmp_path / "out", rank=8)
    assert caught.value.items == ("settings.rank differs",)
    assert verify(tmp_path / "out").settings == {"rank": 4}


def test_a_foreign_folder_is_never_overwritten(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.tex").write_text("years of work")
    with pytest.raises(OutputExistsError, match="no tunegate artifact"):
        make(tmp_path / "out")
    assert (tmp_path / "out" / "thesis.tex").read_text() == "years of work"


def test_a_failed_build_leaves_nothing(tmp_path: Path) -> None:
    def fail(folder: Path) -> None:
        build(folder)
        raise RuntimeError("no space")

    with pytest.raises(RuntimeError, match="no space"):
        produce(tmp_path / "out", kind="merged", parents={}, settings={}, build=fail)
    assert list(tmp_path.iterdir()) == []


def test_a_killed_build_leaves_no_artifact_and_the_next_attempt_succeeds(tmp_path: Path) -> None:
    script = (
        "import pathlib, sys, time\n"
        "from tunegate.contracts.artifact import produce\n"
        "def build(folder):\n"
        "    for i in range(400):\n"
        "        (folder / f'{i}').write_bytes(bytes(1000)); print(i, flush=True); time.sleep(0.005)\n"
        "produce(pathlib.Path(sys.argv[1]), kind='merged', parents={}, settings={}, build=build)\n"
    )
    output = tmp_path / "out"
    for delay in (0.0, 0.05, 0.2):
        process = subprocess.Popen([sys.executable, "-c", script, str(output)], stdout=subprocess.PIPE)
        assert process.stdout is not None
        process.stdout.readline()
        time.sleep(delay)
        process.send_signal(signal.SIGKILL)
        process.wait()
        assert not output.exists()
        with pytest.raises(ArtifactError, match="not a complete artifact"):
            read_manifest(output)
    produce(output, kind="merged", parents={}, settings={}, build=build)
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    verify(output)


def test_a_plain_folder_has_the_digest_of_its_bytes(tmp_path: Path) -> None:
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        build(tmp_path / name)
    assert input_digest(tmp_path / "one") == input_digest(tmp_path / "two")
    (tmp_path / "two" / "a.txt").write_bytes(b"beta")
    assert input_digest(tmp_path / "one") != input_digest(tmp_path / "two")


MODEL = {"config.json": b"{}", "model.safetensors": b"weights", "onnx/config.json": b"[]", "merges.txt": b"a b"}


def plain(folder: Path) -> Path:
    for name, data in MODEL.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)
    return folder


def snapshot(repository: Path) -> Path:
    """The folder that a hub's client makes: links into a folder of blobs that are named by their digests."""
    folder = repository / "snapshots" / "0a1b2c"
    (repository / "blobs").mkdir(parents=True)
    for number, (name, data) in enumerate(MODEL.items()):
        (repository / "blobs" / f"blob{number}").write_bytes(data)
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        up = "../" * (2 + name.count("/"))
        (folder / name).symlink_to(f"{up}blobs/blob{number}")
    return folder


def test_a_hub_snapshot_of_links_has_the_digest_of_the_files_themselves(tmp_path: Path) -> None:
    links = snapshot(tmp_path / "models--org--name")
    assert (links / "onnx/config.json").is_symlink()
    assert input_digest(links) == input_digest(plain(tmp_path / "plain"))
    (links / "model.safetensors").resolve().write_bytes(b"others!")
    assert input_digest(links) != input_digest(tmp_path / "plain")


def test_what_another_tool_puts_beside_a_model_does_not_make_it_another_model(tmp_path: Path) -> None:
    before = input_digest(plain(tmp_path))
    for name in (
        "README.md",
        ".gitattributes",
        ".cache/huggingface/download/config.json",
        "LICENSE",
        "onnx/model.onnx",
    ):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("x")
    assert input_digest(tmp_path) == before
    (tmp_path / "chat_template.jinja").write_text("x")
    assert input_digest(tmp_path) != before


@pytest.mark.parametrize(
    ("target", "says"), [("../blobs/gone", "leads nowhere"), ("onnx", "a link to a folder")], ids=["nowhere", "folder"]
)
def test_a_link_that_leads_to_no_file_is_named(target: str, says: str, tmp_path: Path) -> None:
    (plain(tmp_path) / "tokenizer.json").symlink_to(target)
    with pytest.raises(ArtifactError) as caught:
        input_digest(tmp_path)
    assert caught.value.items[0].startswith("tokenizer.json: ")
    assert says in caught.value.items[0]


def test_a_folder_without_a_model_has_no_digest(tmp_path: Path) -> None:
    (tmp_path / "README.md").write_text("x")
    with pytest.raises(ArtifactError, match="no file of a model"):
        input_digest(tmp_path)


def test_an_artifact_says_in_which_image_it_was_made_and_is_the_same_in_any(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("TUNEGATE_IMAGE", raising=False)
    make(tmp_path / "plain")
    monkeypatch.setenv("TUNEGATE_IMAGE", "registry.example.com/tunegate/train:0.1.0")
    make(tmp_path / "contained")
    one, other = read_manifest(tmp_path / "plain"), verify(tmp_path / "contained")
    assert (one.image, other.image) == ("", "registry.example.com/tunegate/train:0.1.0")
    assert one.content_digest == other.content_digest
    assert one.work_digest == other.work_digest
