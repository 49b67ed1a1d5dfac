"""Images of one's own: arrays, .npz, folders, datasets of other libraries."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
import pytest
from PIL import ExifTags, Image, PngImagePlugin

from robust_jax import data, extensions
from robust_jax.config import base
from robust_jax.config.build import load_dataset
from robust_jax.data import stored

DRAW = np.random.default_rng(0)
IMAGES, LABELS = DRAW.integers(0, 256, (30, 6, 5, 3), np.uint8), np.arange(30) % 3


def test_arrays_and_the_splits_taken_from_them():
    dataset = data.dataset((IMAGES, LABELS))
    assert [len(s) for s in (dataset.train, dataset.validation, dataset.test)] == [22, 2, 6]
    assert dataset.num_classes == 3 and dataset.class_names is None
    other = data.dataset((IMAGES, LABELS), seed=1)
    np.testing.assert_array_equal(dataset.test.ids, other.test.ids)
    for rounding in (0, 1e-3, -1e-3):  # less than half a byte
        floats = IMAGES / 255 + rounding
        np.testing.assert_array_equal(data.from_arrays(floats, LABELS).take(np.arange(30))["image"], IMAGES)


@pytest.mark.parametrize(
    ("images", "labels", "message"),
    [
        (IMAGES * 1.0, LABELS, "floats in \\[0, 1\\]"), (IMAGES / 255 - 3e-3, LABELS, "pixels from -0.003 to"),
        (np.where(IMAGES, np.nan, 0.0), LABELS, "pixels from nan"), (IMAGES, LABELS * 1.0, "whole numbers"),
        (IMAGES, LABELS * 0, "one class only"), (IMAGES, LABELS * 0 + 1, "one class only"),
        (IMAGES, LABELS - 1, "label -1"), (IMAGES, np.eye(3, dtype=int)[LABELS], r"one-hot labels give labels.argmax"),
        ([Image.fromarray(image).convert("P") for image in IMAGES], LABELS, "images are PIL's, .*from_iterable"),
        (IMAGES, LABELS[1:], r"labels must be whole numbers \[30\]"),
        (IMAGES, np.where(LABELS == 2, 2**32 - 1, LABELS), "has the label 4294967295: number classes from 0"),
    ],
)  # fmt: skip
def test_arrays_that_are_refused(images, labels, message):
    with pytest.raises(ValueError, match=message):
        data.from_arrays(images, labels)


def test_images_that_are_black_and_classes_that_are_absent_are_told(caplog):
    data.from_arrays((IMAGES > 99).astype(np.uint8), LABELS + 1)
    assert "no pixel is brighter than 1 of 255" in caplog.text and "no image has the labels [0]" in caplog.text


def test_half_precision_is_taken_and_statistics_are_of_a_split():
    half = jnp.asarray(IMAGES / 255, jnp.bfloat16)
    expected = np.rint(255 * np.asarray(half, np.float32))
    np.testing.assert_array_equal(data.from_arrays(half, LABELS).take(np.arange(30))["image"], expected)
    with pytest.raises(ValueError, match="is no split: of a dataset give its training split, dataset.train"):
        data.statistics(data.dataset((IMAGES, LABELS)))


def test_a_validation_split_is_named():
    """(train, validation, test), as in `robust_jax.train`, would be (train, test, validation) here."""
    pair = (IMAGES, LABELS)
    with pytest.raises(TypeError, match="positional"):
        data.dataset(pair, pair, pair)
    with pytest.raises(ValueError, match=r"dataset: train is uint8 .*give a Source, or a tuple \(images, labels\)"):
        data.dataset(IMAGES, LABELS)


def test_splits_under_other_names_are_refused(tmp_path):
    """They would be passed over, and a test split cut from the training images."""
    for others in (
        {"x_test": IMAGES},
        {"X_test": IMAGES, "Y_test": LABELS},
        {"images_test": IMAGES, "labels_test": LABELS},
    ):
        np.savez(tmp_path / "a.npz", x_train=IMAGES, y_train=LABELS, notes=np.arange(3), **others)
        with pytest.raises(ValueError, match=r"a.npz has the arrays .*est.*beside.*no split by their names"):
            data.load(f"npz:{tmp_path}/a.npz")
    for split in ("train", "Test"):
        for name in ("a", "b"):
            (tmp_path / "pets" / split / name).mkdir(parents=True)
    with pytest.raises(ValueError, match="has the folder 'Test' beside 'train': it is no split.*test, testing"):
        data.load(f"folder:{tmp_path}/pets")


def test_npz(tmp_path):
    np.savez_compressed(
        tmp_path / "a.npz", x_train=IMAGES, y_train=LABELS[:, None], x_test=IMAGES[:9], y_test=LABELS[:9]
    )
    dataset = data.load(f"npz:{tmp_path}/a.npz")
    assert (len(dataset.train), len(dataset.test)) == (27, 9)
    np.savez(tmp_path / "b.npz", images=IMAGES)
    (tmp_path / "c.npz").write_bytes((tmp_path / "a.npz").read_bytes()[:-50])
    for name, message in (("b", "b.npz has the arrays"), ("c", "c.npz cannot be read"), ("d", "there is no .*d.npz")):
        with pytest.raises(ValueError, match=message):
            data.load(f"npz:{name}.npz", tmp_path)


def picture(path, image, mode=None):
    path.parent.mkdir(parents=True, exist_ok=True)
    made = Image.fromarray(image)
    (made.convert(mode) if mode else made).save(path)


@pytest.fixture
def pets(tmp_path):
    for i, (image, label) in enumerate(zip(IMAGES, LABELS, strict=True)):
        picture(tmp_path / "pets" / ("cat", "dog", "eel")[label] / f"{i:02}.png", image)
    return tmp_path / "pets"


def test_a_folder_without_splits(pets):
    dataset = data.load(f"folder:{pets}")
    assert dataset.class_names == ("cat", "dog", "eel") and dataset.image_shape == (6, 5, 3)
    assert [len(s) for s in (dataset.train, dataset.validation, dataset.test)] == [22, 2, 6]
    for split in (dataset.train, dataset.test):
        for i, image, label in zip(*(split.take(np.arange(6))[k] for k in ("id", "image", "label")), strict=True):
            np.testing.assert_array_equal(image, IMAGES[label == LABELS][i - 10 * label])


@pytest.mark.parametrize("resize", ["crop", "stretch", "pad"])
def test_a_folder_with_splits_sizes_and_kinds(tmp_path, resize):
    for split in ("train", "val", "test"):
        for name, mode in (("a", "RGBA"), ("b", "L"), ("c", "P")):
            picture(tmp_path / split / name / "1.png", np.full((8, 12, 3), 200, np.uint8), mode)
            picture(tmp_path / split / name / "2.png", np.full((9, 4, 3), 200, np.uint8))
    config = base(f"folder:{tmp_path}")
    with pytest.raises(ValueError, match="2 sizes, height x width: .*8x12.*.png.*give data.size"):
        load_dataset(config)
    config.data.update(size=6, resize=resize)
    dataset = load_dataset(config)
    assert dataset.image_shape == (6, 6, 3) and len(dataset.validation) == 6
    image = dataset.train[0]["image"]
    assert image[3, 3, 0] in (199, 200, 201) and (image[0, 0, 0] == 0) == (resize == "pad")


def test_grey_folders_stay_grey_and_transparency_is_white(tmp_path):
    for name in "ab":
        picture(tmp_path / name / "1.png", np.zeros((4, 4), np.uint8))
        picture(tmp_path / name / "2.png", np.zeros((4, 4, 2), np.uint8))
    dataset = data.load(f"folder:{tmp_path}", validation=0.0, test=0.25)
    assert dataset.image_shape == (4, 4, 1)
    values = {
        int(s.take(np.asarray([i]))["image"].mean()) for s in (dataset.train, dataset.test) for i in range(len(s))
    }
    assert values == {0, 255}


def test_folders_that_are_refused(pets):
    broken = pets / "cat" / "00.png"
    whole = broken.read_bytes()
    broken.write_bytes(b"broken")
    with pytest.raises(ValueError, match="cat/00.png cannot be read as an image"):
        data.load(f"folder:{pets}")
    broken.write_bytes(whole[:-40])
    dataset = data.load(f"folder:{pets}")
    with pytest.raises(ValueError, match="cat/00.png is damaged"):
        [s.take(np.arange(len(s))) for s in (dataset.train, dataset.validation, dataset.test)]
    broken.with_suffix(".txt").write_text("")
    with pytest.raises(ValueError, match="00.txt is no image"):
        data.load(f"folder:{pets}")
    broken.with_suffix(".txt").unlink()
    (pets / "cat" / "more").symlink_to(pets / "dog")
    with pytest.raises(ValueError, match="cat/more is a link to a folder or to nothing"):
        data.load(f"folder:{pets}")
    (pets / "cat" / "more").unlink()
    (pets / "fox").mkdir()
    with pytest.raises(ValueError, match="fox has no images"):
        data.load(f"folder:{pets}")
    with pytest.raises(ValueError, match="0 folders of classes"):
        data.load(f"folder:{pets / 'fox'}")


def test_a_split_may_lack_classes_and_names_them_in_either_form_of_accents(tmp_path, caplog):
    for split, names in (("train", ("ant", "cafe\u0301", "zebra")), ("test", ("zebra", "caf\u00e9"))):
        for name in names:
            picture(tmp_path / split / name / "1.png", IMAGES[0])
    dataset = data.load(f"folder:{tmp_path}", validation=0.0)
    assert dataset.class_names == ("ant", "caf\u00e9", "zebra") and "no images of the classes ['ant']" in caplog.text
    assert sorted(dataset.test.take(np.arange(2))["label"].tolist()) == [1, 2]
    picture(tmp_path / "test" / "bee" / "1.png", IMAGES[0])
    with pytest.raises(ValueError, match=r"test has the classes \['bee'\], and .*train has not: \['ant', 'caf"):
        data.load(f"folder:{tmp_path}")
    picture(tmp_path / "train" / "caf\u00e9" / "1.png", IMAGES[0])
    with pytest.raises(ValueError, match="train has two folders whose names differ only in how accents are stored"):
        data.load(f"folder:{tmp_path}")


XMP = (
    '<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">'
    '<rdf:Description xmlns:tiff="http://ns.adobe.com/tiff/1.0/" tiff:Orientation="6"/></rdf:RDF></x:xmpmeta>'
)


@pytest.mark.parametrize("suffix", ["png", "tiff", "webp", "xmp.png"])
def test_photos_are_turned_as_their_camera_says(tmp_path, suffix):
    exif, xmp = Image.Exif(), PngImagePlugin.PngInfo()
    exif[ExifTags.Base.Orientation] = 6  # the camera stood on its left side: the picture is turned to the right
    xmp.add_itxt("XML:com.adobe.xmp", XMP)
    for i, (image, label) in enumerate(zip(IMAGES, LABELS, strict=True)):
        path = tmp_path / "ab"[label % 2] / f"{i:02}.{suffix}"
        path.parent.mkdir(exist_ok=True)
        how = {"png": dict(exif=exif), "webp": dict(exif=exif, lossless=True), "xmp.png": dict(pnginfo=xmp)}
        Image.fromarray(image).save(path, **how.get(suffix, dict(exif=exif)))
    train, test = stored.folder(str(tmp_path))
    assert train.image_shape == (5, 6, 3) and len(train) + len(test) == 30
    by_class = IMAGES[np.argsort(LABELS % 2, kind="stable")]
    for split in (train, test):
        batch = split.take(np.arange(len(split)))
        for i, image in zip(batch["id"], batch["image"], strict=True):
            np.testing.assert_array_equal(image, np.rot90(by_class[i], -1))


def test_hidden_folders_are_passed_over(pets):
    picture(pets / "cat" / ".copies" / "00.png", IMAGES[0])
    dataset = data.load(f"folder:{pets}")
    assert sum(map(len, (dataset.train, dataset.validation, dataset.test))) == 30


@pytest.mark.parametrize("names", [("Train", "Test"), ("training_set", "test_set"), ("train1", "VALID")])
def test_folders_that_look_like_splits_are_no_classes(tmp_path, names):
    for name in names:
        for kind in "ab":
            picture(tmp_path / name / kind / "1.png", IMAGES[0])
    with pytest.raises(ValueError, match="look like splits, not like classes: the names of splits are train"):
        data.load(f"folder:{tmp_path}")


class Torch:
    classes = ("cat", "dog", "eel")

    def __len__(self):
        return 30

    def __getitem__(self, i):
        return IMAGES[i].transpose(2, 0, 1).astype(np.float32) / 255, LABELS[i]


class Face:
    features = {"image": None, "label": type("Label", (), {"names": ["cat", "dog", "eel"]})}

    def __len__(self):
        return 30

    def __getitem__(self, i):
        return {"image": Image.fromarray(IMAGES[i]), "label": int(LABELS[i])}


@pytest.mark.parametrize(
    "make",
    [lambda: data.from_torch(Torch()), lambda: data.from_huggingface(Face()),
     lambda: data.from_iterable(((x, y) for x, y in zip(IMAGES, LABELS, strict=True)), class_names=Torch.classes)],
)  # fmt: skip
def test_datasets_of_other_libraries(make):
    source = make()
    batch = source.take(np.arange(30))
    np.testing.assert_array_equal(batch["image"], IMAGES)
    np.testing.assert_array_equal(batch["label"], LABELS)
    assert source.class_names == Torch.classes


def test_classes_in_another_order_are_other_classes():
    one, other = Torch(), Torch()
    other.classes = np.array(["dog", "cat", "eel"])
    with pytest.raises(ValueError, match=r"label 0 is 'cat' in .* and 'dog' in .* the same list of names"):
        data.dataset(data.from_torch(one), data.from_torch(other))
    other.classes = np.array(Torch.classes)
    assert data.dataset(data.from_torch(one), data.from_torch(other)).class_names == Torch.classes
    for classes in (3, {0: "cat", 1: "dog", 2: "eel"}):
        other.classes = classes
        assert data.from_torch(other).class_names is None
        with pytest.raises(ValueError, match="class_names is .*: give a list, one name for each class"):
            data.from_torch(other, class_names=classes)


def of_sizes(*sizes):
    draw = np.random.default_rng(1)
    return [(draw.integers(0, 256, (*size, 3), np.uint8), i % 2) for i, size in enumerate(sizes)]


class Pairs(list):
    """A dataset as PyTorch's."""


