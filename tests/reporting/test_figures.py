from __future__ import annotations

import io
import subprocess
import sys
import xml.etree.ElementTree as ET
from dataclasses import replace

import pytest
from helpers.reports import DIGITS, FORGOTTEN, MODELS, SEVERAL, make_report
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.text import Text
from PIL import Image

from ec_hf import AuditReport
from ec_hf.reporting.drawing import crowded, draw_legend, new_axes, render, set_ticks
from ec_hf.reporting.figures import CAPTIONS, draw, save_figures
from ec_hf.reporting.labels import layer_labels

SMALL = ("original", "unlearned", "retrained")


class Images:
    """A thousand gray images that remember which were read."""

    def __init__(self, count: int = 1000):
        self.count, self.read = count, set()

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, k: int) -> Image.Image:
        self.read.add(k)
        return Image.new("L", (8, 8), k % 256)


def lines(axis) -> dict[str, list[float]]:
    return {line.get_label(): list(line.get_ydata()) for line in axis.get_lines()}


def overlaps(figure) -> list[tuple[str, str]]:
    """Pairs of texts of a figure that lie over one another."""
    figure.draw_without_rendering()
    renderer = FigureCanvasAgg(figure).get_renderer()
    texts = [text for text in figure.findobj(Text) if text.get_visible() and text.get_text().strip()]
    sides = [side for axis in figure.axes for side in (axis.xaxis, axis.yaxis)]
    beyond = [
        tick.label1
        for side in sides
        for tick in side.get_major_ticks()
        if not min(side.get_view_interval()) <= tick.get_loc() <= max(side.get_view_interval())
    ]
    texts = [text for text in texts if text.get_rotation() in (0, 90) and text not in beyond]
    boxes = [(text.get_text(), text.get_window_extent(renderer)) for text in texts]
    boxes = [(name, box) for name, box in boxes if box.width > 0 and box.height > 0]
    pairs = [(a, b) for i, a in enumerate(boxes) for b in boxes[i + 1 :]]
    return [(a[0], b[0]) for a, b in pairs if a[1].shrunk(0.9, 0.7).overlaps(b[1].shrunk(0.9, 0.7))]


@pytest.mark.slow
def test_all_figures_are_written_as_png_and_svg_at_card_width(tmp_path):
    paths = save_figures(make_report(SMALL, layers=4), tmp_path / "figures", images=Images())
    assert list(paths) == list(CAPTIONS)
    for name, path in paths.items():
        with Image.open(path) as picture:
            assert picture.width == 1400, name
        assert ET.parse(path.with_suffix(".svg")).getroot().tag == "{http://www.w3.org/2000/svg}svg"
    assert len(list((tmp_path / "figures").iterdir())) == 2 * len(paths)


def test_curves_are_the_numbers_of_the_report():
    report = make_report(layers=4)
    figure = draw(report, names=["cka"])["cka"]
    forget, retain, to_retrained, _ = figure.axes
    for axis, split, reference in (
        (forget, "forget_test", "original"),
        (retain, "retain_test", "original"),
        (to_retrained, "forget_test", "retrained"),
    ):
        for name, values in lines(axis).items():
            assert values == list(report.profile("linear_cka", model=name, split=split, reference=reference).values())
    assert set(lines(forget)) == {"unlearned", "delete", "retrained", "random_init"}
    assert set(lines(to_retrained)) == {"original", "unlearned", "delete", "random_init"}
    probe = lines(draw(report, names=["probe"])["probe"].axes[0])
    assert probe["chance"] == [0.1, 0.1]
    assert probe["delete"] == list(report.profile("linear_probe", model="delete", split="forget_test").values())


def test_several_retrained_models_are_a_line_with_the_band_of_their_range():
    report = make_report(SEVERAL, layers=4)
    figures = draw(report, images=Images())
    probe = figures["probe"].axes[0]
    assert "retrained (mean of 3)" in lines(probe) and "retrained 1" not in lines(probe)
    each = [report.profile("linear_probe", model=f"retrained {k}", split="forget_test") for k in (1, 2, 3)]
    bands = [band.get_paths()[0].get_extents() for band in probe.collections if band.get_alpha() == 0.35]
    assert len(bands) == 1
    values = [value for profile in each for value in profile.values()]
    assert (bands[0].y0, bands[0].y1) == pytest.approx((min(values), max(values)), abs=1e-6)
    assert [axis.get_ylabel() for axis in figures["cka"].axes[::2]] == [
        "linear CKA to original",
        "linear CKA to retrained",
    ]
    for name, figure in figures.items():
        legend = [text.get_text() for each in figure.legends for text in each.get_texts()]
        assert len(set(legend)) == len(legend) and "retrained 2" not in legend, name


