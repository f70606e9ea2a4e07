"""What a user gets for bad input: one line a case, each refused at once, with the words that mend it."""

from __future__ import annotations

import io
import json
from functools import cache

import numpy as np
import pytest
import torch
from datasets import ClassLabel, Dataset, DatasetDict, Features, Image
from helpers.models import NAMES, make_images, make_model, make_processor
from helpers.trainers import settings
from PIL import Image as Pil
from torch import nn
from transformers import ViTModel

from ec_hf import ECTrainer, ForgetRequest, split
from ec_hf.data.columns import find_image_column, find_label_column, label_ids
from ec_hf.data.images import require_readable
from ec_hf.data.manifests import manifest
from ec_hf.data.pairing import PairedBatchSampler, PairedDataset
from ec_hf.data.sources import load_images, train_and_test
from ec_hf.data.splitting import four_splits
from ec_hf.models.inputs import ImageCollator
from ec_hf.models.loading import load_model
from ec_hf.objectives import get_objective

ONE_EACH = {"forget_batch_size": 1, "retain_batch_size": 1}
REFUSALS = (ValueError, TypeError, OSError, ImportError, IndexError)


@cache
def images():
    return make_images(20)


@cache
def parts():
    return split(images(), ForgetRequest(classes=["bee"]))


def request(**named):
    return ForgetRequest(**named)


def from_file(folder, text):
    path = folder / "request.json"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return ForgetRequest.load(path)


def divided(data=None, **named):
    options = {name: named.pop(name) for name in ("label_column", "id_column") if name in named}
    return split(images() if data is None else data, ForgetRequest(**named), **options)


def config(**changed):
    return settings("unused", **changed)


def trainer(folder, model=None, forget=None, retain=None, evaluation=None, heads=None, **changed):
    return ECTrainer(
        make_model("ViT") if model is None else model,
        settings(folder, **changed),
        forget_dataset=parts()["forget"] if forget is None else forget,
        retain_dataset=parts()["retain"] if retain is None else retain,
        eval_dataset=evaluation,
        processing_class=make_processor(),
        heads=heads,
    )


def batch(*examples, **collator):
    return ImageCollator(**collator)([{"label": 0} | example for example in examples])


def pixels(fill=0.0, shape=(3, 4, 4)):
    return {"pixel_values": torch.full(shape, fill)}


def stored(*contents):
    column = [None if each is None else {"bytes": each, "path": None} for each in contents]
    features = Features({"image": Image(), "label": ClassLabel(names=NAMES)})
    return Dataset.from_dict({"image": column, "label": [0] * len(contents)}, features=features)


def png(mode="RGB", cut=None):
    buffer = io.BytesIO()
    Pil.new(mode, (16, 16), 90 if mode == "L" else (9, 90, 200)).save(buffer, "PNG")
    return buffer.getvalue()[:cut]


def folder_of(folder, **files):
    for name, content in files.items():
        place = folder / name.replace("__", ".")
        place.write_bytes(content if isinstance(content, bytes) else json.dumps(content).encode())
    return folder


def changed_model(change):
    model = make_model("ViT")
    change(model)
    return model


def saved(folder, change=lambda path: None):
    make_model("ViT").save_pretrained(folder / "model")
    change(folder / "model")
    return load_model(folder / "model")


def cut_weights(path):
    weights = path / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1000])


def table(**columns):
    return Dataset.from_dict(columns)


def labelled(label):
    return [{"pixel_values": torch.zeros(3, 32, 32), "label": label}]


def overwrite_weights(path):
    (path / "model.safetensors").write_bytes(b"x" * 99)


def fetched(*contents):
    return PairedDataset(stored(png()), stored(*contents))[len(contents)]


