"""The page and its numbers: what they show of each kind of file, and that it is safe to open."""

import hashlib
import itertools
import json
import pathlib
import re

import numpy as np
import pytest
import samples

from tfmp import report
from tfmp.evaluation import Predictions


@pytest.fixture
def everything(folder):
    """A run with its evaluation and its robustness in one folder."""
    return folder(
        "a",
        results=samples.trained(),
        metrics=samples.CURVES,
        evaluation=samples.evaluated(samples.predictions(0)),
        robustness=samples.examined(),
    )


def test_a_run_and_all_about_it(everything, report_of):
    page, written = report_of(everything)
    numbers = written["numbers"]
    assert written["format"] == "tfmp report 1" and len(written["summary"]) > 4
    assert numbers["a/results.json#/cost/seconds"] == {"value": 83.25, "unit": "seconds"}
    assert numbers["a/metrics.csv#/1/val_accuracy"]["value"] == 0.71
    assert "a/metrics.csv#/2/val_accuracy" not in numbers
    found = json.loads((everything / "evaluation.json").read_text())
    accuracy = found["accuracy"]["pets"]
    assert numbers["a/evaluation.json#/accuracy/pets"] == {"value": accuracy, "unit": "share"}
    for said in (
        "resnet on pets, mixed_float16",
        f"Of 300 images of pets {100 * accuracy:.2f} % are classified right (95 % interval",
        "Energy was not measured: no power is read on a CPU.",
        "Training, all of it 83.2 s",
        "Predictions after which training was the smaller share, in device time 26,758",
        "Peak memory 3.00 GiB",
        "it breaks on float32 0-1; it refuses int4",
        "Gradients in mixed_float16 are zero for 12 of these images",
        "A check of the attacks fails, L-inf: noise of 8 is weaker than PGD",
        "Logits are not finite for 2 images of folder:x.",
        "It tells pets from folder:x with an AUROC of 90.00 %, by the energy.",
        "Under corruptions 40.00 % of pets are wrong, in place of 25.00 %, and the mCE is 80.00 %",
        "gaussian noise 40.00 % 50.00 % 45.00 % 40.00 to 50.00 % 90.00 % unknown",
        "folder:x, by chance",
        "kind those of ImageNet-C image_shape 8, 8, 1",
        "a/results.json",
    ):
        assert said in page.text, said


REGRESSION = {
    "final": {"loss": 0.4, "test_mae": 43.7, "test_rmse": 55.6, "test_loss": 0.5, "val_rmse": 58.0},
    "best": {"epoch": 2, "val_rmse": 57.5},
}
LOG = """epoch,loss,rmse,val_mae,val_rmse
0,0.9,70.5,50.5,61.0
1,0.5,60.5,45.5,57.5
"""


def test_a_regression_is_shown_by_its_own_measures(folder, report_of):
    one = folder("a", results=samples.trained(**REGRESSION), metrics=LOG)
    page, written = report_of(one)
    (said,) = written["summary"]
    result = "test RMSE 55.6000 after 3 epochs."
    assert said == f"Trained resnet on pets in mixed_float16 in 83.2\N{NO-BREAK SPACE}s: {result}"
    for shown in ("Test MAE 43.7000", "Best validation RMSE 57.5000 in epoch 2"):
        assert shown in page.text, shown
    assert "ccuracy" not in page.text
    assert written["numbers"]["a/metrics.csv#/1/val_mae"]["value"] == 45.5  # a curve
    changed = REGRESSION | {"final": REGRESSION["final"] | {"test_rmse": 54.6}}
    other = folder("b", results=samples.trained(**changed), metrics=LOG)
    page, _ = report_of(one, other)
    assert "Test RMSE \N{MINUS SIGN}1.0000" in page.text and "Validation RMSE" in page.text


def test_two_optimizers_have_two_loss_scales(folder, report_of):
    scales = {"initial": 32768.0, "final": 32768.0, "skipped_steps": 0}
    scales["discriminator"] = {"final": 8192.0, "skipped_steps": 2}
    lines = ["epoch,loss,discriminator_loss"] + ["0,0.7,1.3", "1,0.9,1.1"]
    names = [f"{x}_{y}" for x in ("g", "discriminator") for y in ("loss_scale", "skipped_steps")]
    more = [",".join(names), "32768,0,8192,2", "32768,0,8192,2"]
    log = "\n".join(f"{one},{other}" for one, other in zip(lines, more, strict=True))
    page, _ = report_of(folder("a", results=samples.trained(loss_scale=scales), metrics=log))
    for shown in (
        "Skipped steps of the discriminator 2",
        "The loss scale of the g stayed at 32,768, and no step was skipped.",
        "Epochs in which the loss scale of the discriminator moved",
        "Discriminator loss",
    ):
        assert shown in page.text, shown


