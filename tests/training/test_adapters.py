"""Erasure through adapters of PEFT: the base weights stay, and the model without adapters is the original."""

from __future__ import annotations

import copy

import pytest
import torch
from helpers.models import make_images, make_model, make_processor
from helpers.stock import stock_trainer, with_pixels
from helpers.trainers import make_trainer
from transformers import AutoModelForImageClassification

from ec_hf import ECCallback, Eraser, EraserConfig, ForgetRequest, audit, split
from ec_hf.models.adapters import merged, original_state
from ec_hf.models.loading import load_model, weights_hash
from ec_hf.publishing.card import card
from ec_hf.publishing.export import export

peft = pytest.importorskip("peft")
pytestmark = pytest.mark.filterwarnings(  # PEFT asks for it whenever it makes adapters
    "ignore:.is_gradient_checkpointing. is deprecated:FutureWarning"
)

PIXELS = torch.rand(4, 3, 32, 32, generator=torch.Generator().manual_seed(0))
TARGETS = {"ViT": "all-linear", "ResNet": ["convolution"]}
DELETE = {"objective": "delete", "objective_kwargs": {"retain_weight": 1.0}, "calibrated": True}


def adapted(family="ViT", seed=0, **settings):
    """A tiny classifier with new adapters; its base weights do not depend on the seed."""
    base = make_model(family)
    torch.manual_seed(seed)
    chosen = {"r": 4, "target_modules": TARGETS.get(family), "modules_to_save": ["classifier"]}
    return peft.get_peft_model(base, peft.LoraConfig(**(chosen | settings)))


def erasing(folder, model, **settings):
    return make_trainer(folder, model=model, forget=("bee", "dog"), **(DELETE | {"learning_rate": 1e-2} | settings))


def logits(model):
    with torch.no_grad():
        return model.eval()(pixel_values=PIXELS).logits


@pytest.fixture(scope="module")
def erased(tmp_path_factory):
    """A trainer after four steps, with a checkpoint after two of them; adapters and a merged model are saved."""
    folder = tmp_path_factory.mktemp("adapted")
    make_model("ViT").save_pretrained(folder / "base")
    make_processor().save_pretrained(folder / "base")
    trainer = erasing(folder / "out", adapted(), save_strategy="steps", save_steps=2)
    trainer.train()
    trainer.save_model()
    trainer.save_merged(folder / "merged")
    return trainer, folder


def test_the_base_weights_stay_as_they_are_to_the_bit(erased):
    trainer, _ = erased
    before, after = make_model("ViT").state_dict(), original_state(trainer.model)
    assert list(before) == list(after)
    assert all(torch.equal(value, after[name]) for name, value in before.items())
    assert not torch.allclose(logits(trainer.model), logits(make_model("ViT")), atol=1e-2)


def test_convolutions_are_erased_through_adapters_too(tmp_path):
    model = adapted("ResNet", modules_to_save=None)
    erasing(tmp_path, model).train()
    before, after = make_model("ResNet").state_dict(), original_state(model)
    assert all(torch.equal(value, after[name]) for name, value in before.items())
    assert not torch.allclose(logits(model), logits(make_model("ResNet")), atol=1e-3)
    torch.testing.assert_close(logits(merged(model)), logits(model), rtol=1e-4, atol=1e-5)


def test_the_teacher_is_the_model_with_its_adapters_off_and_no_copy(erased):
    trainer, _ = erased
    model, teacher = trainer.model, trainer.eraser.teacher
    assert teacher.model is model
    modes = {name: each.training for name, each in model.train().named_modules()}
    with torch.no_grad():
        torch.testing.assert_close(teacher(PIXELS), logits(make_model("ViT")), rtol=0, atol=0)
    assert {name: each.training for name, each in model.named_modules()} == modes
    assert any(weight.requires_grad for weight in model.parameters())


def test_the_saved_adapter_is_loaded_by_peft(erased):
    trainer, folder = erased
    again = peft.PeftModel.from_pretrained(make_model("ViT"), folder / "out")
    torch.testing.assert_close(logits(again), logits(trainer.model), rtol=0, atol=0)


