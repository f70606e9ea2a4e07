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
    (tmp_path / "figures").mkdir()
    with pytest.raises(OSError):
        folder.write("figures", "a folder has this name")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["audit.json", "figures"]


@pytest.mark.skipif(os.name == "nt", reason="Windows has no such permissions")
def test_a_new_file_has_the_permissions_of_any_new_file_and_a_replaced_file_keeps_its_own(tmp_path):
    def permissions(name):
        return stat.S_IMODE((tmp_path / name).stat().st_mode)

    umask = os.umask(0o027)
    try:
        write_text(tmp_path / "new", "x")
    finally:
        os.umask(umask)
    assert permissions("new") == 0o640
    for mode in (0o600, 0o664):
        (tmp_path / "new").chmod(mode)
        write_text(tmp_path / "new", "y")
        assert permissions("new") == mode


def test_a_link_is_replaced_and_the_file_that_it_points_to_stays(tmp_path):
    (tmp_path / "target").write_text("cached")
    (tmp_path / "README.md").symlink_to("target")
    write_text(tmp_path / "README.md", "mine")
    assert (tmp_path / "target").read_text() == "cached"
    assert (tmp_path / "README.md").read_text() == "mine"


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