@pytest.mark.parametrize(
    ("final", "said"),
    [
        ({"test_frechet": 1.25, "test_classes": 9.5}, "test distance (Frechet) 1.2500"),
        ({"test_loss": 0.5, "val_strange_score": 2.5}, "validation strange score 2.5"),
        ({"test_loss": 0.5}, "nothing but losses"),
    ],
)
def test_the_outcome_in_a_sentence(final, said, folder, report_of):
    found = samples.trained(final=final, best={"epoch": 1, "val_frechet": 1.5})
    _, written = report_of(folder("a", results=found))
    assert f": {said} after 3 epochs." in written["summary"][0]


def test_what_a_file_has_and_the_report_does_not_know(folder, report_of):
    found = samples.evaluated(samples.predictions(0)) | {"strange_score": {"pets": 0.123456}}
    found["per_size_accuracy"] = {"pets": {"small": 0.25, "large": None}}
    place = folder(
        "a",
        evaluation=found,
        robustness=samples.examined(weather={"rain": {"wet": 0.5}, "why": "cold"}),
    )
    parity = samples.compared()
    for metric, name in (("weather_auroc", None), ("auroc_energy", "mnist")):
        parity["tests"].append(parity["tests"][0] | {"metric": metric, "name": name})
    page, _ = report_of(place, folder("b", parity=parity | {"seasons": {"winter": 7}}))
    for said in ("Strange score 0.1235", "Accuracy by size", "rain · wet 0.5", "why cold"):
        assert said in page.text, said
    for said in ("Weather auroc", "AUROC by energy, mnist", "winter 7"):
        assert said in page.text, said


def test_logits_that_are_not_finite_are_said_first(folder, report_of):
    good = samples.predictions(0)
    logits = good.logits.copy()
    logits[:7] = np.nan
    place = folder("a", evaluation=samples.evaluated(Predictions(logits, good.labels)))
    text = (place / "evaluation.json").read_text().replace("NaN", "null")
    (place / "evaluation.json").write_text(text)
    page, written = report_of(place)
    assert written["summary"][0].startswith("Logits are not finite for 7 images of pets")
    assert "Negative log-likelihood unknown" in page.text
    assert ("p", {"class": "note bad"}) in page.tags


@pytest.mark.parametrize(
    ("skill", "verdict", "said"),
    [
        (1.5, "not enough runs", "Whether mixed_float16 trains models as good as float32 stays"),
        (0.0, "different", "mixed_float16 trains models that differ from those of float32"),
    ],
)
def test_a_comparison_of_policies(skill, verdict, said, folder, report_of):
    page, written = report_of(folder("parity", parity=samples.compared(skill)))
    assert written["summary"][0].startswith(f"{verdict}: {said}")
    assert page.text.startswith("mixed_float16 against float32 on pets")
    seen = (
        r"that 3 and 3 runs could have seen, in four of five such comparisons, is [\d.]+ points\."
    )
    assert re.search(seen, page.text)
    assert "Accuracy of class owl" in page.text and "0.5 \N{MULTIPLICATION SIGN}" in page.text
    key = "against/float32/parity/parity.json#/costs/training_seconds/1"
    assert written["numbers"][key] == {"value": 0.5, "unit": "ratio"}


def test_runs_side_by_side(folder, report_of):
    more = {"config": {"policy": "float32", "learning_rate": 0.1, "model": "resnet50"}}
    more["peak_memory_bytes"] = None
    found = samples.evaluated(samples.predictions(1), sha="other")
    first = folder(
        "a",
        results=samples.trained(),
        metrics=samples.CURVES,
        evaluation=samples.evaluated(samples.predictions(0)),
    )
    other = folder("b", results=samples.trained(0.7525, **more), metrics=samples.CURVES)
    third = folder("c", evaluation=found)
    page, written = report_of(first, other, third)
    assert "Comparison of a, b, c b against a: Test accuracy +0.25 points" in page.text
    numbers = written["numbers"]
    change = numbers["against/a/b/results.json#/final/test_accuracy"]
    assert change["unit"] == "points" and change["value"] == pytest.approx(0.0025)
    assert numbers["against/a/b/results.json#/cost/seconds"] == {"value": 1.0, "unit": "ratio"}
    assert "against/a/c/evaluation.json#/accuracy/pets" in numbers
    assert "Peak memory 3.00 GiB unknown" in page.text
    # b has no evaluation: an empty cell.
    assert re.search(r" Accuracy, pets [\d.]+ % [\d.]+ % \S+ points", page.text)
    assert "training · config · policy mixed_float16 float32" in page.text
    assert "training · config · model resnet18 resnet50" in page.text
    assert "learning_rate 0.1 0.1" not in page.text
    # Another number of images is another test set.
    few = folder("d", evaluation=samples.evaluated(samples.predictions(0, 90), sha="few"))
    assert not any(key.startswith("against") for key in report_of(first, few)[1]["numbers"])


