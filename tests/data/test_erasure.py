"""What a request makes of a dataset."""

from __future__ import annotations

from datasets import ClassLabel, Dataset, Features, Value

from ec_hf import ForgetRequest
from ec_hf.data.erasure import ErasureData
from ec_hf.data.sources import train_and_test

FEATURES = Features({"row": Value("int64"), "label": ClassLabel(names=["ant", "bee", "cat"])})


def test_where_there_is_no_test_split_every_seed_and_an_audit_have_the_same_test_images():
    data = {"train": Dataset.from_dict({"row": range(90), "label": [k % 3 for k in range(90)]}, features=FEATURES)}
    request = ForgetRequest(classes=["bee"])
    tested = {tuple(ErasureData.of(data, request, seed=seed).test["row"]) for seed in (0, 1, 42)}
    assert tested == {tuple(train_and_test(data)[1]["row"])}
