"""Uploads to the Hugging Face hub, against a hub on this machine, and what it says when they go wrong."""

from __future__ import annotations

import socket

import huggingface_hub
import pytest
from huggingface_hub import constants
from weights.servers import REPO, TOKEN, WritableHub, serving_writable, without_hub

from m2f_cli.errors import ConfigError, ExportError
from m2f_cli.weights.push import check_push, push_files

FILES = {"README.md": b"# cells\n", "config.json": b"{}", "model.safetensors": bytes(range(256)) * 40}


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    without_hub(tmp_path, monkeypatch)


@pytest.fixture
def hub(monkeypatch):
    with serving_writable(monkeypatch) as server:
        yield server


@pytest.fixture
def folder(tmp_path):
    path = tmp_path / "my folder"
    path.mkdir()
    for name, content in FILES.items():
        (path / name).write_bytes(content)
    return path


def test_files_arrive_as_they_are_and_others_stay_at_home(hub, folder):
    (folder / "passwords.txt").write_text("secret")
    assert push_files(folder, [*FILES], REPO) == f"{hub.url}/{REPO}"
    assert hub.files == FILES and hub.is_private is False
    assert [method for method, _ in hub.requests].count("PUT") == 1  # the weights, as a large file


def test_a_second_push_replaces_files_of_the_same_names(hub, folder):
    push_files(folder, [*FILES], REPO)
    hub.files = {"config.json": b"old", "more.txt": b"stays"}
    push_files(folder, [*FILES], REPO)
    assert hub.files == {**FILES, "more.txt": b"stays"}


def test_small_files_go_through_the_uploader_of_hugging_faces_own_storage(hub, folder, monkeypatch):
    pytest.importorskip("hf_xet")
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", False)
    hub.large = ()
    push_files(folder, [*FILES], REPO)
    assert hub.files == FILES


def test_a_private_repository(hub, folder):
    for _ in range(2):  # it is made, and it is there
        push_files(folder, [*FILES], REPO, private=True)
        assert hub.is_private and hub.files == FILES
    hub.is_private, hub.files = False, {}
    with pytest.raises(ExportError, match=f"not pushed: {REPO} exists and is public, and --private was asked for"):
        push_files(folder, [*FILES], REPO, private=True)
    assert hub.files == {}


@pytest.mark.parametrize(
    ("end", "status", "message"),
    [
        ("/api/repos/create", 401, "does not accept the access token"),
        ("/api/repos/create", 403, "does not let this access token write there"),
        ("/api/repos/create", 500, "answers with status 500"),
        ("/api/validate-yaml", 400, "answers with status 400 (Invalid metadata in README.md)"),
        ("/preupload/main", 404, "has no such repository, or hides it"),
        ("/preupload/main", 503, "answers with status 503"),
        ("/objects/batch", 403, "does not let this access token write there"),
        ("/commit/main", 409, "says that somebody else is changing the repository"),
        ("/commit/main", 504, "answers with status 504"),
    ],
)
def test_refusals_of_the_hub_are_one_sentence_with_the_line_to_push_again(hub, folder, end, status, message):
    hub.failures = {end: status}
    with pytest.raises(ExportError) as caught:
        push_files(folder, [*FILES], REPO)
    text = str(caught.value)
    assert f"{folder} is exported, but not pushed: {hub.url} " in text and message in text
    assert f"push it again: hf upload {REPO} '{folder}'" in text
    assert "\n" not in text and TOKEN not in text
    assert hub.files == {}


def test_another_token_is_refused_and_not_shown(hub, folder, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_other")
    with pytest.raises(ExportError, match="does not accept the access token") as caught:
        push_files(folder, [*FILES], REPO)
    assert "hf_other" not in str(caught.value)


def test_a_hub_that_is_not_there(hub, folder, monkeypatch):
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(ExportError, match=r"http://127\.0\.0\.1:9 gives no usable answer \(.*refused"):
        push_files(folder, [*FILES], REPO)


@pytest.mark.skipif(int(huggingface_hub.__version__.split(".")[0]) < 1, reason="older ones wait for ever")
def test_a_hub_that_says_nothing_is_given_up(folder, monkeypatch):
    monkeypatch.setattr("m2f_cli.weights.push.PATIENCE", 0.2)
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{silent.getsockname()[1]}")
        with pytest.raises(ExportError, match="gives no usable answer .*timed out"):
            push_files(folder, [*FILES], REPO)


@pytest.mark.parametrize("answer", [b"", b"[]", b"{}", b"<html>", b"null", b'{"url": 3}'])
def test_answers_that_are_none(hub, folder, monkeypatch, answer):
    monkeypatch.setattr(WritableHub, "create", lambda self, asked: self.send_any(answer))
    with pytest.raises(ExportError, match="is exported, but not pushed"):
        push_files(folder, [*FILES], REPO)


@pytest.mark.parametrize(
    ("repo", "message"),
    [
        ("cells", "--push takes OWNER/NAME, not 'cells'"),
        ("https://huggingface.co/a/b", "--push takes OWNER/NAME"),
        ("a/", "The hub can have no repository 'a/'"),
        ("a/b c", "The hub can have no repository 'a/b c'"),
        ("../b", "The hub can have no repository '../b'"),
    ],
)
def test_names_that_no_repository_has_are_refused(hub, repo, message):
    with pytest.raises(ConfigError) as caught:
        check_push(repo)
    assert message in str(caught.value)


def test_without_a_token_it_says_how_to_log_in(hub, monkeypatch):
    check_push(REPO)
    monkeypatch.delenv("HF_TOKEN")
    with pytest.raises(ConfigError, match="without an access token of .*hf auth login"):
        check_push(REPO)


@pytest.mark.parametrize("variable", ["M2F_OFFLINE", "HF_HUB_OFFLINE"])
def test_offline_nothing_is_pushed(hub, monkeypatch, variable):
    monkeypatch.setenv(variable, "1")
    with pytest.raises(ConfigError, match="the network is switched off"):
        check_push(REPO)
    assert hub.requests == []