def test_means_over_other_corruptions_are_not_compared(folder, report_of):
    errors = samples.CORRUPTIONS["errors"]
    fewer = samples.CORRUPTIONS | {"errors": {"fog": errors["fog"], "snow": errors["fog"]}}
    other = samples.CORRUPTIONS["baseline"] | {"mean_errors": {"fog": 0.9}}
    for index, (changed, compared) in enumerate(
        [(fewer, ["fog"]), (samples.CORRUPTIONS | {"baseline": other}, ["fog", "mean_error"])]
    ):
        folders = [
            folder(f"{name}{index}", robustness=samples.examined(corruptions=found))
            for name, found in (("a", samples.CORRUPTIONS), ("b", changed))
        ]
        against = [key for key in report_of(*folders)[1]["numbers"] if key.startswith("against")]
        assert "/mce" not in str(against)
        for name in ("fog", "mean_error"):
            assert any(key.endswith(f"/{name}") for key in against) == (name in compared)


def test_a_benchmark_of_several_replicas(folder, report_of):
    def row(speed, replicas, **more):
        speeds = {"images_per_second": {"median": speed}}
        return {"program": "tfmp", "status": "ok", "replicas": replicas, **speeds, **more}

    rows = [row(100.0, 1), row(150.0, 2, cards=1, all_reduce_ms=1.25, strong_efficiency=0.75)]
    found = {"format": "tfmp benchmark 3", "rows": rows, "environment": {}}
    folders = [
        folder(name, benchmark=found | {"config": {"image_size": size}})
        for name, size in (("a", 224), ("b", 224), ("c", 32))
    ]
    a, b, c = (place / "benchmark.json" for place in folders)
    page, written = report_of(a, b)
    assert "2 replicas on 1 " in page.text and "Strong efficiency" in page.text
    assert {"value": 1.25, "unit": "ms"} in written["numbers"].values()
    against = [key for key in written["numbers"] if key.startswith("against")]
    assert len(against) == 2
    # Images of another size are other work.
    assert not any(key.startswith("against") for key in report_of(a, c)[1]["numbers"])


def test_files_of_one_model_are_of_one_subject(folder, report_of):
    run = folder("run", results=samples.trained())
    (run / "model.keras").write_bytes(b"a model")
    sha = hashlib.sha256(b"a model").hexdigest()
    found = folder("e", evaluation=samples.evaluated(samples.predictions(0), sha=sha))
    again = folder("f", evaluation=samples.evaluated(samples.predictions(0), sha=sha))
    _, written = report_of(run, found)
    assert [subject["name"] for subject in written["subjects"]] == ["run"]
    assert "run/evaluation.json#/accuracy/pets" in written["numbers"]
    _, written = report_of(run, found, again)
    assert [subject["name"] for subject in written["subjects"]] == ["run", "f"]
    sources = written["subjects"][0]["sources"]
    assert [source["kind"] for source in sources] == ["training", "evaluation"]
    assert sources[1]["made_with"]["versions"] == {"keras": "3.15.1"}


def test_a_key_leads_to_its_number(folder, report_of):
    names = ["a/b", "c~1d", "e"]
    place = folder("x", evaluation=samples.evaluated(samples.predictions(0), names, data="x/y~0z"))
    found = json.loads((place / "evaluation.json").read_text())
    for key, number in report_of(place)[1]["numbers"].items():
        at = found
        for part in key.partition("#/")[2].split("/"):
            part = part.replace("~1", "/").replace("~0", "~")
            at = at[int(part)] if isinstance(at, list) else at[part]
        assert at == number["value"], key


EVIL = "<script>alert('x')</script><img src=http://x onerror=y>\"'&"


