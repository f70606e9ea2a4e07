from ec_hf.publishing.licenses import LICENSES, base_license


def test_the_licence_of_a_folder_is_that_of_its_card(tmp_path):
    (tmp_path / "README.md").write_text("---\nlicense: other\nlicense_name: ours\nlicense_link: LICENSE\n---\n# x\n")
    assert base_license(tmp_path) == {"license": "other", "license_name": "ours", "license_link": "LICENSE"}


def test_there_is_none_without_a_readable_card(tmp_path):
    assert base_license(None) == base_license(tmp_path) == base_license("someone/never-heard-of") == {}
    (tmp_path / "README.md").write_text("---\nlicense: [\n---\n")
    assert base_license(tmp_path) == {}
    (tmp_path / "README.md").write_text("# a card without metadata\n")
    assert base_license(tmp_path) == {}


def test_the_licences_are_ids():
    assert {"apache-2.0", "mit", "cc-by-nc-4.0", "other"} <= LICENSES
    assert all(name == name.lower() and " " not in name for name in LICENSES)
