"""Corrupted sets: made by the real library on a few images, kept, checked, and ready-made."""

import errno
import os
import pathlib
import signal
import subprocess
import sys
import threading
import time

import numpy as np
import pytest

from tfmp import data, errors
from tfmp.data import corrupted
from tfmp.data.corrupted import cache, made, making, worker
from tfmp.metrics.corruption import EXTRA, IMAGENET_C

ROOT = pathlib.Path(__file__).parents[2]
ALL = (*IMAGENET_C, *EXTRA)


def images_of(count=3, side=28, channels=1):
    """Disks of other sizes on a ramp."""
    y, x = np.mgrid[:side, :side]
    disks = [(x - 13) ** 2 + (y - 12) ** 2 < (5 + n % 7) ** 2 for n in range(count)]
    gray = np.uint8([np.where(disk, 210, 2 * (x + y)) for disk in disks])
    return np.repeat(gray[..., None], channels, -1)


def made_set(folder, images=None, corruptions=("contrast",), severities=(2,), **more):
    images = images_of() if images is None else images
    labels = np.arange(len(images)) % 3
    more = {"name": "disks", "cache_dir": folder} | more
    return corrupted.from_images(images, labels, corruptions, severities, **more)


def arrays(found):
    return {pair: np.load(found.folder.file(*pair)) for pair in found.wanted}


@pytest.fixture(scope="module")
def everything(tmp_path_factory):
    """All 19 by all cores; glass_blur is compiled in each process for some seconds."""
    found = made_set(tmp_path_factory.mktemp("all"), corruptions=ALL, severities=(1, 5))
    found.make()
    return found


def test_all_corruptions_of_gray_images(everything):
    clean = everything.images.astype(float)
    for (name, severity), images in arrays(everything).items():
        assert images.shape == clean.shape and images.dtype == np.uint8
        change = np.abs(images - clean).mean()
        # A gray image has no colors to take away.
        assert change < 150 and (change > 0.3 or (name, severity) == ("saturate", 1)), name
    by_severity = {
        name: [np.abs(np.load(everything.folder.file(name, s)) - clean).mean() for s in (1, 5)]
        for name in ALL
    }
    assert [name for name, (mild, hard) in by_severity.items() if mild >= hard] == []
    constants = everything.constants()
    assert constants["made_by"] == "imagecorruptions-imaug 1.1.5"
    assert constants["by_severity"]["gaussian_noise"] == {"c": "[0.08, 0.12, 0.18, 0.26, 0.38]"}
    assert all(values for values in constants["by_severity"].values())
    assert list(constants["by_severity"]) == list(ALL)
    (versions,) = constants["versions"]
    assert versions["imagecorruptions-imaug"] == "1.1.5" and versions["numpy"] == np.__version__


def test_the_same_whatever_the_number_of_processes(everything, tmp_path, monkeypatch):
    monkeypatch.setattr(making.os, "sched_getaffinity", lambda _: {0})
    monkeypatch.setattr(making, "TASK_PIXELS", 28 * 28)
    names = ("spatter", "impulse_noise", "glass_blur", "frost", "fog")
    again = made_set(tmp_path, corruptions=names, severities=(5,))
    again.make()
    for name in names:
        assert again.identity(name)["5"] == everything.identity(name)["5"]
    other = made_set(tmp_path, corruptions=("impulse_noise",), severities=(5,), seed=1)
    other.make()
    assert other.folder.path != again.folder.path
    assert other.identity("impulse_noise") != again.identity("impulse_noise")


def test_each_image_is_corrupted_on_its_own(tmp_path):
    twice = made_set(tmp_path, np.repeat(images_of(1), 2, 0), ("gaussian_noise",), (3,))
    twice.make()
    first, second = arrays(twice)["gaussian_noise", 3].astype(float)
    noise = np.stack([first, second]) - twice.images
    assert np.corrcoef(noise.reshape(2, -1))[0, 1] < 0.5
    # At full strength on gray, where the mean of three channels would have 0.67 of it.
    inner = noise[:, 15:, :8]
    assert np.abs(inner).mean() > 10


@pytest.mark.parametrize("shape", [(5, 7, 1), (8, 8, 3), (40, 33, 3), (1, 64, 1)])
def test_any_size(shape):
    import imagecorruptions

    image = np.random.default_rng(0).integers(256, size=shape).astype(np.uint8)
    for name in ("contrast", "jpeg_compression", "shot_noise", "motion_blur", "saturate"):
        function = imagecorruptions.corruption_dict[name]
        found = worker.corrupt(function, image, 3, 7)
        assert found.shape == shape and found.dtype == np.uint8
        np.testing.assert_array_equal(found, worker.corrupt(function, image, 3, 7))


def test_large_images_are_the_library_s_own():
    import imagecorruptions

    image = images_of(1, 48, 3)[0]
    for name in ("fog", "zoom_blur", "pixelate"):
        found = worker.corrupt(imagecorruptions.corruption_dict[name], image, 4, 11)
        np.random.seed(11)
        np.testing.assert_array_equal(found, imagecorruptions.corrupt(image, 4, name))