# fmt: off
# One line a case.
REQUESTS = [
    ("an empty request", lambda t: request(), "the request is empty"),
    ("classes that are one text", lambda t: request(classes="cat"), "classes must be a list"),
    ("classes that are one number", lambda t: request(classes=3), "classes must be a list"),
    ("classes that are a mapping", lambda t: request(classes={"cat": 1}), "classes must be a list"),
    ("a class that is a fraction", lambda t: request(classes=[1.5]), "classes takes int or str"),
    ("a class that is none", lambda t: request(classes=[None]), "classes takes int or str"),
    ("a class that is true", lambda t: request(classes=[True]), "classes takes int or str"),
    ("classes nested in a list", lambda t: request(classes=[["cat"]]), "classes takes int or str"),
    ("a row below 0", lambda t: request(rows=[-1]), "rows are counted from 0"),
    ("a row that is a text", lambda t: request(rows=["3"]), "rows takes int"),
    ("a row that is a fraction", lambda t: request(rows=[0.5]), "rows takes int"),
    ("a row that is NaN", lambda t: request(rows=[float("nan")]), "rows takes int"),
    ("rows that are a text", lambda t: request(rows="0"), "rows must be a list"),
    ("ids that are a list", lambda t: request(ids=["patient"]), "ids must map a column to its values"),
    ("ids of an empty column", lambda t: request(ids={"patient": []}), "at least one value"),
    ("ids of a column that is a number", lambda t: request(ids={3: [1]}), "must map a column name"),
    ("ids that are one text", lambda t: request(ids={"patient": "17"}), "must be a list"),
    ("ids that are fractions", lambda t: request(ids={"patient": [1.5]}), "takes int or str"),
    ("a filter that is a text", lambda t: request(where=["age > 3"]), "a where filter is an object"),
    ("a filter without a column", lambda t: request(where=[{"in": [1]}]), "has the key 'column'"),
    ("a filter of two kinds", lambda t: request(where=[{"column": "a", "in": [1], "equals": 1}]), "one of"),
    ("a filter of an unknown kind", lambda t: request(where=[{"column": "a", "like": "x"}]), "one of"),
    ("a filter of no value", lambda t: request(where=[{"column": "a", "in": []}]), "empty list"),
    ("a filter from high to low", lambda t: request(where=[{"column": "a", "between": [3, 1]}]), "low <= high"),
    ("a filter of 3 bounds", lambda t: request(where=[{"column": "a", "between": [1, 2, 3]}]), "needs [low, high]"),
    ("a filter of mixed bounds", lambda t: request(where=[{"column": "a", "between": [1, "z"]}]), "both numbers"),
    ("a filter with infinity", lambda t: request(where=[{"column": "a", "equals": float("inf")}]), "finite"),
    ("a filter that is one mapping", lambda t: request(where={"column": "a", "in": [1]}), "where must be a list"),
    ("a file that is no JSON", lambda t: from_file(t, "{classes: [cat]}"), "is no forget request"),
    ("a file that is empty", lambda t: from_file(t, ""), "is no forget request"),
    ("a file with a list", lambda t: from_file(t, '["cat"]'), "is an object with the keys"),
    ("a file with an unknown key", lambda t: from_file(t, '{"class": ["cat"]}'), "unknown keys"),
    ("a file with a key twice", lambda t: from_file(t, '{"rows": [1], "rows": [2]}'), "'rows' stands twice"),
    ("a filter with a key twice", lambda t: from_file(t, '{"where": [{"in": [1], "in": [2]}]}'), "stands twice"),
    ("a file of NaN", lambda t: from_file(t, '{"rows": [NaN]}'), "rows takes int"),
    ("a file nested too deep", lambda t: from_file(t, "[" * 100_000), "is no forget request"),
    ("a file in another encoding", lambda t: from_file(t, b"\xff\xfe{}"), "is no forget request"),
    ("a file that is not there", lambda t: ForgetRequest.load(t / "none.json"), "none.json"),
    ("a new hash by changing ids", lambda t: request(ids={"a": [1]}).ids.update(b=[2]), None),
    ("a file of another request", lambda t: [request(rows=[n]).save(t / "r") for n in (1, 2)], "already holds"),
]

