"""`python -m tfmp robustness` as a whole, on a run of the recipe on the digits."""

import json

import keras
import numpy as np
import pytest
import scipy.special
import sklearn.metrics
import tensorflow as tf

from tfmp import __main__, cli, data, errors, evaluation, policies
from tfmp.commands import robustness
from tfmp.commands.robustness import report, session


def run(*flags):
    return robustness.run(cli.parse(robustness.Config, list(flags)))


def test_inputs_by_the_script(program, trained, tmp_path):
    flags = ["--axes=input", f"--workdir={tmp_path / 'new' / 'out'}"]
    ended = program("scripts/robustness.py", str(trained), *flags)
    assert ended.returncode == 0, ended.stderr
    assert "retracing" not in ended.stderr and "Traceback" not in ended.stderr
    results = json.loads((tmp_path / "new" / "out" / "robustness.json").read_text())
    final = json.loads((trained / "results.json").read_text())["final"]
    assert results["accuracy"]["digits"] == pytest.approx(final["test_accuracy"], abs=1e-6)
    assert results["examples"] == {"digits": 360} and results["non_finite"] == {"digits": 0}
    found = results["input"]["digits"]
    assert {x["verdict"] for x in found.values() if x["kind"] == "dtype"} == {"same"}
    assert found["float32 0-1"]["verdict"] == "breaks"
    made = results["made_with"]
    assert made["policy"] == "float32" and made["jit_compile"] is False
    assert made["config"]["axes"] == ["input"] and made["versions"]["keras"] == keras.__version__
    for said in ("float32 0-1 ", "breaks", "robustness.json", "360 examples, float32, accuracy 0."):
        assert said in ended.stdout


@pytest.fixture(scope="module")
def letters(tmp_path_factory):
    """Two classes of color images of 12x12: stripes."""
    root = tmp_path_factory.mktemp("stripes")
    for name in ("left", "right"):
        for part in ("train", "test"):
            (root / part / name).mkdir(parents=True)
            for number in range(30):
                image = np.zeros((12, 12, 3), np.uint8)
                image[number % 3 :: 3] = 100 + number
                image = image if name == "left" else image.transpose(1, 0, 2)
                file = root / part / name / f"{number}.png"
                file.write_bytes(tf.io.encode_png(image).numpy())
    return f"folder:{root}"


def test_out_of_distribution(trained, letters, tmp_path, capsys, report_of):
    results = run(str(trained), "--axes=ood", f"--ood={letters},synthetic", f"--workdir={tmp_path}")
    found = results["ood"]["digits"]
    assert "input" not in results and found["examples"] == 360
    assert list(found["against"]) == [letters, "synthetic"]
    stripes = found["against"][letters]
    assert stripes["examples"] == 60 and stripes["non_finite"] == 0
    compiled = evaluation.forward(evaluation.load(trained).model)
    test = evaluation.outside_data([letters], data.load("digits"))[letters].test(60)
    seen = evaluation.predict(None, test, compiled=compiled).logits
    own = evaluation.predict(None, data.load("digits").test(360), compiled=compiled).logits
    both = np.concatenate([own, seen]).astype("float64")
    truth = np.repeat([1, 0], [360, 60])
    for score, values in {
        "max_softmax": scipy.special.softmax(both, 1).max(1),
        "energy": np.log(np.exp(both).sum(1)),
        "max_logit": both.max(1),
    }.items():
        auroc = sklearn.metrics.roc_auc_score(truth, values)
        assert stripes[score]["auroc"] == pytest.approx(auroc, abs=1e-4)
    out = capsys.readouterr().out
    for said in ("these 360 examples", "max-softmax", "by chance", "FPR 95", "synthetic, 222"):
        assert said in out
    assert f"{letters}, by chance" in report_of(tmp_path)[0].text


@pytest.fixture(scope="module")
def corrupt(trained, tmp_path_factory):
    """Flags for 100 images under two corruptions of ImageNet-C and an extra one."""
    cache = f"--cache_dir={tmp_path_factory.mktemp('cache')}"
    names = "--corruptions=speckle_noise,gaussian_noise,contrast"
    few = ["--severities=4,1", "--corruption_examples=100"]
    return [str(trained), "--axes=corruptions", names, *few, cache]