def test_no_drop_of_spatter_is_no_change():
    def spatter(picture, severity):
        return np.full((32, 32, 3), np.nan)

    image = images_of(1)[0]
    np.testing.assert_array_equal(worker.corrupt(spatter, image, 1, 0), image)


def test_batches_in_order(tmp_path):
    found = made_set(tmp_path, images_of(5), ("contrast", "brightness"), (1, 4))
    found.make()
    batches = list(found.batches("brightness", 4).as_numpy_iterator())
    assert [len(images) for images, *_ in batches] == [4, 4, 4]
    images, labels, weights = (np.concatenate(parts) for parts in zip(*batches, strict=True))
    assert weights.sum() == 10
    expected = [np.load(found.folder.file("brightness", severity)) for severity in (1, 4)]
    np.testing.assert_array_equal(images[:10], np.concatenate(expected))
    np.testing.assert_array_equal(labels[:10], [0, 1, 2, 0, 1] * 2)


def test_what_is_there_is_not_made_again(tmp_path, monkeypatch):
    found = made_set(tmp_path)
    found.make()
    sha256 = found.identity("contrast")
    monkeypatch.setattr(made, "installed_version", lambda: None)
    again = made_set(tmp_path)
    again.make()
    assert again.identity("contrast") == sha256 and again.constants()["seed"] == 0
    with pytest.raises(errors.UserError, match=r"pip install imagecorruptions-imaug==1\.1\.5"):
        made_set(tmp_path, corruptions=("contrast", "fog"))
    monkeypatch.setattr(made, "installed_version", lambda: "1.1.4")
    with pytest.raises(errors.UserError, match=r"Received: 1\.1\.4"):
        made_set(tmp_path, images_of(2))


def test_the_users_cache_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    path = made_set(None, name="folder:/my photos/a").folder.path
    assert path.parent == tmp_path / "tfmp" / "corrupted"
    assert path.name.startswith("folder_my_photos_a-") and not path.exists()


@pytest.mark.parametrize("damage", ["a byte", "its end", "its digest", "another shape"])
def test_a_damaged_file_is_named(tmp_path, damage):
    found = made_set(tmp_path)
    found.make()
    file = found.folder.file("contrast", 2)
    content = bytearray(file.read_bytes())
    if damage == "a byte":
        content[200] ^= 1
    elif damage == "its end":
        content = content[:-100]
    elif damage == "its digest":
        content[-1:] = b"g"
    else:
        np.save(file, found.images[:2])
        content = file.read_bytes() + content[-64:]
    file.write_bytes(content)
    with pytest.raises(errors.UserError, match=r"contrast-2.npy as it was written.*Remove") as said:
        found.identity("contrast")
    assert said.value.exit_status == 2
    file.unlink()
    found.make()
    found.identity("contrast")


def test_a_lost_list_of_origins_is_said(tmp_path):
    found = made_set(tmp_path)
    found.make()
    (found.folder.path / "made_with.json").write_text("{")
    with pytest.raises(errors.UserError, match=r"made_with.json to say.*Remove"):
        found.constants()