SPLITS = [
    ("a class with a typing error", lambda t: divided(classes=["bea"]), "close matches: ['bee']"),
    ("a class that nothing is like", lambda t: divided(classes=["zebra"]), "unknown class 'zebra'"),
    ("a class id beyond the last", lambda t: divided(classes=[5]), "unknown class 5"),
    ("a class id below 0", lambda t: divided(classes=[-1]), "unknown class -1"),
    ("a row beyond the last", lambda t: divided(rows=[20]), "row 20 is outside the dataset of 20 rows"),
    ("a column that is not there", lambda t: divided(ids={"patient": [1]}), "no column 'patient'"),
    ("an id that is not there", lambda t: divided(ids={"label": [9]}), "no row in the dataset"),
    ("a filter on no column", lambda t: divided(where=[{"column": "age", "equals": 3}]), "no column 'age'"),
    ("a filter that matches nothing", lambda t: divided(where=[{"column": "label", "equals": 9}]), "no row to forget"),
    ("a filter of another type", lambda t: divided(where=[{"column": "label", "equals": "x"}]), "label"),
    ("all classes", lambda t: divided(classes=NAMES), "no row is left to retain"),
    ("a label column that is not there", lambda t: divided(classes=[0], label_column="y"), "no column 'y'"),
    ("an id column of images", lambda t: divided(rows=[0], id_column="image"), "ids must be integers or text"),
    ("a dataset of several splits", lambda t: divided(DatasetDict(train=images()), rows=[0]), "pass one split"),
    ("a streamed dataset", lambda t: divided(images().to_iterable_dataset(), rows=[0]), "loaded without streaming"),
    ("a list as a dataset", lambda t: divided([1, 2], rows=[0]), "expected a datasets.Dataset"),
    ("no label column at all", lambda t: find_label_column(table(a=[1])), "none was found"),
    ("two label columns", lambda t: find_label_column(table(label=[1], labels=[1])), "several columns"),
    ("no image column at all", lambda t: find_image_column(table(a=[1])), "none was found"),
    ("labels that are fractions", lambda t: label_ids(table(label=[0.5]), "label", {0: "a"}), "integers or text"),
    ("labels that are missing", lambda t: label_ids(table(label=[None, 1]), "label", {0: "a"}), "without a label"),
    ("labels beyond the model's", lambda t: label_ids(table(label=[7]), "label", {0: "LABEL_0"}), "beyond the model"),
    ("names that the model lacks", lambda t: label_ids(table(label=["x"]), "label", {0: "a"}), "do not fit"),
    ("a class in neither set", lambda t: four_splits(images(), images(), request(classes=["z"])), "unknown class"),
    ("a manifest of other parts", lambda t: manifest(images(), request(rows=[0]), parts()), "split anew"),
    ("nothing to hold out", lambda t: train_and_test({"train": table(label=[0])}), "leaves"),
    ("several splits and no train", lambda t: train_and_test({"a": images(), "b": images()}), "no split named train"),
    ("a dataset folder without data", lambda t: load_images(t), "holds no image data"),
    ("a dataset that is a file", lambda t: load_images(folder_of(t, f=b"x") / "f"), "is a file"),
    ("a dataset folder that is not there", lambda t: load_images(t / "none"), "no folder"),
]

SETTINGS = [
    ("an unknown contrast", lambda t: config(contrast="simclr"), "expected one of"),
    ("an unknown pooling", lambda t: config(pooling="max"), "expected one of mean, cls, all"),
    ("an unknown treatment of batch norm", lambda t: config(batch_norm="on"), "expected one of frozen, retain"),
    ("a temperature of 0", lambda t: config(temperature=0.0), "above 0"),
    ("a temperature next to 0", lambda t: config(temperature=1e-30), "no gradient left"),
    ("a temperature of NaN", lambda t: config(temperature=float("nan")), "above 0"),
    ("a temperature below 0", lambda t: config(temperature=-0.1), "above 0"),
    ("an infinite weight", lambda t: config(ec_weight=float("inf")), "above 0"),
    ("a weight of 0", lambda t: config(ec_weight=0.0), "above 0"),
    ("a retain weight below 0", lambda t: config(retain_weight=-1.0), "0 or more"),
    ("a retain weight of NaN", lambda t: config(retain_weight=float("nan")), "0 or more"),
    ("a repulsion below 0", lambda t: config(repulsion=-1.0), "0 or more"),
    ("a probe weight of NaN", lambda t: config(probe_weight=float("nan")), "0 or more"),
    ("a learning rate of NaN", lambda t: config(learning_rate=float("nan")), "learning_rate=nan"),
    ("a learning rate below 0", lambda t: config(learning_rate=-1e-3), "learning_rate=-0.001"),
    ("no head epochs", lambda t: config(heads_epochs=0), "above 0"),
    ("a head learning rate of 0", lambda t: config(heads_learning_rate=0.0), "above 0"),
    ("a saliency of 0", lambda t: config(saliency=0.0), "a share above 0"),
    ("a saliency above 1", lambda t: config(saliency=50), "a share above 0 and at most 1"),
    ("a saliency of NaN", lambda t: config(saliency=float("nan")), "a share above 0"),
    ("a batch size of 0", lambda t: config(per_device_train_batch_size=0), "per_device_train_batch_size=0"),
    ("a batch size below 0", lambda t: config(per_device_train_batch_size=-4), "per_device_train_batch_size=-4"),
    ("a forget batch size below 0", lambda t: config(per_device_forget_batch_size=-1), "per_device_forget_batch_size"),
    ("a forget target of NaN", lambda t: config(forget_target=float("nan")), "forget_target=nan"),
    ("a forget target in percent", lambda t: config(forget_target=10.0), "not a percentage"),
    ("a floor in percent", lambda t: config(retain_floor=5.0), "not a percentage"),
    ("a floor below 0", lambda t: config(retain_floor=-0.1), "0 or more"),
    ("minimum steps below 0", lambda t: config(min_steps=-1), "0 or more"),
    ("objective settings in a list", lambda t: config(objective_kwargs=["a"]), "objective_kwargs=['a']"),
    ("objective settings as a number", lambda t: config(objective_kwargs=3), "expected names and values"),
    ("objective settings in broken JSON", lambda t: config(objective_kwargs="{a:1}"), "is no JSON"),
    ("objective settings in a JSON list", lambda t: config(objective_kwargs="[1]"), "expected a JSON object"),
    ("columns that would be dropped", lambda t: config(remove_unused_columns=True), "image column"),
    ("statistics under checkpointing", lambda t: config(batch_norm="retain", activation_checkpointing=True), "frozen"),
    ("an unknown objective", lambda t: get_objective("delet"), "did you mean 'delete'"),
    ("an objective's unknown setting", lambda t: get_objective("delete", alpha=1), "its settings are"),
    ("an objective's setting as text", lambda t: get_objective("delete", retain_weight="1"), "got '1'"),
    ("an objective's setting of NaN", lambda t: get_objective("delete", retain_weight=float("nan")), "0 or more"),
    ("an objective in no package", lambda t: get_objective("nopackage:Cls"), "nopackage"),
    ("an objective of another class", lambda t: get_objective("json:JSONDecoder"), "must be a subclass"),
    ("an objective that a module lacks", lambda t: get_objective("json:Nothing"), "json has no 'Nothing'"),
    ("a sampler without rows", lambda t: PairedBatchSampler(0, 3, **ONE_EACH), "at least 1"),
]

