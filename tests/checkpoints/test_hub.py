"""The hub with its failures, driven by the real client against a hub on this machine."""

import errno
import json
import os
import shutil
from pathlib import Path

import pytest
from huggingface_hub import constants

from hub_stub import Refusal, StubHub, run_with_hub, stub_hub
from hybridize import convert, inspect, load_model
from hybridize.__main__ import main
from hybridize.checkpoints.hub import resolve
from hybridize.errors import HybridizeError, InputError
from tiny import write_stock, write_tokenizer

NAME = "some/model"
COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("repository")
    write_stock(root, "llama")
    write_tokenizer(root)
    return root


@pytest.fixture(scope="module")
def newer(directory: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same model with other weights."""
    root = tmp_path_factory.mktemp("newer")
    shutil.copytree(directory, root, dirs_exist_ok=True)
    write_stock(root, "llama", seed=7)
    return root


def weights(path: Path) -> bytes:
    return (path / "model.safetensors").read_bytes()


def one_line(capsys: pytest.CaptureFixture[str]) -> str:
    """Return the only line that was printed, on stderr."""
    out, err = capsys.readouterr()
    assert out == ""
    (line,) = err.splitlines()
    assert "--debug" not in line
    return line


def expect(capsys, words: str, code: int, model: str = NAME) -> None:
    assert main(["verify", model]) == code
    line = one_line(capsys)
    assert line.startswith(f"error: {model}: ")
    assert words in line


REFUSALS = {
    "gated, not logged in": (Refusal(401, "GatedRepo"), 2, "it is gated; ask for access at"),
    "gated, without access": (Refusal(403, "GatedRepo"), 2, "set HF_TOKEN"),
    "missing": (Refusal(404, "RepoNotFound"), 2, "does not exist there, or it is private"),
    "private": (Refusal(401, "RepoNotFound"), 2, "log in with `hf auth login`"),
    "wrong token": (
        Refusal(401, "", "Invalid credentials in Authorization header"),
        2,
        "the hub does not accept the token",
    ),
    "forbidden": (Refusal(403, "", "no"), 2, "the hub forbids it"),
    "disabled": (
        Refusal(403, "", "Access to this resource is disabled."),
        2,
        "it is disabled; https://huggingface.co/some/model may say why",
    ),
    "too many requests": (Refusal(429), 1, "allows no more requests for now (429); wait"),
    "internal error": (Refusal(500), 1, "the hub fails at the moment (500); try again later"),
    "unavailable": (Refusal(503), 1, "the hub fails at the moment (503); try again later"),
    "strange": (Refusal(418), 1, "the hub answers with status 418"),
}
PARTS = {
    "everything": "",
    "the listing": "/api/",
    "the files": "/resolve/",
    "weights": ".safetensors",
}


@pytest.mark.parametrize("part", PARTS)
@pytest.mark.parametrize("what", REFUSALS)
def test_a_refused_download_says_what_to_do(hub, directory, capsys, what, part):
    refusal, code, words = REFUSALS[what]
    hub.add(NAME, directory)
    hub.refuse = lambda _method, path: refusal if PARTS[part] in path else None
    expect(capsys, words, code)


@pytest.mark.parametrize("what", ["gated, not logged in", "forbidden", "strange"])
def test_headers_that_are_refused_say_what_to_do(hub, directory, capsys, what):
    refusal, code, words = REFUSALS[what]
    hub.add(NAME, directory)
    hub.refuse = lambda _method, path: refusal if path.endswith(".safetensors") else None
    assert main(["inspect", NAME]) == code
    assert words in one_line(capsys)


def test_settings_of_huggingface_hub_are_left_to_it(directory, tmp_path):
    with stub_hub() as hub:
        hub.add(NAME, directory)
        cache = tmp_path / "elsewhere"
        done = run_with_hub(
            ["inspect", NAME], hub.address, tmp_path, HF_TOKEN="hf_abc", HF_HUB_CACHE=str(cache)
        )
        assert (done.returncode, done.stderr) == (0, "")
        assert set(hub.tokens) == {"Bearer hf_abc"}
        assert list(cache.glob("models--some--model/snapshots/*/config.json"))
        hub.refuse = lambda _method, _path: Refusal(401, "GatedRepo")
        done = run_with_hub(["inspect", "other/model"], hub.address, tmp_path)
        assert done.returncode == 2
        assert done.stdout == ""
        assert len(done.stderr.splitlines()) == 1
    done = run_with_hub(
        ["inspect", NAME], "http://127.0.0.1:9", tmp_path, HF_HUB_CACHE=str(cache),
        HF_HUB_OFFLINE="1",
    )  # fmt: skip
    # The cache has the configuration but no weights.
    assert done.returncode == 2
    assert len(done.stderr.splitlines()) == 1


def test_offline_without_the_model_says_what_to_do(hub, monkeypatch, capsys):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    expect(capsys, "HF_HUB_OFFLINE is set, and the model is not in the cache", 2)
    expect(capsys, "HF_HUB_OFFLINE is set, and the model", 2, f"{NAME}@{COMMIT}")
    assert hub.requests == []


def test_offline_with_the_model_everything_works(hub, directory, tmp_path, monkeypatch, capsys):
    hub.add(NAME, directory)
    resolve(NAME)
    hub.requests.clear()
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert weights(resolve(NAME)) == weights(directory)
    assert inspect(NAME).parameters == inspect(directory).parameters
    convert(NAME, tmp_path / "out", attention=1)
    assert hub.requests == []
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("listing", [True, False])
def test_offline_with_a_part_of_the_model(hub, directory, monkeypatch, capsys, listing):
    hub.add(NAME, directory)
    inspect(NAME)
    if not listing:  # as older versions of huggingface_hub left their caches
        shutil.rmtree(Path(constants.HF_HUB_CACHE) / "models--some--model" / "trees")
        monkeypatch.setattr("huggingface_hub._tree_cache._IN_MEMORY_TREE_CACHE", {})
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert main(["verify", NAME]) == 2
    line = one_line(capsys)
    assert f"error: {NAME}: " in line
    if listing:
        assert "HF_HUB_OFFLINE is set, and generation_config.json is not in the cache" in line
    else:
        assert "no model.safetensors" in line


@pytest.mark.parametrize("refusal", [Refusal(503), Refusal(404, "RepoNotFound")])
def test_a_hub_that_is_gone_is_replaced_by_the_cache_with_a_note(hub, directory, capsys, refusal):
    commit = hub.add(NAME, directory)
    resolve(NAME)
    hub.refuse = lambda _method, _path: refusal
    assert main(["verify", NAME]) == 0
    assert (
        f"note: {NAME}: the hub does not answer or does not give it; using commit "
        f"{commit[:12]} of the cache"
    ) in capsys.readouterr().err


def test_an_address_without_a_hub(directory, hub, monkeypatch, capsys):
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    expect(capsys, "check the connection and HF_ENDPOINT, or give a local copy", 2)
    monkeypatch.setattr(constants, "ENDPOINT", "htp://127.0.0.1:9")
    expect(capsys, "check HF_ENDPOINT and the settings of the proxy", 2)


def test_a_hub_that_does_not_answer_in_time(hub, directory, monkeypatch, capsys):
    from threading import Event

    waiting = Event()
    monkeypatch.setattr(constants, "HF_HUB_ETAG_TIMEOUT", 0.2)
    monkeypatch.setattr(constants, "HF_HUB_DOWNLOAD_TIMEOUT", 0.2)
    hub.add(NAME, directory)

    def wait(_method: str, path: str) -> None:
        if path.endswith(".safetensors"):
            waiting.wait(5)

    hub.refuse = wait
    monkeypatch.setattr("huggingface_hub.utils._http.time.sleep", lambda _: None)
    assert main(["inspect", NAME]) == 1
    waiting.set()
    assert "did not answer in time; run the same command again" in one_line(capsys)


def test_branches_tags_and_commits(hub, directory, newer):
    main_commit, old = hub.add(NAME, newer), hub.add(NAME, directory, revision="v1.0")
    hub.add(NAME, directory, revision="refs/pr/3")
    assert resolve(NAME).name == resolve(f"{NAME}@main").name == main_commit
    assert weights(resolve(NAME)) == weights(newer)
    assert resolve(f"{NAME}@v1.0").name == resolve(f"{NAME}@{old}").name == old
    assert weights(resolve(f"{NAME}@{old}")) == weights(directory)
    assert weights(resolve(f"{NAME}@refs/pr/3")) == weights(directory)
    before = inspect(f"{NAME}@v1.0")
    assert before.directory.name == old


def test_a_branch_that_moves_is_followed(hub, directory, newer, tmp_path):
    hub.add(NAME, directory)
    assert weights(resolve(NAME)) == weights(directory)
    moved = hub.add(NAME, newer)
    convert(NAME, tmp_path / "out", attention=1)
    record = json.loads((tmp_path / "out" / "hybridize.json").read_text())["steps"][0]
    assert record["source"] | {"sha256": 0} == {"name": NAME, "revision": moved, "sha256": 0}


@pytest.mark.parametrize("revision", ["v9", "refs/pr/4", COMMIT])
def test_a_missing_revision_says_what_to_do(hub, directory, capsys, revision):
    hub.add(NAME, directory)
    expect(
        capsys,
        f"it has no revision '{revision}'; name a branch, a tag or a full commit hash",
        2,
        f"{NAME}@{revision}",
    )


@pytest.mark.parametrize("revision", ["", "../../x", "a b", "/main", "a@b", "-x"])
def test_an_impossible_revision_is_refused(hub, capsys, revision):
    expect(capsys, "is no revision; name a branch, a tag", 2, f"{NAME}@{revision}")
    assert hub.requests == []


def test_a_directory_with_an_at_sign_is_a_directory(directory, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    shutil.copytree(directory, "some/model@v1")
    assert resolve("some/model@v1") == Path("some/model@v1")


def test_a_renamed_repository_is_followed_with_a_note(hub, directory, tmp_path, capsys):
    commit = hub.add("new/name", directory)
    hub.renamed[NAME] = "new/name"
    convert(NAME, tmp_path / "out", attention=1)
    assert capsys.readouterr().err.count(f"note: {NAME} is now new/name on the hub") == 1
    record = json.loads((tmp_path / "out" / "hybridize.json").read_text())["steps"][0]
    assert record["source"]["revision"] == commit
    assert inspect(NAME).parameters == inspect(directory).parameters


def test_a_broken_connection_is_resumed(hub, directory, monkeypatch):
    monkeypatch.setattr(constants, "DOWNLOAD_CHUNK_SIZE", 100)
    hub.add(NAME, directory)
    hub.break_after["model.safetensors"] = [1000, 500]
    assert weights(resolve(NAME)) == weights(directory)
    assert hub.served["model.safetensors"] == len(weights(directory))


def test_an_interrupted_download_is_never_taken_for_a_whole_one(hub, directory, capsys):
    hub.add(NAME, directory)
    hub.break_after["model.safetensors"] = [1000] + [0] * 20
    expect(capsys, "the connection broke; run the same command again", 1)
    snapshots = Path(constants.HF_HUB_CACHE) / "models--some--model" / "snapshots"
    assert not list(snapshots.glob("*/model.safetensors"))
    assert list(snapshots.glob("*/config.json"))
    hub.break_after.clear()
    hub.served.clear()
    load_model(NAME)
    assert weights(resolve(NAME)) == weights(directory)
    assert "tokenizer.json" not in hub.served  # it was complete


@pytest.mark.parametrize(
    ("number", "words"),
    [
        (errno.EACCES, "cannot be written (Permission denied); set HF_HUB_CACHE to another"),
        (errno.EROFS, "cannot be written (Read-only file system); set HF_HUB_CACHE"),
        (errno.ENOSPC, "the disk of the cache is full; set HF_HUB_CACHE to another directory"),
    ],
)
def test_a_cache_that_cannot_be_written(hub, directory, monkeypatch, capsys, number, words):
    def fail(*_: object, **__: object) -> None:
        raise OSError(number, os.strerror(number), "file")

    hub.add(NAME, directory)
    with monkeypatch.context() as patch:
        patch.setattr("huggingface_hub.file_download.http_get", fail)
        expect(capsys, words, 1)
    resolve(NAME)
    for path in ("http_get", "_create_symlink", "_download_to_tmp_and_move"):
        monkeypatch.setattr(f"huggingface_hub.file_download.{path}", fail)
    assert weights(resolve(NAME)) == weights(directory)  # nothing has to be written


def test_a_cache_below_a_file(hub, directory, tmp_path, monkeypatch, capsys):
    (tmp_path / "file").write_text("")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "file" / "cache"))
    hub.add(NAME, directory)
    expect(capsys, "set HF_HUB_CACHE to another directory", 1)


@pytest.mark.parametrize("name", ["nothing", "a/b/c", "./some/model", "../some/model", "so me/x"])
def test_paths_that_are_no_hub_ids(hub, capsys, name):
    expect(capsys, "no such directory", 2, name)
    assert hub.requests == []


def test_a_python_path_is_never_looked_up_on_the_hub(hub: StubHub):
    with pytest.raises(InputError, match=r"some/model: no such directory$"):
        resolve(Path(NAME))
    with pytest.raises(HybridizeError):
        resolve(NAME)
    assert hub.requests != []