def test_a_full_disk(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(cache.os, "posix_fallocate", full)
    with pytest.raises(errors.TfmpError, match=r"No space left.*--cache_dir") as said:
        made_set(tmp_path).make()
    assert said.value.exit_status == 1
    monkeypatch.undo()
    usage = type("Usage", (), {"free": 100})
    monkeypatch.setattr(making.shutil, "disk_usage", lambda _: usage)
    with pytest.raises(errors.TfmpError, match="bytes of free space, and there are 100"):
        made_set(tmp_path).make()
    monkeypatch.undo()
    made_set(tmp_path).make()
    assert not list(tmp_path.rglob("*.partial"))


def test_a_folder_that_can_not_be_made(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(errors.TfmpError, match=r"Can't make corrupted images in .*file"):
        made_set(tmp_path / "file").make()
    with pytest.raises(errors.UserError, match=r"Can't use .*too long.*--cache_dir"):
        made_set(tmp_path / ("a" * 300))


def test_a_file_that_can_not_be_read(tmp_path):
    found = made_set(tmp_path)
    found.folder.file("contrast", 2).mkdir(parents=True)
    with pytest.raises(errors.UserError, match=r"Can't read .*contrast-2.npy"):
        found.identity("contrast")


def test_a_failing_process_says_why(tmp_path, monkeypatch):
    with pytest.raises(errors.TfmpError, match="KeyError: 'haze'"):
        made_set(tmp_path, corruptions=("haze",)).make()
    program = tmp_path / "killed.py"
    program.write_text("import os; os.kill(os.getpid(), 9)")
    monkeypatch.setattr(making, "WORKER", program)
    with pytest.raises(errors.TfmpError, match="ended by SIGKILL"):
        made_set(tmp_path).make()


def test_two_at_once_make_it_once(tmp_path, capsys):
    threads = [threading.Thread(target=made_set(tmp_path).make) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    out = capsys.readouterr().out
    assert "another process makes" in out and out.count("corrupted images in") == 1
    made_set(tmp_path).identity("contrast")


MAKE = """
import numpy as np
from tfmp import cli
from tfmp.data import corrupted

images = np.zeros((4_000, 8, 8, 1), np.uint8)
found = corrupted.from_images(
    images, np.zeros(4_000), ("gaussian_noise", "speckle_noise"), (1, 2, 3, 4, 5),
    name="black", cache_dir={folder!r},
)
try:
    found.make()
except KeyboardInterrupt:
    cli.leave(130, "interrupted")
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_stopped_in_the_middle(tmp_path, number):
    process = subprocess.Popen(
        [sys.executable, "-c", MAKE.format(folder=str(tmp_path))],
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        stderr=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        # A shell's background job ignores Ctrl-C, and so would the child of one.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    until = time.monotonic() + 60
    while not list(tmp_path.glob("*/*-1.npy")) and time.monotonic() < until:
        time.sleep(0.02)
    children = pathlib.Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    assert children
    process.send_signal(number)
    assert process.wait(10) == (130 if number == signal.SIGINT else -number)
    until = time.monotonic() + 10
    while any(alive(child) for child in children) and time.monotonic() < until:
        time.sleep(0.05)
    assert not [child for child in children if alive(child)]
    (folder,) = tmp_path.iterdir()
    assert list(folder.glob("*.partial")), "it was not in the middle"
    finished = [file.name.removesuffix(".npy").rsplit("-", 1) for file in folder.glob("*.npy")]
    images = np.zeros((4_000, 8, 8, 1), np.uint8)
    more = {"name": "black", "cache_dir": tmp_path}
    for name, severity in finished:
        again = corrupted.from_images(images, np.zeros(4_000), (name,), (severity,), **more)
        assert again.folder.path == folder
        again.identity(name)


def alive(pid):
    """Whether a process is there and no zombie."""
    try:
        return pathlib.Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


# --- ready-made


@pytest.fixture(scope="module")
def ready(tmp_path_factory):
    """Some of `cifar10_corrupted`, prepared: seven images, whose gray tells number and severity."""
    import tensorflow_datasets as tfds

    names = ["frosted_glass_blur_1", "frosted_glass_blur_2", "fog_1", "fog_2"]

    # TFDS has one of that name.
    class Cifar10Corrupted(tfds.core.GeneratorBasedBuilder, skip_registration=True):
        VERSION = tfds.core.Version("1.0.0")
        BUILDER_CONFIGS = [tfds.core.BuilderConfig(name=name) for name in names]

        def _info(self):
            features = {
                "image": tfds.features.Image(shape=(32, 32, 3)),
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
            level = names.index(self.builder_config.name)
            for number in range(7):
                image = np.full((32, 32, 3), 10 * number + level, np.uint8)
                yield number, {"image": image, "label": number % 3}

    folder = str(tmp_path_factory.mktemp("ready"))
    for name in names:
        Cifar10Corrupted(data_dir=folder, config=name).download_and_prepare()
    return folder


def open_ready(ready, **more):
    given = {"examples": 100, "shape": (32, 32, 3), "classes": 10, "data_dir": ready} | more
    names = given.pop("corruptions", ("glass_blur", "fog"))
    return corrupted.ready_made(given.pop("name", "cifar10_corrupted"), names, (1, 2), **given)


def test_ready_made_sets(ready):
    found = open_ready(ready)
    found.make()
    assert found.examples == 7
    assert found.identity("glass_blur")["2"] == "cifar10_corrupted/frosted_glass_blur_2/1.0.0"
    batches = list(found.batches("fog", 4).as_numpy_iterator())
    images, labels, weights = (np.concatenate(parts) for parts in zip(*batches, strict=True))
    kept = weights > 0
    numbers, levels = np.divmod(images[kept][:, 0, 0, 0], 10)
    np.testing.assert_array_equal(levels, [2] * 7 + [3] * 7)
    np.testing.assert_array_equal(numbers % 3, labels[kept])
    np.testing.assert_array_equal(labels[kept][:7], labels[kept][7:])
    assert found.constants()["kind"].startswith("CIFAR-10-C's")
    few = open_ready(ready, examples=3)
    assert few.examples == 3
    weights = np.concatenate([w for _, _, w in few.batches("fog", 4).as_numpy_iterator()])
    assert weights.sum() == 6


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ({"classes": 3}, "3 classes and 3 channels.*10 and 3"),
        ({"shape": (32, 32, 1)}, "10 classes and 1 channels.*10 and 3"),
        ({"corruptions": ("snow",)}, "cifar10_corrupted/snow_1"),
        ({"name": "cifar10_corruptd"}, "cifar10_corruptd"),
    ],
)
def test_ready_made_sets_that_do_not_fit(ready, more, said):
    with pytest.raises(data.DataError, match=said):
        open_ready(ready, **more)