IMAGES = [
    ("an image that is text", lambda t: require_readable({"retain": stored(b"x")}), "retain row 0: it is no image"),
    ("an image cut short", lambda t: require_readable({"test": stored(png(), png(cut=60))}), "test row 1"),
    ("an image without bytes", lambda t: require_readable({"forget": stored(png(), None)}), "row 1: it holds no"),
    ("an empty image", lambda t: require_readable({"forget": stored(b"")}), "forget row 0"),
    ("a broken image in a batch", lambda t: fetched(b"no image"), "retain row 0 cannot be read"),
    ("pixel values of integers", lambda t: batch({"pixel_values": [[[1, 2]]]}), "are integers"),
    ("pixel values of NaN", lambda t: batch(pixels(), pixels(float("nan"))), "NaN or infinite: image 1 of the batch"),
    ("infinite pixel values", lambda t: batch(pixels(float("inf"))), "NaN or infinite: image 0"),
    ("pixel values of two sizes", lambda t: batch(pixels(), pixels(shape=(3, 5, 5))), "must all have one shape"),
    ("pixel values without channels", lambda t: batch(pixels(shape=(4, 4))), "must all have one shape"),
    ("no image and no processor", lambda t: batch({"image": Pil.new("L", (4, 4))}), "no image processor"),
    ("no image under any name", lambda t: batch({"photo": 1}, processor=make_processor()), "image_column: none of"),
    ("an image that is none", lambda t: batch({"image": None}, processor=make_processor()), "has no image in 'image'"),
    ("32-bit values", lambda t: batch({"image": wide()}, processor=make_processor(), num_channels=3), "8 bits first"),
    ("a label that is text", lambda t: batch(pixels() | {"label": "cat"}), "is no integer"),
    ("a label that is none", lambda t: batch(pixels() | {"label": None}), "is no integer"),
    ("a label beyond the last", lambda t: batch(pixels() | {"label": 5}, num_labels=5), "beyond the model's 5 labels"),
    ("a label below 0", lambda t: batch(pixels() | {"label": -1}, num_labels=5), "beyond the model's 5 labels"),
    ("a row beyond forget and retain", lambda t: PairedDataset(images(), images())[40], "outside the 40 rows"),
    ("examples that are tuples", lambda t: PairedDataset([(1, 2)], [(1, 2)])[0], "must give dicts"),
]