def test_confusion_gives_shares_of_each_true_class():
    report = make_report(SMALL, layers=4)
    first, *_, last = draw(report, names=["confusion"])["confusion"].axes
    data = first.get_images()[0].get_array()
    assert data.shape[0] == len(FORGOTTEN)
    assert data.sum(axis=1).tolist() == pytest.approx([100] * 3)
    assert [label.get_text() for label in first.get_yticklabels()] == [DIGITS[k] for k in FORGOTTEN]
    columns = [label.get_text() for label in last.get_xticklabels()]
    assert columns[:3] == [DIGITS[k] for k in FORGOTTEN]
    assert data[0][0] == report.confusion["original"]["three"]["three"]


def test_retrieval_reads_only_what_it_shows_and_marks_what_the_original_finds():
    report, images = make_report(SMALL, layers=4), Images()
    figure = draw(report, images=images, names=["retrieval"])["retrieval"]
    assert images.read == {k for each in report.retrievals for k in [each.query, *each.neighbours]}
    rows = [figure.axes[k : k + 6] for k in range(0, len(figure.axes), 6)]
    for each, row in zip(report.retrievals[:3], rows, strict=False):
        marked = [bool(axis.get_lines()) for axis in row[1:]]
        first = report.retrievals[0]
        assert marked == [each is not first and k in first.neighbours for k in each.neighbours]
        framed = [axis.spines["left"].get_linewidth() == 3 for axis in row[1:]]
        assert framed == [label == each.query_label for label in each.labels]
    with pytest.raises(ValueError, match="'forget_test' followed by those of 'retain_test'"):
        draw(report, images=Images(5))


def test_what_was_not_measured_is_left_out_not_drawn_empty():
    assert draw(AuditReport(), images=Images()) == {}
    assert list(draw(make_report(("original",), layers=4))) == ["probe", "embedding", "attacks", "confusion"]
    report = make_report(SMALL, layers=4)
    undefined = [replace(row, value=None, low=None, high=None) for row in report.measurements]
    assert list(draw(replace(report, measurements=undefined, embedding={}))) == ["attacks", "confusion"]
    no_target = draw(make_report(("original", "unlearned"), layers=4), names=["cka"])["cka"]
    assert len(no_target.axes) == 2, "no row of similarities to a retrained model"


def test_too_few_forget_images_for_cka_leave_the_panel_of_retain_images():
    report = make_report(["original", "unlearned"], layers=2)
    report.measurements = [
        each for each in report.measurements if each.metric != "linear_cka" or each.split == "retain_test"
    ]
    assert [len(axis.lines) > 0 for axis in draw(report)["cka"].axes] == [False, True]


def test_forgotten_rows_are_read_on_the_training_split():
    report = make_report(("original", "unlearned"), layers=4)
    rows = [
        replace(row, split="forget_train") if row.split == "forget_test" else row
        for row in report.measurements
        if row.split != "forget_train"
    ]
    figure = draw(replace(report, measurements=rows), names=["cka"])["cka"]
    assert figure.axes[0].get_title() == "forget train images" and lines(figure.axes[0])


@pytest.mark.parametrize(("models", "layers"), [(2, 1), (5, 4), (3, 13), (5, 25), (7, 4)])
def test_no_text_lies_over_another(models, layers):
    report = make_report((SEVERAL if models > len(MODELS) else MODELS)[:models], layers=layers)
    for name, figure in draw(report, images=Images()).items():
        assert overlaps(figure) == [], name


@pytest.mark.parametrize("layers", [4, 13, 25])
def test_the_penultimate_layer_has_a_place_of_its_own(layers):
    report = make_report(SMALL, layers=layers)
    deepest = [replace(row, layer="penultimate") for row in report.measurements if row.layer == report.layers[-1]]
    report = replace(report, measurements=report.measurements + deepest, layers=[*report.layers, "penultimate"])
    figures = draw(report, names=["cka", "probe"])
    assert len(lines(figures["probe"].axes[0])["retrained"]) == layers + 2
    for name, figure in figures.items():
        assert overlaps(figure) == [], name


def test_long_and_many_class_names_do_not_collide():
    report = make_report(SMALL, layers=4)
    names = [f"class number {k} of a long list, with a synonym" for k in range(40)]
    table = {names[k]: {names[(k + j) % 40]: 10 - j for j in range(10)} for k in range(20)}
    report = replace(
        report, dataset={**report.dataset, "class_names": names}, confusion={"original": table, "unlearned": table}
    )
    figures = draw(report, images=Images())
    assert all(overlaps(figure) == [] for figure in figures.values())
    never = {name: {"zero": 4} for name in ("three", "five")}
    axis = draw(replace(report, confusion={"unlearned": never}), names=["confusion"])["confusion"].axes[0]
    assert [label.get_text() for label in axis.get_xticklabels()] == ["three", "five", "zero"]
    assert "the first 12 of 20" in figures["confusion"].get_supylabel()