def test_corruptions(trained, corrupt, tmp_path, capsys):
    found = run(*corrupt, f"--workdir={tmp_path / 'a'}")["corruptions"]["digits"]
    assert list(found["errors"]) == ["gaussian_noise", "contrast", "speckle_noise"]
    assert found["examples"] == 100 and found["corruptions"] == 2 and "baseline" not in found
    # By hand, from the files as anyone can read them.
    chosen = evaluation.drawn(360, 100, 0)
    logits_of = evaluation.forward(evaluation.load(trained).model)
    images, labels = evaluation.sample(data.load("digits").test(360), 360, 100, 0)
    kept = np.load(tmp_path / "a" / "robustness.npz")["corrupted_correct"]
    assert kept.shape == (3, 2, 100) and chosen.sum() == 100
    for row, (name, by_severity) in enumerate(found["errors"].items()):
        for column, (severity, error) in enumerate(by_severity.items()):
            file = f"{found['constants']['folder']}/{name}-{severity}.npy"
            right = logits_of(tf.constant(np.load(file))).numpy().argmax(1) == labels
            assert error == pytest.approx(1 - right.mean(), abs=1e-9)
            np.testing.assert_array_equal(kept[row, column], right)
            assert len(found["images"][name][severity]) == 64
    right = logits_of(tf.constant(images)).numpy().argmax(1) == labels
    assert found["clean_error"] == pytest.approx(1 - right.mean(), abs=1e-9)
    errors_of = {name: list(values.values()) for name, values in found["errors"].items()}
    mean = np.mean([errors_of["gaussian_noise"], errors_of["contrast"]])
    assert found["mean_error"] == pytest.approx(mean)
    assert found["constants"]["by_severity"]["contrast"] == {"c": "[0.4, 0.3, 0.2, 0.1, 0.05]"}
    out = capsys.readouterr().out
    for said in (
        "making 6 x 100",
        "mean of 2 of the 15",
        "needs a --baseline",
        "ImageNet-C's, for",
    ):
        assert said in out
    before = f"--baseline={tmp_path / 'a' / 'robustness.json'}"
    found = run(*corrupt, before, f"--workdir={tmp_path / 'b'}")["corruptions"]["digits"]
    assert found["baseline"]["mce"] == found["baseline"]["relative_mce"] == 1
    out = capsys.readouterr().out
    assert "making" not in out and "100.0 %" in out


def test_mce_of_another_model(trained, sure, corrupt, tmp_path):
    """The same model in half precision, which is nearly as often right."""
    _, *flags = corrupt
    theirs = run(*corrupt, f"--workdir={tmp_path / 'a'}")["corruptions"]["digits"]
    flags += ["--dataset=digits", f"--baseline={trained}", "--jit_compile=false"]
    found = run(sure, *flags, f"--workdir={tmp_path / 'b'}")["corruptions"]["digits"]
    baseline = found["baseline"]
    assert baseline["mean_errors"] == pytest.approx(theirs["mean_errors"], abs=1e-9)
    assert baseline["clean_error"] == theirs["clean_error"]
    ratios = [
        found["mean_errors"][name] / theirs["mean_errors"][name]
        for name in ("gaussian_noise", "contrast")
    ]
    assert baseline["mce"] == pytest.approx(np.mean(ratios))
    low, high = found["intervals"]["mce"]
    assert low < baseline["mce"] < high


def test_without_the_library(monkeypatch):
    monkeypatch.setattr(robustness, "_has_library", lambda: False)
    assert robustness.Config().chosen == ("input", "adversarial")
    for flag in ("--axes=corruptions", "--corrupted=cifar10_corrupted", "--baseline=runs/a"):
        assert "corruptions" in cli.parse(robustness.Config, [flag]).chosen
    monkeypatch.setattr(robustness, "_has_library", lambda: True)
    assert robustness.Config().chosen == ("input", "corruptions", "adversarial")