def test_the_merged_model_is_a_plain_checkpoint_that_can_be_described(erased):
    trainer, folder = erased
    plain, info = AutoModelForImageClassification.from_pretrained(folder / "merged", output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"]
    torch.testing.assert_close(logits(plain), logits(trainer.model), rtol=1e-4, atol=1e-5)
    assert list(plain.state_dict()) == list(make_model("ViT").state_dict())
    assert '"peft_type": "LORA"' in card(folder / "merged")
    assert peft.PeftModel is type(trainer.model), "merging leaves the adapters in place"


def test_a_run_that_is_resumed_with_new_adapters_ends_as_one_that_went_through(erased, tmp_path):
    trainer, folder = erased
    again = erasing(tmp_path, adapted(seed=7))
    again.train(resume_from_checkpoint=str(folder / "out" / "checkpoint-2"))
    expected = trainer.model.state_dict()
    assert all(torch.equal(value, expected[name]) for name, value in again.model.state_dict().items())


def test_adapters_of_another_kind_are_no_run_to_go_on_with(erased, tmp_path):
    _, folder = erased
    with pytest.raises(ValueError, match="adapters was"):
        other = erasing(tmp_path, adapted(lora_alpha=32))
        other.train(resume_from_checkpoint=str(folder / "out" / "checkpoint-2"))


def test_the_adapters_of_a_checkpoint_can_be_put_back(erased):
    trainer, folder = erased
    eraser = Eraser(adapted(seed=3), trainer.eraser.config, forget_classes=[1, 3])
    eraser.load(folder / "out" / "checkpoint-4")
    torch.testing.assert_close(logits(eraser.model), logits(trainer.model), rtol=0, atol=0)
    with pytest.raises(ValueError, match=r"holds no adapter_config\.json"):
        eraser.load(folder / "merged")


def test_an_audit_takes_adapted_models_and_folders_of_adapters(erased):
    trainer, folder = erased
    before = copy.deepcopy(trainer.model.state_dict())
    parts = split(make_images(), ForgetRequest(classes=["bee", "dog"]))
    splits = {f"{name}_{kind}": part for kind in ("train", "test") for name, part in parts.items()}
    report = audit(
        make_model("ViT"),
        {"adapted": trainer.model, "merged": str(folder / "merged")},
        splits=splits,
        processor=make_processor(),
    )
    values = {(m.metric, m.split, m.layer, m.model): m.value for m in report.measurements}
    for metric, part, layer in [("accuracy", "retain_test", None), ("linear_cka", "forget_test", "penultimate")]:
        assert values[metric, part, layer, "adapted"] == pytest.approx(values[metric, part, layer, "merged"], abs=1e-4)
    assert all(torch.equal(value, before[name]) for name, value in trainer.model.state_dict().items())


def test_a_folder_of_adapters_is_loaded_with_the_model_that_it_names(erased, tmp_path):
    _, folder = erased
    base, _ = load_model(folder / "base")
    model = peft.get_peft_model(base, peft.LoraConfig(r=2, target_modules="all-linear", init_lora_weights=False))
    model.save_pretrained(tmp_path)
    loaded, processor = load_model(tmp_path)
    assert type(loaded) is type(base) and processor is not None
    torch.testing.assert_close(logits(loaded), logits(model), rtol=1e-4, atol=1e-5)


def test_a_model_is_known_by_its_weights_whatever_adapters_it_has():
    assert weights_hash(adapted(seed=1)) == weights_hash(make_model("ViT"))


def test_a_stock_trainer_erases_through_adapters(tmp_path):
    parts = split(make_images(), ForgetRequest(classes=["bee", "dog"]))
    model = adapted()
    eraser = Eraser(model, EraserConfig(heads_epochs=1, **DELETE), forget_classes=[1, 3])
    callback = ECCallback(eraser, **{name: with_pixels(part) for name, part in parts.items()})
    stock_trainer(tmp_path, model, callback.train_dataset, [callback], save_strategy="steps", save_steps=3).train()
    assert not torch.allclose(logits(model), logits(make_model("ViT")), atol=1e-3)
    again = peft.PeftModel.from_pretrained(make_model("ViT"), tmp_path / "checkpoint-6")
    torch.testing.assert_close(logits(again), logits(model), rtol=0, atol=0)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"objective": "esc"}, "edits the weights themselves"),
        ({"objective": "retrain", "points": []}, "edits the weights themselves"),
        ({"batch_norm": "retain"}, "batch_norm='frozen'"),
        ({"saliency": 0.5}, "zero for half of a new adapter's"),
    ],
)
def test_settings_that_would_change_the_base_weights_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        Eraser(adapted(), EraserConfig(**({"objective": "contrastive"} | settings)), forget_classes=[1])


def test_a_folder_of_adapters_is_not_published_and_the_merged_model_is(erased, tmp_path):
    trainer, folder = erased
    files = export(folder / "merged", tmp_path / "sent", manifest_detail="classes")
    assert {"model.safetensors", "config.json", "ec_config.json", "README.md"} <= set(files)
    torch.testing.assert_close(logits(load_model(tmp_path / "sent")[0]), logits(trainer.model), rtol=1e-4, atol=1e-5)
    with pytest.raises(FileNotFoundError, match=r"ECTrainer\.save_merged"):
        export(folder / "out", tmp_path / "adapter")
    with pytest.raises(ValueError, match=r"save_merged\(folder\)"):
        erasing(tmp_path, adapted(), push_to_hub=True, hub_model_id="me/model")


def test_adapters_that_cannot_be_merged_are_refused_before_training():
    with pytest.warns(UserWarning, match="Merging is not supported"):
        model = adapted("ConvNext", r=8, target_modules=["stages.0.layers.0.dwconv"])
    with pytest.raises(ValueError, match=r"layers\.0\.dwconv'\] \(1\) cannot be merged.*leave these out"):
        Eraser(model, forget_classes=[1])


def test_adapters_that_change_the_answers_already_are_refused():
    with pytest.raises(ValueError, match="not the one to erase from"):
        Eraser(adapted(init_lora_weights=False), forget_classes=[1])
    with pytest.raises(ValueError, match="none of its adapters' weights is trainable"):
        Eraser(adapted(inference_mode=True, modules_to_save=None), forget_classes=[1])