MODELS = [
    ("a plain module", lambda t: trainer(t, nn.Linear(3, 5)), "expected an image classifier of transformers"),
    ("a model for several GPUs", lambda t: trainer(t, nn.DataParallel(make_model("ViT"))), "Pass model.module"),
    ("a compiled part", lambda t: trainer(t, nn.Sequential(torch.compile(nn.Linear(3, 5)))), "by torch.compile"),
    ("a model without a head", lambda t: trainer(t, ViTModel(make_model("ViT").config)), "no classification head"),
    ("weights of several types", lambda t: trainer(t, changed_model(lambda m: m.classifier.half())), "several types"),
    ("weights in half precision", lambda t: trainer(t, changed_model(lambda m: m.bfloat16())), "dtype=torch.float32"),
    ("a frozen model", lambda t: trainer(t, changed_model(lambda m: m.requires_grad_(False))), "are frozen"),
    ("a model without weights", lambda t: trainer(t, changed_model(lambda m: m.to("meta"))), "meta device"),
    ("a weight of NaN", lambda t: trainer(t, changed_model(lambda m: m.classifier.bias.data.fill_(np.nan))), "NaN"),
    ("a quantized model", lambda t: trainer(t, quantized()), "quantiz"),
    ("a saliency that leaves no weight", lambda t: trainer(t, saliency=1e-12), "this leaves none"),
    ("an output folder that is a file", lambda t: trainer(folder_of(t, f=b"x") / "f"), "is a file: name a folder"),
    ("no images to forget", lambda t: trainer(t, forget=images().select([])), "forget_dataset is empty"),
    ("images to keep and forget", lambda t: trainer(t, retain=images()), "stand in forget_dataset too"),
    (
        "streamed forget images",
        lambda t: trainer(t, forget=images().to_iterable_dataset()),
        "the retain set alone may be streamed",
    ),
    (
        "a stream of unknown length",
        lambda t: trainer(t, retain=images().to_iterable_dataset(), max_steps=-1),
        "Give retain_rows, the number of its rows",
    ),
    ("evaluation images as one set", lambda t: trainer(t, evaluation=images()), "eval_dataset: expected"),
    ("one class alone", lambda t: trainer(t, forget=bees(0, 2), retain=bees(2, 4)), "one class alone"),
    ("a label too far", lambda t: trainer(t, forget=labelled(7), retain=labelled(0)), "label 7 of forget row 0"),
    ("a hidden state that is not there", lambda t: trainer(t, points=[9]), "no hidden state 9"),
    ("a hidden state named twice", lambda t: trainer(t, points=[1, 1]), "named twice"),
    ("a hidden state that is a word", lambda t: trainer(t, points=["deep", "1"]), "no module 'deep'"),
    ("too few layer weights", lambda t: trainer(t, layer_weights=[1, 2]), "one number for each of the 4"),
    ("an unknown schedule of layers", lambda t: trainer(t, layer_weights="steep"), "steep"),
    ("heads that are not there", lambda t: trainer(t, heads=str(t / "none")), "none"),
    ("points for retraining", lambda t: trainer(t, objective="retrain"), "points=[]"),
    ("rows for an objective of classes", lambda t: trainer(t, **single_rows(), objective="damp"), "whole classes"),
    ("a checkpoint that is not there", lambda t: trainer(t).train(str(t / "none")), "there is no checkpoint"),
    ("no checkpoint at all", lambda t: trainer(t).train(True), "no whole checkpoint"),
    ("a folder without a model", lambda t: load_model(t), "holds no config.json"),
    ("a model folder that is not there", lambda t: load_model(t / "none"), "no folder"),
    ("a model that is a file", lambda t: load_model(folder_of(t, f=b"x") / "f"), "is a file"),
    ("weights cut short", lambda t: saved(t, cut_weights), "is damaged: model.safetensors is"),
    ("weights that are no weights", lambda t: saved(t, overwrite_weights), "is damaged"),
    ("a text model", lambda t: load_model(folder_of(t, config__json={"model_type": "bert"})), "no image classifier"),
]
# fmt: on


def wide():
    return Pil.fromarray(np.full((4, 4), 70_000, np.int32))


def bees(start, stop):
    return parts()["forget"].select(range(start, stop))


def single_rows():
    return {"forget": bees(0, 2), "retain": images().select([11, 16, 0, 5])}


def quantized():
    return changed_model(lambda model: setattr(model, "is_quantized", True))


CASES = [*REQUESTS, *SPLITS, *SETTINGS, *IMAGES, *MODELS]


def test_the_table_has_a_hundred_cases_and_no_name_twice():
    assert len({name for name, *_ in CASES}) == len(CASES) >= 100


@pytest.mark.filterwarnings("ignore:No image processor", "ignore:no image processor")
@pytest.mark.parametrize(("give", "words"), [case[1:] for case in CASES], ids=[case[0] for case in CASES])
def test_bad_input_is_refused_in_words_that_name_it(tmp_path, give, words):
    if words is None:
        with pytest.raises((AttributeError, TypeError)):
            give(tmp_path)
        return
    with pytest.raises(REFUSALS) as caught:
        give(tmp_path)
    told = str(caught.value)
    assert words in told
    assert " object at 0x" not in told, "an address in memory helps nobody"