class Rows(list):
    """A split of Hugging Face's datasets."""

    features = {"image": None, "label": None}


@pytest.mark.parametrize("resize", ["crop", "stretch", "pad"])
def test_images_of_several_sizes_are_resized_alike_from_everywhere(tmp_path, resize):
    pairs = of_sizes((8, 12), (9, 6), (5, 5), (12, 8))
    for i, (image, label) in enumerate(pairs):
        picture(tmp_path / "ab"[label] / f"{i}.png", image)
    (expected, *_) = stored.folder(str(tmp_path), size=6, resize=resize, test=0.25)
    source = data.from_iterable((pair for pair in pairs), size=6, resize=resize)
    torch = data.from_torch(Pairs((np.moveaxis(x, -1, 0) / 255, y) for x, y in pairs), size=6, resize=resize)
    face = data.from_huggingface(
        Rows({"image": Image.fromarray(x), "label": y} for x, y in pairs), size=6, resize=resize
    )
    taken = source.take(np.arange(4))["image"]
    assert taken.shape == (4, 6, 6, 3)
    for other in (torch, face):
        np.testing.assert_array_equal(taken, other.take(np.arange(4))["image"])
    in_folder = taken[[0, 2, 1, 3]]  # by class
    batch = expected.take(np.arange(3))
    np.testing.assert_array_equal(batch["image"], in_folder[batch["id"]])


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda pairs: data.from_iterable(pairs), "give size=; resize says how"),
        (lambda pairs: data.from_torch(Pairs(pairs)), "give size=; resize says how"),
        (
            lambda pairs: data.from_arrays(*zip(*pairs, strict=True)),
            r"data.from_iterable\(zip\(images, labels\), size=",
        ),
    ],
)
def test_several_sizes_without_a_size_are_told(make, message):
    with pytest.raises(ValueError, match=message) as caught:
        make(of_sizes((8, 12), (9, 4), (8, 12)))
    assert "2 sizes, height x width: 8x12" in str(caught.value) and "(2, as train[0])" in str(caught.value)


