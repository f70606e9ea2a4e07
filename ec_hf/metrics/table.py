"""`METRICS`: what every number in an audit means, which way is better, and where its formula comes from."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

__all__ = ["METRICS", "Metric"]

LOWER, HIGHER, NEARER = "lower", "higher", "nearer the retrained model"


@dataclass(frozen=True)
class Metric:
    """How to read a metric.

    Attributes:
        title: its name in plain words.
        on_forget: which way is better on splits of forgotten images, and for numbers without a split.
        on_retain: which way is better on retain splits and downstream.
        to_retrained: which way is better on any split where the reference is the retrained model; None where that
            makes no difference.
        low: least possible value; None where there is none.
        high: largest possible value; None where there is none.
        chance: in words, what a model without any knowledge would get.
        formula: how it is computed.
        source: where it comes from.
    """

    title: str
    on_forget: str
    on_retain: str
    low: float | None
    high: float | None
    chance: str
    formula: str
    source: str
    to_retrained: str | None = None

    def better(self, split: str | None = None, reference: str | None = None) -> str:
        """Which way is better: "lower", "higher" or "nearer the retrained model".

        Args:
            split: name of the split, such as "forget_test"; None for a number without a split.
            reference: name of the model that it compares with.
        """
        if (reference or "").startswith("retrained") and self.to_retrained:
            return self.to_retrained
        forgotten = split is None or split.startswith(("forget", "request"))  # "request 1": of an earlier one
        return self.on_forget if forgotten else self.on_retain


_CKA = "HSIC(K, L) / sqrt(HSIC(K, K) HSIC(L, L)) with K = XXᵀ, L = YYᵀ"
_SHARE: dict[str, Any] = {"low": 0.0, "high": 1.0}

METRICS: dict[str, Metric] = {
    "accuracy": Metric(
        title="top-1 accuracy",
        on_forget=LOWER,
        on_retain=HIGHER,
        **_SHARE,
        chance="1 / number of classes",
        formula="share of images whose largest logit is that of their label",
        source="standard; 1 minus it is called unlearning accuracy (UA) on forget training images",
    ),
    "accuracy_masked": Metric(
        title="accuracy with the forgotten logits masked",
        on_forget=LOWER,
        on_retain=HIGHER,
        **_SHARE,
        chance="0 on forgotten classes, 1 / number of other classes on the rest",
        formula="accuracy when forgotten classes cannot be predicted: what hiding the output alone achieves",
        source="control; forget accuracy 0 here says nothing about erasure",
    ),
    "accuracy_matched": Metric(
        title="accuracy on held-out images of the forgotten images' classes",
        on_forget=HIGHER,
        on_retain=HIGHER,
        **_SHARE,
        chance="1 / number of classes",
        formula="Σ_c w_c · accuracy_c on held-out images, w_c = share of class c among the forgotten images",
        source="this package: what a model should get on images that it forgot, where their classes are kept",
    ),
    "accuracy_int8": Metric(
        title="accuracy after 8-bit quantisation of the weights",
        on_forget=LOWER,
        on_retain=HIGHER,
        **_SHARE,
        chance="1 / number of classes",
        formula="accuracy of a copy whose weights are rounded to 255 levels for each output channel",
        source="Zhang et al. 2024, arXiv 2410.16454: rounding can bring back what small weight changes hid",
    ),
    "confidence": Metric(
        title="confidence",
        on_forget=LOWER,
        on_retain=HIGHER,
        **_SHARE,
        chance="1 / number of classes, its least value",
        formula="probability of the predicted class, mean over images",
        source="standard",
    ),
    "entropy": Metric(
        title="entropy of the prediction",
        on_forget=HIGHER,
        on_retain=LOWER,
        low=0.0,
        high=None,
        chance="ln(number of classes), its largest value",
        formula="-Σ p log p in nats, mean over images",
        source="standard",
    ),
    "linear_cka": Metric(
        title="similarity of the features (linear CKA, debiased)",
        on_forget=LOWER,
        on_retain=HIGHER,
        to_retrained=HIGHER,
        low=None,
        high=1.0,
        chance="0 in expectation for unrelated features",
        formula=f"{_CKA}, HSIC by its unbiased estimator",
        source="Kornblith et al. 2019, arXiv 1905.00414; debiased: Nguyen et al. 2021, arXiv 2010.15327",
    ),
    "linear_cka_uuef": Metric(
        title="similarity of the features (linear CKA as in UUEF's tables)",
        on_forget=LOWER,
        on_retain=HIGHER,
        to_retrained=HIGHER,
        **_SHARE,
        chance="about 1 / (1 + batch size / width) for unrelated features: 0.6 for 512 and 768, 0.8 for 512 and 2048",
        formula=f"{_CKA}, biased, on batches of 512 images in the given order, mean over batches",
        source="UUEF, arXiv 2503.06991, CKA/CKA.py and utils.py of its repository",
    ),
    "cka_floor": Metric(
        title="CKA of unrelated features",
        on_forget=LOWER,
        on_retain=LOWER,
        low=None,
        high=1.0,
        chance="0 in expectation where debiased",
        formula="CKA after the rows of one side were shuffled",
        source="control",
    ),
    "split_half_cka": Metric(
        title="CKA between two halves of a model's own channels",
        on_forget=NEARER,
        on_retain=HIGHER,
        low=None,
        high=1.0,
        chance="0 in expectation for channels that tell unrelated things",
        formula="debiased CKA between two random halves of the channels of one layer",
        source="control: similarity above it cannot be told from that of a model with itself",
    ),
    "linear_probe": Metric(
        title="linear probe accuracy",
        on_forget=NEARER,
        on_retain=HIGHER,
        **_SHARE,
        chance="1 / number of classes; random weights give more, see the floor model",
        formula="test accuracy of a logistic regression over all classes on standardised frozen features",
        source="Alain & Bengio 2017, arXiv 1610.01644",
    ),
    "knn": Metric(
        title="k-nearest-neighbour accuracy",
        on_forget=NEARER,
        on_retain=HIGHER,
        **_SHARE,
        chance="1 / number of classes; random weights give more, see the floor model",
        formula="accuracy of the vote of the 5 nearest training images by cosine similarity of features",
        source="UUEF, arXiv 2503.06991, main_knn.py of its repository",
    ),
    "knn_downstream": Metric(
        title="k-nearest-neighbour accuracy on another data set",
        on_forget=HIGHER,
        on_retain=HIGHER,
        **_SHARE,
        chance="1 / number of classes of that data set",
        formula="as k-nearest-neighbour accuracy, bank and queries from a data set the model was not trained on",
        source="UUEF, arXiv 2503.06991, main_knn.py of its repository",
    ),
    "mia_loss": Metric(
        title="membership inference by the loss (AUC)",
        on_forget=NEARER,
        on_retain=LOWER,
        **_SHARE,
        chance="0.5",
        formula="chance that a training image has a lower loss than a held-out image of the same class mix",
        source="Yeom et al. 2018, arXiv 1709.01604, as area under the ROC curve, class-matched",
    ),
    "mia_confidence": Metric(
        title="membership inference by the confidence (AUC)",
        on_forget=NEARER,
        on_retain=LOWER,
        **_SHARE,
        chance="0.5",
        formula="chance that the model is surer of a training image than of a held-out image of the same class mix",
        source="Salem et al. 2019, arXiv 1806.01246, as area under the ROC curve, class-matched",
    ),
    "mia_lira": Metric(
        title="membership inference by shadow models (LiRA, AUC)",
        on_forget=NEARER,
        on_retain=LOWER,
        **_SHARE,
        chance="0.5",
        formula="AUC of log N(φ; in) - log N(φ; out), φ = log(p / (1 - p)) of the label; of (φ - μ_out) / σ without "
        "in-models; forgotten against held-out images of the same class mix",
        source="Carlini et al. 2022, arXiv 2112.03570; for unlearning Hayes et al. 2024, arXiv 2403.01218",
    ),
    "mia_lira_tpr": Metric(
        title="members found by shadow models at 1 % false alarms (LiRA)",
        on_forget=NEARER,
        on_retain=LOWER,
        **_SHARE,
        chance="0.01",
        formula="share of the forgotten images whose score is above that of all but 1 % of the held-out ones",
        source="Carlini et al. 2022, arXiv 2112.03570; for unlearning Hayes et al. 2024, arXiv 2403.01218",
    ),
    "mia_population": Metric(
        title="membership inference by a threshold for each class (attack P, AUC)",
        on_forget=NEARER,
        on_retain=LOWER,
        **_SHARE,
        chance="0.5",
        formula="AUC of the share of held-out images of the same class whose loss is above that of an image",
        source="Ye et al. 2022, arXiv 2111.09679, attack P, with a threshold for each class",
    ),
    "mia_population_tpr": Metric(
        title="members found by a threshold for each class at 1 % false alarms (attack P)",
        on_forget=NEARER,
        on_retain=LOWER,
        **_SHARE,
        chance="0.01",
        formula="share of the forgotten images whose score is above that of all but 1 % of the held-out ones",
        source="Ye et al. 2022, arXiv 2111.09679, attack P, with a threshold for each class",
    ),
    "mia_svc_efficacy": Metric(
        title="share of forget training images judged as never trained on (MIA-efficacy)",
        on_forget=HIGHER,
        on_retain=HIGHER,
        **_SHARE,
        chance="none that is fixed: compare with the retrained model",
        formula="SVC (C = 3, RBF, gamma auto) taught on retain training against test images",
        source="Jia et al. 2023, arXiv 2304.04934; Fan et al. 2024 (SalUn), arXiv 2310.12508",
    ),
    "mia_svc_member": Metric(
        title="share of forget training images judged as trained on",
        on_forget=LOWER,
        on_retain=LOWER,
        **_SHARE,
        chance="none that is fixed: compare with the retrained model",
        formula="1 - MIA-efficacy",
        source="DELETE, Zhou et al. 2025, arXiv 2503.23751",
    ),
    "idi": Metric(
        title="information about the forgotten images left in the features (IDI)",
        on_forget=NEARER,
        on_retain=NEARER,
        low=None,
        high=None,
        chance="0 is as the retrained model, 1 as the original; negative is over-erased",
        formula="Σ_layers (I_unlearned - I_retrained) / Σ_layers (I_original - I_retrained), I by InfoNCE",
        source="Jeon et al. 2024, arXiv 2405.17878; the critic here is an MLP on pooled features",
    ),
    "infonce": Metric(
        title="information about who is to be forgotten (InfoNCE bound)",
        on_forget=NEARER,
        on_retain=NEARER,
        low=0.0,
        high=0.6931471805599453,
        chance="0 for features that do not tell forget from retain images; at most ln 2",
        formula="E[log exp f(z)·g(y) / mean_j exp f(z)·g(y_j)] in nats on held-out images, y = forget or retain",
        source="van den Oord et al. 2018, arXiv 1807.03748; Jeon et al. 2024, arXiv 2405.17878",
    ),
    "probe_advantage": Metric(
        title="what probes read beyond the floor",
        on_forget=LOWER,
        on_retain=HIGHER,
        low=None,
        high=None,
        chance="0 is as the floor; over all layers, 1 is as the original",
        formula="at a layer: probe accuracy - floor's; over all: Σ (unlearned - floor) / Σ (original - floor)",
        source="this package; IDI with linear probes, no retrained model needed",
    ),
    "attack_area": Metric(
        title="what a recovery attack brings back",
        on_forget=NEARER,
        on_retain=NEARER,
        **_SHARE,
        chance="that of the retrained model: all networks can learn the classes in time",
        formula="area under forget accuracy over the strength of the attack, divided by the length of the axis; "
        "log(1 + x) of steps and images, log of bits",
        source="this package; relearn time: Golatkar et al. 2020, arXiv 1911.04933",
    ),
    "residual_knowledge": Metric(
        title="forgotten images that are named again after a small change",
        on_forget=NEARER,
        on_retain=NEARER,
        **_SHARE,
        chance="that of the retrained model on the same images and changes",
        formula="share of points x + d, max |d| ≤ radius, that get the label of x: d at random, or the best of a few "
        "gradient steps towards the label",
        source="Hsu et al. 2026, arXiv 2601.22359, by difference in place of ratio to the retrained model",
    ),
    "js_divergence": Metric(
        title="difference of the outputs (Jensen-Shannon divergence)",
        on_forget=LOWER,
        on_retain=LOWER,
        low=0.0,
        high=0.6931471805599453,
        chance="0 for equal outputs, ln 2 for disjoint ones",
        formula="½ KL(p ‖ m) + ½ KL(q ‖ m), m = (p + q) / 2, in nats, mean over images",
        source="Lin 1991; for unlearning Chundawat et al. 2023, arXiv 2205.08096 (without its code's swap)",
        to_retrained=LOWER,
    ),
    "activation_distance": Metric(
        title="difference of the outputs (activation distance)",
        on_forget=LOWER,
        on_retain=LOWER,
        low=0.0,
        high=1.4142135623730951,
        chance="0 for equal outputs, sqrt(2) for sure and different ones",
        formula="‖p - q‖₂, mean over images",
        source="Golatkar et al. 2021, arXiv 2012.13431",
    ),
    "agreement": Metric(
        title="share of equal predictions",
        on_forget=HIGHER,
        on_retain=HIGHER,
        **_SHARE,
        chance="1 / number of classes",
        formula="share of images on which both models predict the same class",
        source="standard; called completeness elsewhere",
    ),
    "h_mean": Metric(
        title="H-mean of retain accuracy and forget drop",
        on_forget=HIGHER,
        on_retain=HIGHER,
        **_SHARE,
        chance="0 for a model that forgets nothing or keeps nothing",
        formula="2 RA drop / (RA + drop), drop = original forget accuracy - the unlearned model's, on test images",
        source="class-unlearning literature; the definition of the drop varies",
    ),
    "tug_of_war": Metric(
        title="tug of war",
        on_forget=HIGHER,
        on_retain=HIGHER,
        **_SHARE,
        chance="1 is equal to the retrained model",
        formula="Π (1 - |unlearned - retrained|) over forget, retain and test accuracy",
        source="Zhao et al. 2024, arXiv 2406.01257",
    ),
    "avg_gap": Metric(
        title="average gap to the retrained model",
        on_forget=LOWER,
        on_retain=LOWER,
        **_SHARE,
        chance="0 is equal to the retrained model",
        formula="mean |unlearned - retrained| over the measures",
        source="Fan et al. 2024 (SalUn), arXiv 2310.12508",
    ),
    "aus": Metric(
        title="adaptive unlearning score",
        on_forget=HIGHER,
        on_retain=HIGHER,
        low=0.0,
        high=2.0,
        chance="1 is all forgotten at no cost",
        formula="(1 - (A_original - A_test)) / (1 + A_forget); (... + |A_forget - A_test|) for random images",
        source="Cotogni et al. 2023 (DUCK), arXiv 2312.02052",
    ),
}
