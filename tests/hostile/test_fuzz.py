"""Requests, image bytes, markers and weights made at random are refused in words, or taken; there is no third way."""

from __future__ import annotations

import io
import json

import pytest
from datasets import Dataset, Features, Image
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from PIL import Image as Pil

from ec_hf.data.images import unreadable
from ec_hf.data.requests import ForgetRequest
from ec_hf.files import ModelFolder
from ec_hf.training.checkpoints import MARKER, damage

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)
KEYS = st.sampled_from(["classes", "rows", "ids", "where", "class", ""])
FILTERS = st.dictionaries(st.sampled_from(["column", "in", "equals", "between", "x"]), JSON, max_size=3)
DOCUMENTS = st.dictionaries(KEYS, JSON | st.lists(FILTERS, max_size=2), max_size=3)
QUICK = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@QUICK
@given(DOCUMENTS | JSON)
@example({"classes": [True]})
@example({"rows": [2**80]})
@example({"where": [{"column": "a", "between": [float("nan"), 1]}]})
@example({"ids": {"": [""]}})
@example({"classes": ["\ud800"]})
def test_any_document_is_a_request_or_refused_in_words(tmp_path, document):
    try:
        request = ForgetRequest.from_dict(document)
    except (TypeError, ValueError) as error:
        assert str(error)
        return
    again = ForgetRequest.from_dict(json.loads(json.dumps(request.to_dict())))
    assert again == request and request.summary().startswith("Forget ")


@QUICK
@given(st.binary(max_size=60) | st.text(max_size=60).map(str.encode))
@example(b"")
@example(b"\xef\xbb\xbf{}")
@example(b'{"rows": [1], "rows": [1]}')
@example(b'{"rows": [1e999]}')
@example(b"[" * 5000)
def test_any_file_is_a_request_or_refused_by_its_name(tmp_path, content):
    path = tmp_path / "request.json"
    path.write_bytes(content)
    try:
        ForgetRequest.load(path)
    except ValueError as error:
        assert "request.json is no forget request" in str(error)


@QUICK
@given(st.lists(st.text(max_size=3) | st.integers(), min_size=1, max_size=4), st.text(min_size=1, max_size=8))
@example(["\ud800"], "a")
def test_a_save_that_fails_leaves_no_file(tmp_path, classes, _):
    path = tmp_path / "request.json"
    path.unlink(missing_ok=True)
    request = ForgetRequest(classes=classes)
    try:
        request.save(path)
    except UnicodeEncodeError:
        assert not list(tmp_path.iterdir())
        return
    assert ForgetRequest.load(path) == request
    assert [each.name for each in tmp_path.iterdir()] == ["request.json"]


def _images():
    for kind in ("PNG", "JPEG", "GIF", "BMP", "TIFF", "WEBP"):
        buffer = io.BytesIO()
        Pil.new("RGB", (9, 7), (200, 30, 90)).save(buffer, kind)
        yield buffer.getvalue()


IMAGES = list(_images())


@pytest.mark.filterwarnings("ignore::UserWarning:PIL")
@QUICK
@given(st.sampled_from(IMAGES), st.integers(0, 400), st.binary(max_size=4), st.booleans())
def test_any_image_bytes_decode_or_are_told_by_their_row(content, place, noise, cut):
    place %= len(content)
    content = content[:place] + noise + (b"" if cut else content[place + len(noise) :])
    data = Dataset.from_dict({"image": [{"bytes": IMAGES[0]}, {"bytes": content}]}, Features({"image": Image()}))
    told = unreadable(data)
    assert set(told) <= {1}
    assert all(words and " object at 0x" not in words for words in told.values())
    if not told:
        data[1]["image"].load()


@QUICK
@given(st.binary(max_size=40) | JSON.map(lambda value: json.dumps(value).encode()))
@example(b'{"files": [["a"]]}')
@example(b'{"files": 3}')
@example(b'{"files": {"a": "b"}}')
def test_any_marker_is_read_as_whole_or_damaged(tmp_path, content):
    (tmp_path / MARKER).write_bytes(content)
    assert damage(tmp_path) is None or str(damage(tmp_path))


@QUICK
@given(st.binary(max_size=80), st.binary(max_size=80))
@example(b"{}", (2).to_bytes(8, "little") + b"{}")
@example(b"{}", (8).to_bytes(8, "little") + b'{"a": 1}')
@example(b"{}", (2**63).to_bytes(8, "little"))
def test_any_bytes_are_a_whole_model_or_damaged(tmp_path, config, weights):
    (tmp_path / "config.json").write_bytes(config)
    (tmp_path / "model.safetensors").write_bytes(weights)
    damage = ModelFolder(tmp_path).damage()
    assert damage is None or damage