def test_grey_and_colour_of_several_sizes():
    pairs = [(np.full((4, 6), 100, np.uint8), 0), (np.full((5, 5, 3), (10, 20, 30), np.uint8), 1)]
    images = data.from_iterable(pairs, size=4).take(np.arange(2))["image"]
    np.testing.assert_array_equal(
        images, np.broadcast_to(np.array([[100] * 3, [10, 20, 30]])[:, None, None], images.shape)
    )
    assert data.from_iterable([*pairs[:1], (np.zeros((3, 3), np.uint8), 1)], size=4).image_shape == (4, 4, 1)


def test_statistics():
    mean, std = data.statistics(data.from_arrays(IMAGES, LABELS))
    np.testing.assert_allclose(mean, IMAGES.mean((0, 1, 2)) / 255, atol=1e-4)
    np.testing.assert_allclose(std, IMAGES.std((0, 1, 2)) / 255, atol=1e-4)


def test_options_that_change_nothing_are_refused():
    with pytest.raises(ValueError, match="data.size=5: digits has images of one size"):
        data.load("digits", size=5)
    assert data.load("digits").class_names == tuple("0123456789")


def test_a_folder_is_no_module_to_be_trusted():
    extensions.check_trust("config.json", {"data": {"name": "folder:pets"}, "more": {"name": "npz:pets.npz"}}, ())
    for kind in extensions.FILES:
        assert callable(getattr(stored, kind))