@pytest.fixture(scope="module")
def faded(tmp_path_factory):
    """A set of TFDS, prepared: the digits at a quarter of their contrast."""
    import tensorflow_datasets as tfds

    images, labels, _ = next(iter(data.load("digits").test(360)))

    class DigitsCorrupted(tfds.core.GeneratorBasedBuilder, skip_registration=True):
        VERSION = tfds.core.Version("1.0.0")
        BUILDER_CONFIGS = [tfds.core.BuilderConfig(name="contrast_3")]

        def _info(self):
            features = {
                "image": tfds.features.Image(shape=(8, 8, 1)),
                "label": tfds.features.ClassLabel(num_classes=10),
            }
            return tfds.core.DatasetInfo(
                builder=self,
                features=tfds.features.FeaturesDict(features),
                supervised_keys=("image", "label"),
            )

        def _split_generators(self, dl_manager):
            return {"test": self._generate_examples()}

        def _generate_examples(self):
            for number, image in enumerate(images.numpy()):
                yield number, {"image": image // 4, "label": int(labels[number])}

    folder = tmp_path_factory.mktemp("tfds")
    DigitsCorrupted(data_dir=folder).download_and_prepare()
    return str(folder), images.numpy() // 4, labels.numpy()


def test_a_ready_made_set(trained, faded, tmp_path, capsys):
    folder, images, labels = faded
    flags = ["--corrupted=digits_corrupted", "--corruptions=contrast", "--severities=3"]
    flags += [f"--data_dir={folder}", "--axes=corruptions", f"--workdir={tmp_path / 'out'}"]
    results = run(str(trained), *flags)
    found = results["corruptions"]["digits"]
    logits_of = evaluation.forward(evaluation.load(trained).model)
    right = logits_of(tf.constant(images)).numpy().argmax(1) == labels
    assert found["examples"] == 360
    assert found["errors"] == {"contrast": {"3": pytest.approx(1 - right.mean(), abs=1e-9)}}
    assert found["clean_error"] == pytest.approx(1 - results["accuracy"]["digits"])
    assert found["images"] == {"contrast": {"3": "digits_corrupted/contrast_3/1.0.0"}}
    assert "the data set's own" in capsys.readouterr().out


def test_a_baseline_of_other_images(trained, corrupt, tmp_path):
    run(*corrupt, f"--workdir={tmp_path / 'a'}")
    file = f"--baseline={tmp_path / 'a' / 'robustness.json'}"
    for other in ("--severities=4", "--seed=1", "--corruptions=fog"):
        with pytest.raises(errors.UserError, match="of the same images under"):
            run(*corrupt, file, other, f"--workdir={tmp_path / 'b'}")


def test_a_lost_list_of_origins_is_said_before_predictions(trained, tmp_path, capsys):
    flags = ["--axes=corruptions", "--corruptions=contrast", "--severities=1"]
    flags += ["--corruption_examples=5", f"--cache_dir={tmp_path / 'cache'}"]
    run(str(trained), *flags, f"--workdir={tmp_path / 'a'}")
    next(tmp_path.glob("cache/*/made_with.json")).unlink()
    capsys.readouterr()
    with pytest.raises(errors.UserError, match=r"made_with.json to say"):
        run(str(trained), *flags, f"--workdir={tmp_path / 'b'}")
    assert "contrast ..." not in capsys.readouterr().out


ATTACKS = ["--axes=adversarial", "--linf=16,2", "--l2=64", "--steps=5", "--attack_examples=100"]


@pytest.fixture(scope="module")
def sure(trained, tmp_path_factory):
    """The trained model in float16, with logits 20 times as large: no more right, but sure."""
    model = keras.saving.load_model(trained / "model.keras")
    half = policies.set_policy(model, "mixed_float16")
    with policies.scope("mixed_float16"):
        head = keras.layers.Dense(10, name="half_head")
        logits = keras.layers.Rescaling(20.0, dtype="float32")(head(half.layers[-1].input))
    head.set_weights(half.layers[-1].get_weights())
    file = tmp_path_factory.mktemp("sure") / "sure.keras"
    keras.Model(half.inputs[0], logits).save(file)
    return str(file)


def test_half_precision_that_masks_gradients_is_found(sure, tmp_path, capsys, report_of):
    flags = ["--dataset=digits", *ATTACKS, "--jit_compile=false", "--batch_size=64"]
    results = run(sure, *flags, f"--workdir={tmp_path / 'out'}")
    found = results["adversarial"]["digits"]
    assert results["made_with"]["policy"] == "mixed_float16" and found["examples"] == 100
    assert list(found["gradients"]) == ["mixed_float16", "float32"]
    assert list(found["linf"]["worst"]) == ["2", "16"] and list(found["l2"]["worst"]) == ["64"]
    assert found["gradients"]["mixed_float16"]["zero"] > 50 > found["gradients"]["float32"]["zero"]
    masked, true = (found["linf"][f"pgd {policy}"]["16"] for policy in found["gradients"])
    assert found["accuracy"] >= masked > true + 0.2 and true < found["linf"]["noise"]["16"]
    assert found["linf"]["worst"]["16"] <= true
    where = [(one["norm"], one["epsilon"], one["gradients"]) for one in found["differences"]]
    assert ("linf", 16, "mixed_float16") in where and ("linf", 2, "mixed_float16") not in where
    assert all(check["holds"] for check in found["checks"])
    out = capsys.readouterr().out
    for said in (
        "linf, x/255",
        "pgd mixed_float16",
        "checks of the attacks hold",
        "gradients diff",
    ):
        assert said in out
    shown = report_of(tmp_path / "out")[0].text
    for said in ("Gradients differ: under PGD, L-inf 16/255", "Under attack, L2 up to 64/255"):
        assert said in shown


def test_attacks_are_the_same_again(trained, tmp_path, capsys):
    flags = [*ATTACKS, "--linf=16", "--attack_examples=40"]
    found = [
        run(str(trained), *flags, f"--seed={seed}", f"--workdir={tmp_path / name}")["adversarial"]
        for name, seed in [("a", 0), ("b", 0), ("c", 2**40)]
    ]
    assert found[0] == found[1] != found[2]
    assert "pgd float32" in capsys.readouterr().out


def test_what_is_said_of_masked_gradients():
    one = {"norm": "linf", "epsilon": 8.0, "gradients": "mixed_float16", "p": 1e-9}
    found = {
        "examples": 200,
        "accuracy": 1.0,
        "gradients": {
            "mixed_float16": {"zero": 200, "non_finite": 3},
            "float32": {"zero": 0, "non_finite": 0},
        },
        "linf": {"worst": {"8": 0.0}},
        "differences": [one | {"accuracy": {"mixed_float16": 0.9, "float32": 0.0}}],
        "checks": [{"norm": "l2", "check": "noise is weaker", "holds": False, "p": 1e-5}],
    }
    said = "\n".join(report.TABLES["adversarial"](found))
    assert "gradients in mixed_float16 are zero for 200 of 200 images" in said
    assert "non-finite for 3 of 200" in said and "in float32 are" not in said
    assert "0.9000 by mixed_float16 and 0.0000 by float32" in said
    assert "more robust than it is" in said and "check failed, l2: noise is weaker" in said


def test_weights_that_are_not_finite(trained, tmp_path, capsys):
    model = keras.saving.load_model(trained / "model.keras")
    kernel = model.layers[-1].kernel
    kernel.assign(np.full_like(kernel.numpy(), np.nan))
    model.save(tmp_path / "nan.keras")
    flags = ["--dataset=digits", "--l2=", "--linf=8", "--steps=2", "--attack_examples=40"]
    flags += ["--corruptions=contrast", "--severities=1", f"--cache_dir={tmp_path / 'cache'}"]
    flags.append(f"--workdir={tmp_path / 'out'}")
    with pytest.raises(errors.NonFiniteError, match="360 of 360 test images") as ended:
        run(str(tmp_path / "nan.keras"), *flags)
    assert ended.value.exit_status == 3
    results = json.loads((tmp_path / "out" / "robustness.json").read_text())
    assert results["non_finite"] == {"digits": 360} and results["accuracy"] == {"digits": 0}
    assert results["input"]["digits"]["uint8 0-255"]["verdict"] == "breaks"
    found = results["corruptions"]["digits"]
    assert found["errors"] == {"contrast": {"1": 1}} and found["non_finite"] == 360
    out = capsys.readouterr().out
    assert "360 not finite" in out and "the checks of the attacks say nothing" in out


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        ([], "Expected --model"),
        (["--model=/no/such/run"], "Received: /no/such/run"),
        (["RUN", "--axes=noise"], "--axes out of"),
        (["RUN", "--axes=input,input"], "each once"),
        (["RUN", "--axes=ood"], "Expected --ood with --axes=ood"),
        (["RUN", "--axes=input", "--ood=synthetic"], "--axes with ood where --ood is given"),
        (["RUN", "--ood=digits"], "in distribution. Received: digits"),
        (["RUN", "--ood=no_such_set"], "no_such_set"),
        (["RUN", "--linf=1,0"], "--linf above 0"),
        (["RUN", "--linf=256"], "up to 255"),
        (["RUN", "--l2=nan"], "--l2 above 0"),
        (["RUN", "--l2=inf"], "--l2 above 0"),
        (["RUN", "--l2=far"], "far"),
        (["RUN", "--linf=", "--l2="], "--linf or --l2"),
        (["RUN", "--corruptions=haze"], "--corruptions out of imagenet_c, extra, gaussian_noise"),
        (["RUN", "--corruptions=", "--axes=corruptions"], "--corruptions for the axis"),
        (["RUN", "--severities=0"], "--severities out of 1, 2, 3, 4 and 5"),
        (["RUN", "--severities=1,1"], "each once"),
        (["RUN", "--corruption_examples=0"], "--corruption_examples of at least 1"),
        (["RUN", "--corrupted=mnist_c"], "mnist_c/"),
        (["RUN", "--axes=input", "--baseline=RUN"], "--axes with corruptions where --baseline"),
        (["RUN", "--baseline=alexnet"], "imagenet2012_corrupted at 224 px"),
        (["RUN", "--baseline=/no/such/run"], "Received: /no/such/run"),
        (["RUN", "--baseline=FULL/robustness.json"], "with the corruptions of digits"),
        (["RUN", "--steps=0"], "--steps of at least 1"),
        (["RUN", "--restarts=0"], "--restarts of at least 1"),
        (["RUN", "--attack_examples=0"], "--attack_examples of at least 1"),
        (["RUN", "--batch_size=0"], "--batch_size of at least 1"),
        (["RUN", "--dataset=folder:/no/such/folder"], "/no/such/folder"),
        (["RUN", "--workdir=/proc/none"], "Can't write to --workdir=/proc/none"),
        (["RUN", "--workdir=FULL"], "holds an evaluation"),
    ],
)
def test_a_mistake_is_one_line_and_status_2(flags, said, trained, tmp_path, monkeypatch, capsys):
    full = tmp_path / "full"
    full.mkdir()
    (full / "robustness.json").write_text("{}")
    names = {"RUN": trained}
    words = [str(names.get(word, word)).replace("FULL", str(full)) for word in flags]
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as ended:
        __main__.main(["robustness", *words])
    err = capsys.readouterr().err
    assert ended.value.code == 2
    assert said in err and err.startswith("error: ") and err.count("\n") == 1
    assert [path.name for path in tmp_path.iterdir()] == ["full"], "something was left behind"


def test_a_full_disk_is_one_line(trained, tmp_path, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(session.files, "write_json", full)
    with pytest.raises(errors.TfmpError, match="No space left on device") as ended:
        run(str(trained), "--axes=input", f"--workdir={tmp_path}")
    assert ended.value.exit_status == 1