def test_names_are_text_and_nothing_is_loaded(folder, report_of):
    names = [EVIL, "dog", "owl"]
    found = samples.evaluated(samples.predictions(0), names, data=EVIL, model=EVIL)
    place = folder(
        "a",
        evaluation=found,
        results=samples.trained(name=EVIL),
        robustness=samples.examined(weather={EVIL: EVIL}),
        metrics=samples.CURVES,
    )
    page, _ = report_of(place, folder("b", parity=samples.compared(names=names)))
    assert EVIL in page.text and EVIL not in page.source
    active = {"script", "link", "iframe", "object", "embed", "base", "form", "img"}
    assert not active & {tag for tag, _ in page.tags}
    for tag, attributes in page.tags:
        assert not {"src", "srcset", "action", "data", "poster"} & set(attributes), tag
        assert not [name for name in attributes if name.startswith("on")]
        assert attributes.get("href", "#").startswith("#")
    assert not re.search(
        r"url\(|@import|http", page.source.partition("</style>")[0].split("<style>")[1]
    )
    (policy,) = [x["content"] for _, x in page.tags if "http-equiv" in x]
    assert policy == "default-src 'none'; style-src 'unsafe-inline'; img-src data:"


def test_the_picture_of_many_classes_is_inside(folder, report_of):
    found = samples.evaluated(samples.predictions(0))
    found.pop("confusion")
    place = folder("a", evaluation=found)
    (place / "confusion.png").write_bytes(b"\x89PNG")
    page, _ = report_of(place)
    (image,) = [attributes for tag, attributes in page.tags if tag == "img"]
    assert image["src"] == "data:image/png;base64,iVBORw==" and image["alt"]


def test_the_page_is_well_formed_for_everyone(everything, folder, report_of):
    page, _ = report_of(everything, folder("b", parity=samples.compared()))
    levels = [int(tag[1]) for tag, _ in page.tags if re.fullmatch(r"h\d", tag)]
    assert levels[0] == 1 and levels.count(1) == 1
    assert all(b <= a + 1 for a, b in itertools.pairwise(levels))
    assert dict(page.tags)["html"] == {"lang": "en"}
    assert all("scope" in attributes for tag, attributes in page.tags if tag == "th")
    ids = [attributes["id"] for _, attributes in page.tags if "id" in attributes]
    assert len(set(ids)) == len(ids)
    links = [attributes["href"][1:] for tag, attributes in page.tags if tag == "a"]
    assert links and set(links) <= set(ids)
    for tag, attributes in page.tags:
        if tag == "svg":
            assert attributes.get("aria-hidden") == "true" or attributes["aria-label"]
    assert "width=device-width" in str(page.tags)


# --- colors

CSS = (pathlib.Path(report.__file__).parent / "templates" / "style.css").read_text()


def palettes():
    """Colors by name: light, dark and print."""
    found = []
    for block in re.findall(r":root \{(.*?)\}", CSS, re.DOTALL):
        found.append(dict(re.findall(r"--([\w-]+): ([^;]+);", block)))
    return dict(zip(("light", "dark", "print"), found, strict=True))


def rgb(color):
    return np.array([int(color[i : i + 2], 16) / 255 for i in (1, 3, 5)])


def contrast(one, other):
    """WCAG 2.2's contrast ratio of two colors."""
    linear = [np.where(x <= 0.04045, x / 12.92, ((x + 0.055) / 1.055) ** 2.4) for x in (one, other)]
    low, high = sorted(float(x @ [0.2126, 0.7152, 0.0722]) for x in linear)
    return (high + 0.05) / (low + 0.05)


@pytest.mark.parametrize("name", ["light", "dark", "print"])
def test_contrast_is_that_of_wcag_aa(name):
    colors = palettes()[name]
    panel = rgb(colors["panel"])
    for ground in ("bg", "panel"):
        for text in ("ink", "soft", "accent"):
            assert contrast(rgb(colors[text]), rgb(colors[ground])) >= 4.5, (text, ground)
    chip, tint = (float(colors[x].rstrip("%")) / 100 for x in ("chip", "tint"))
    for tone in ("good", "warn", "bad", "soft"):
        tinted = chip * rgb(colors[tone]) + (1 - chip) * panel
        for text in (tone, "ink"):
            assert contrast(rgb(colors[text]), tinted) >= 4.5, (tone, text)
    darkest = tint * rgb(colors["accent"]) + (1 - tint) * panel
    assert contrast(rgb(colors["ink"]), darkest) >= 4.5
    for line in (f"s{index}" for index in range(6)):
        assert contrast(rgb(colors[line]), panel) >= 3.0, line