def test_pictures_have_class_names(tmp_path, monkeypatch):
    from robust_jax.evaluation import report
    from robust_jax.evaluation.drawing import Picture

    seen = {}
    monkeypatch.setattr(report.pictures, "adversarial_grid", lambda *_, **given: seen.update(given) or Picture())
    sample = {"clean": np.zeros((1, 2, 2, 1)), "delta": np.zeros((1, 2, 2, 1))}
    outcome = type("Outcome", (), {"sample": sample, "hardest": {}})
    measured = type("Measured", (), {"arrays": lambda self: {}, "attacks": {"pgd": outcome}})()
    attack = {"threat": {"perturbation": "additive", "norm": "linf", "radius": 0.1}, "settings": {"attack": "pgd"}}
    report.write(tmp_path, {"attacks": {"pgd": attack}, "clean": {"n": 1}, "class_names": ["cat", "dog"]}, measured, 1)
    assert seen["class_names"] == ["cat", "dog"]


def test_the_first_examples_are_of_all_classes_though_files_are_sorted_by_class(pets, tmp_path):
    order = np.argsort(LABELS, kind="stable")
    np.savez(tmp_path / "sorted.npz", images=IMAGES[order], labels=LABELS[order])
    made = [
        data.load(f"folder:{pets}", validation=0.3), data.load(f"npz:{tmp_path}/sorted.npz", validation=0.3),
        data.dataset((IMAGES[order], LABELS[order]), (IMAGES[order], LABELS[order]),
                     validation=(IMAGES[order], LABELS[order])),
    ]  # fmt: skip
    for dataset in made:
        for split in (dataset.train, dataset.validation, dataset.test):
            few = split.take(np.arange(len(split)))["label"]
            # Sorted, the first half has two classes at most.
            assert len(set(few[: len(few) // 2 + 2])) == 3 and (np.diff(few) < 0).any(), split
    other = data.load(f"folder:{pets}", validation=0.3, seed=1)
    np.testing.assert_array_equal(made[0].test.ids, other.test.ids)  # one order for all seeds
    whole = made[2].test.take(np.arange(30))
    np.testing.assert_array_equal(IMAGES[order][whole["id"]], whole["image"])  # an id is a position in what was given


def test_two_folders_of_one_split_are_refused(tmp_path):
    for split in ("train", "val", "validation"):
        for name in "ab":
            picture(tmp_path / split / name / "1.png", np.zeros((4, 4), np.uint8))
    with pytest.raises(ValueError, match=r"has the folders \['val', 'validation'\], which are one split"):
        data.load(f"folder:{tmp_path}")


def test_other_images_than_those_of_training_are_refused(tmp_path):
    for place, images in (("one", IMAGES), ("two", 255 - IMAGES), ("three", IMAGES)):
        (tmp_path / place).mkdir()
        np.savez(tmp_path / place / "a.npz", images=images, labels=LABELS)
    config = base("npz:a.npz")
    config.data.data_dir = str(tmp_path / "one")
    config.data.fingerprint = data.fingerprint(load_dataset(config))
    config.data.data_dir = str(tmp_path / "three")
    load_dataset(config)  # they have only been moved
    config.data.data_dir = str(tmp_path / "two")
    with pytest.raises(ValueError, match="the images of data.name='npz:a.npz' are not those that the run was trained"):
        load_dataset(config)
