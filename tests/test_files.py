"""Reading and writing of a model folder."""

from __future__ import annotations

import os
import stat

import pytest

from ec_hf.files import ModelFolder, write_text


def test_a_file_that_is_not_there_reads_as_nothing(tmp_path):
    assert ModelFolder(tmp_path).read("ec_config.json") == {}


@pytest.mark.parametrize("text", ["", "[1, 2]", "{"])
def test_a_file_that_holds_no_object_is_named(tmp_path, text):
    (tmp_path / "audit.json").write_text(text)
    with pytest.raises(ValueError, match=r"audit\.json"):
        ModelFolder(tmp_path).read("audit.json")


def test_what_was_written_reads_back_and_makes_its_folder(tmp_path):
    folder = ModelFolder(tmp_path / "new" / "folder")
    folder.write("ec_config.json", {"a": ["ü", 1.5, None]})
    assert folder.read("ec_config.json") == {"a": ["ü", 1.5, None]}
    folder.write("README.md", "# Ü\n")
    assert (folder.path / "README.md").read_bytes() == "# Ü\n".encode()


def test_a_failed_write_leaves_what_was_there_and_nothing_beside_it(tmp_path):
    folder = ModelFolder(tmp_path)
    folder.write("audit.json", {"value": 1})
    with pytest.raises(ValueError, match="JSON"):
        folder.write("audit.json", {"value": float("nan")})
    with pytest.raises(UnicodeEncodeError):
        folder.write("audit.json", "\udc80")
    assert folder.read("audit.json") == {"value": 1}
    assert [path.name for path in tmp_path.iterdir()] == ["audit.json"]


def test_a_written_file_has_the_rights_that_open_would_give_it_or_that_it_had(tmp_path):
    write_text(tmp_path / "new", "x")
    (tmp_path / "plain").touch()
    assert stat.S_IMODE(os.stat(tmp_path / "new").st_mode) == stat.S_IMODE(os.stat(tmp_path / "plain").st_mode)
    (tmp_path / "new").chmod(0o600)
    write_text(tmp_path / "new", "y")
    assert stat.S_IMODE(os.stat(tmp_path / "new").st_mode) == 0o600


def test_a_folder_without_a_model_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"holds no config\.json"):
        ModelFolder(tmp_path).require_model()
    (tmp_path / "config.json").write_text("{}")
    ModelFolder(tmp_path).require_model()
    with pytest.raises(FileNotFoundError, match=r"model\.safetensors"):
        ModelFolder(tmp_path).weights()


def test_weights_in_several_files_come_with_their_index(tmp_path):
    folder = ModelFolder(tmp_path)
    folder.write("model.safetensors.index.json", {"weight_map": {"a": "model-2", "b": "model-1", "c": "model-2"}})
    assert folder.weights() == ["model.safetensors.index.json", "model-1", "model-2"]