def test_text_is_at_least_eight_points_high():
    for name, figure in draw(make_report(layers=4), images=Images()).items():
        sizes = [text.get_fontsize() for text in figure.findobj(Text) if text.get_text()]
        assert min(sizes) >= 8, name


def test_models_differ_in_line_or_marker_not_in_colour_alone():
    report = make_report(layers=4)
    for k in range(9):
        report.models[f"method {k}"] = report.models["delete"]
        report.measurements += [
            replace(row, model=f"method {k}") for row in report.find("linear_cka", model="delete", split="forget_test")
        ]
    axis = draw(report, names=["cka"])["cka"].axes[0]
    styles = [(line.get_linestyle(), line.get_marker(), str(line._dash_pattern)) for line in axis.get_lines()]
    assert len(set(styles)) == len(styles) == 13


def test_the_same_report_gives_the_same_file():
    def written(kind: str) -> bytes:
        stream = io.BytesIO()
        render(draw(make_report(SMALL, layers=4), names=["cka"])["cka"], stream, kind)
        return stream.getvalue()

    assert written("svg") == written("svg") and written("png") == written("png")


@pytest.mark.launch
def test_no_pyplot_state_is_made():
    code = "import sys; from ec_hf import AuditReport; from ec_hf.reporting import figures; "
    code += "figures.draw(AuditReport()); "
    code += "assert 'matplotlib.pyplot' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_each_attack_has_a_panel_and_retrained_models_share_a_line_and_a_band():
    report = make_report(SEVERAL, layers=4)
    figure = draw(report, names=["attacks"])["attacks"]
    titles = ["classifier fine-tuned", "all weights fine-tuned", "new classifier", "weights rounded", "weights pruned"]
    assert [axis.get_title() for axis in figure.axes] == titles
    for axis in figure.axes:
        assert {"original", "unlearned", "retrained (mean of 3)"} <= set(lines(axis))
        assert "retrained 1" not in lines(axis)
        assert len(axis.collections) == len(SEVERAL) - 2, "a band for each line"
    assert [text.get_text() for text in figure.axes[3].get_xticklabels()] == ["8", "6", "5", "4"]


def test_layers_lose_in_figures_what_all_of_their_names_begin_with():
    blocks = [f"resnet.encoder.stages.{stage}.layers.0" for stage in (2, 3)]
    assert layer_labels([*blocks, "penultimate", "logits"]) == ["2.layers.0", "3.layers.0", "penultimate", "logits"]
    assert layer_labels(["hidden_states.0", blocks[0], "logits"]) == ["0", blocks[0], "logits"]


@pytest.mark.parametrize("columns", [1, 2, 3])
def test_names_of_layers_that_would_touch_are_slanted(columns):
    layers = [*map(str, range(5)), "penultimate", "logits"]
    figure, axes = new_axes(1, columns, height=2.5)
    for axis in axes[0]:
        axis.plot(range(len(layers)))
        set_ticks(axis, list(range(len(layers))), layers, slanted=crowded(axis, layers))
    assert overlaps(figure) == []
    assert crowded(axes[0][0], layers) == (columns > 1)


@pytest.mark.parametrize("count", [3, 8, 12, 17])
def test_a_legend_lies_inside_its_figure(count):
    figure, axes = new_axes(1, 2, height=2.5)
    labels = ["forgotten: LABEL_4", *(f"LABEL_{k}" for k in range(1, count))]
    handles = [axes[0][0].plot([0, 1], label=label)[0] for label in labels]
    draw_legend(figure, handles, labels, "outside lower center")
    figure.draw_without_rendering()
    box = figure.legends[0].get_window_extent(FigureCanvasAgg(figure).get_renderer())
    assert box.x0 >= 0 and box.x1 <= figure.bbox.x1


@pytest.mark.parametrize("count", [3, 12])
def test_a_legend_of_many_rows_leaves_the_panels_their_height(count):
    figure, axes = new_axes(1, 3, height=2.1)
    labels = ["forgotten: The Eiffel To…, ambulance, apple and 97 more", *(f"class {k}" for k in range(1, count))]
    handles = [axes[0][0].plot([0, 1], label=label)[0] for label in labels]
    draw_legend(figure, handles, labels, "outside lower center")
    figure.draw_without_rendering()
    assert axes[0][0].get_window_extent().height / figure.dpi > 1
