"""Folders of one's own as people have them: stray files, other lists, doubled images, caches of yesterday."""

import logging
import os
import unicodedata
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from clbench.config import DataConfig
from clbench.data import decode
from clbench.data.same_images import groups_of_equal, refuse_or_note
from clbench.errors import DataError
from clbench.registry import SOURCES


def read(root, **options):
    options = {"folder": "set", "test_fraction": 0.5, "download": False} | options
    return SOURCES["folder"](DataConfig(root=str(root), **options))


@pytest.fixture
def two_classes(tmp_path, write_images):
    for name in ("ant", "bee"):
        write_images(tmp_path / "set" / name, 4)
    return tmp_path / "set"


# ---- which files are data ---------------------------------------------------------------------------------------------------


def test_what_systems_and_programs_leave_behind_is_no_data(two_classes, tmp_path):
    clean = read(tmp_path)
    image = (two_classes / "ant" / "000.png").read_bytes()
    for name in (
        "ant/.ipynb_checkpoints/000-checkpoint.png",
        "ant/deep/.cache/x.png",
        "ant/._000.png",
        "ant/Thumbs.db",
        "bee/.DS_Store",
        ".git/a.png",
        "__MACOSX/ant/000.png",
        "README.txt",
    ):
        (two_classes / name).parent.mkdir(parents=True, exist_ok=True)
        (two_classes / name).write_bytes(image)
    dirty = read(tmp_path)
    assert dirty.class_names == ["ant", "bee"]
    assert (dirty.train.content_hash, dirty.test.content_hash) == (clean.train.content_hash, clean.test.content_hash)
    assert dirty.note.endswith("left out: 3 × hidden folder, 1 × hidden image file")


def test_what_is_left_out_is_counted_and_said(two_classes, tmp_path, caplog):
    (two_classes / "ant" / "scan.dcm").write_bytes(b"x")
    (two_classes / "bee" / "scan.DCM").write_bytes(b"x")
    (two_classes / "bee" / "notes").write_bytes(b"x")
    (two_classes / "lonely.png").write_bytes((two_classes / "ant" / "000.png").read_bytes())
    with caplog.at_level(logging.WARNING):
        note = read(tmp_path).note
    expected = "left out: 2 × file *.dcm, 1 × file without a suffix, 1 × image file beside the class folders"
    assert note.endswith(expected)
    assert expected in caplog.text


def test_everything_beside_train_and_test_is_said(tmp_path, write_images):
    for part in ("train", "val", "test", "extra"):
        write_images(tmp_path / "set" / part / "a", 2)
    (tmp_path / "set" / "train.txt").write_text("")
    data = read(tmp_path)
    assert (len(data.train), len(data.test)) == (2, 2)
    assert data.note == "left out: 1 × extra beside train, 1 × train.txt beside train, 1 × val beside train"


def test_images_of_every_suffix_and_in_folders_of_a_class_are_read(tmp_path, write_images):
    for suffix in ("gif", "jfif", "JPEG", "bmp", "ppm", "tiff"):
        write_images(tmp_path / "set" / "a" / suffix, 2, suffix="png")
        for file in (tmp_path / "set" / "a" / suffix).glob("*.png"):
            format_of = {"jfif": "JPEG", "JPEG": "JPEG"}.get(suffix, suffix.upper())
            Image.open(file).save(file.with_suffix(f".{suffix}"), format=format_of)
            file.unlink()
    data = read(tmp_path)
    assert len(data.train) + len(data.test) == 12
    assert "left out" not in data.note


def test_links_are_followed_once_and_missed_where_they_lead_nowhere(two_classes, tmp_path, write_images):
    write_images(tmp_path / "elsewhere", 2)
    (two_classes / "ant" / "more").symlink_to(tmp_path / "elsewhere")
    (two_classes / "ant" / "loop").symlink_to(two_classes / "ant")
    data = read(tmp_path)
    assert len(data.train) + len(data.test) == 10
    (two_classes / "bee" / "zzz.png").symlink_to(tmp_path / "nowhere.png")
    with pytest.raises(DataError, match=r"zzz\.png is listed but cannot be read"):
        read(tmp_path)


def test_a_folder_that_cannot_be_read_is_not_an_empty_one(two_classes, tmp_path, monkeypatch):
    def walk(folder, followlinks, onerror):
        onerror(PermissionError(13, "Permission denied", f"{folder}/private"))
        return iter(())

    monkeypatch.setattr("clbench.data.image_folders.os.walk", walk)
    with pytest.raises(DataError, match=r"private cannot be read: Permission denied"):
        read(tmp_path)


# ---- classes --------------------------------------------------------------------------------------------------------------


def test_a_class_without_images_is_refused_by_name(two_classes, tmp_path):
    (two_classes / "cat").mkdir()
    (two_classes / "cat" / "notes.txt").write_text("x")
    with pytest.raises(DataError, match=r"the folder cat in .*set would be classes without an image"):
        read(tmp_path)


def test_a_class_too_small_for_a_test_image_is_refused_by_name(two_classes, tmp_path, write_images):
    write_images(two_classes / "cat", 1)
    with pytest.raises(DataError, match=r"the class folder cat in .* would have no test image"):
        read(tmp_path)


@pytest.mark.parametrize("other", ["Ant", unicodedata.normalize("NFD", "naïve")])
def test_class_names_that_look_alike_are_refused(other, two_classes, tmp_path, write_images):
    write_images(two_classes / unicodedata.normalize("NFC", "naïve"), 4)
    write_images(two_classes / other, 4)
    with pytest.raises(DataError, match="one folder on other systems"):
        read(tmp_path)


def test_a_class_name_that_is_no_text_is_refused(two_classes, tmp_path, write_images):
    os.rename(os.fsencode(two_classes / "ant"), os.fsencode(two_classes) + b"/\xff\xfe")  # noqa: PTH104
    with pytest.raises(DataError, match="is not UTF-8"):
        read(tmp_path)


# ---- lists ----------------------------------------------------------------------------------------------------------------


def listed(root, train: bytes | str, test: bytes | str):
    for name, text in (("train", train), ("test", test)):
        (root / f"{name}.txt").write_bytes(text if isinstance(text, bytes) else text.encode())


@pytest.mark.parametrize("separator", [" ", "\t", ",", ", ", ";"])
@pytest.mark.parametrize("first", [0, 1, 7])
def test_numbers_from_anywhere_and_any_separator(separator, first, two_classes, tmp_path):
    lines = [f"{name}/00{i}.png{separator}{first + 3 * c}\n" for c, name in enumerate(["ant", "bee"]) for i in range(4)]
    listed(two_classes, "".join(lines[0:2] + lines[4:6]), "".join(lines[2:4] + lines[6:8]))
    data = read(tmp_path)
    assert data.class_names == ["ant", "bee"]
    assert data.train.labels.tolist() == data.test.labels.tolist() == [0, 0, 1, 1]


def test_lists_of_windows_and_spreadsheets(two_classes, tmp_path):
    listed(
        two_classes,
        b'\xef\xbb\xbfant\\000.png 0\r\n"bee/000.png"\t1  \r\n\r\n',
        f"./ant/001.png 0\r\n{two_classes}/bee/001.png 1\r\n\r\n",
    )
    data = read(tmp_path)
    assert data.class_names == ["ant", "bee"]
    assert (data.train.labels.tolist(), data.test.labels.tolist()) == ([0, 1], [0, 1])


def test_names_with_accents_are_found_however_they_are_written(tmp_path, write_images):
    composed, decomposed = (unicodedata.normalize(form, "été") for form in ("NFC", "NFD"))
    write_images(tmp_path / "set" / decomposed, 2)
    listed(tmp_path / "set", f"{composed}/000.png 0\n", f"{composed}/001.png 0\n")
    assert len(read(tmp_path).train) == 1


def test_classes_in_one_folder_have_their_numbers_for_names(tmp_path, write_images):
    write_images(tmp_path / "set" / "images", 4)
    listed(tmp_path / "set", "images/000.png 3\nimages/001.png 5\n", "images/002.png 3\nimages/003.png 5\n")
    assert read(tmp_path).class_names == ["class 3", "class 5"]


@pytest.mark.parametrize(
    ("train", "test", "message"),
    [
        ("ant/000.png 0\nant/000.png 1\n", "ant/001.png 0\n", r"give .*ant/000\.png two classes"),
        ("ant/000.png 0\nbee/000.png 1\n", "./ant/000.png 1\n", r"give .*ant/000\.png two classes"),
        ("ant/000.png 0\nant/../ant/000.png 0\n", "ant/001.png 0\n", r"train\.txt names .*ant/000\.png twice"),
        ("ant/000.png\nant/001.png\n", "ant/001.png\n", r"both name .*ant/001\.png"),
        ("path label\nant/000.png 0\n", "ant/001.png 0\n", r"names 1 of 2 images .*'path label' \(a line is a path"),
        ("ant/000.png ant\n", "ant/001.png ant\n", r"names 1 of 1 images .*space \(or tab or comma\) and class number"),
        ("a.png 0\nb.png 0\nc.png 0\nd.png 0\n", "ant/001.png 0\n", r"4 of 4 images .*'a\.png 0', 'b\.png 0', 'c\.png 0' \("),
        ("ant/000.png 0\n".encode("utf-16"), "ant/001.png 0\n", r"train\.txt is not UTF-8 text"),
    ],
)  # fmt: skip
def test_lists_that_cannot_be_right(train, test, message, two_classes, tmp_path):
    listed(two_classes, train, test)
    with pytest.raises(DataError, match=message) as error:
        read(tmp_path)
    assert "\n" not in str(error.value)


# ---- the same image twice ---------------------------------------------------------------------------------------------------


def test_one_image_under_two_classes_is_refused(two_classes, tmp_path):
    Image.open(two_classes / "ant" / "000.png").save(two_classes / "bee" / "copy.bmp")
    with pytest.raises(DataError, match=r"one image is under two classes, such as .*ant/000\.png and .*bee/copy\.bmp"):
        read(tmp_path)
    assert "one image is under two classes" in read(tmp_path, duplicates="keep").note


def test_a_test_image_that_is_trained_on_is_refused(tmp_path, write_images):
    for part in ("train", "test"):
        write_images(tmp_path / "set" / part / "a", 3)
    for i in (0, 1):
        copied = (tmp_path / "set" / "train" / "a" / f"00{i}.png").read_bytes()
        (tmp_path / "set" / "test" / "a" / f"copy{i}.png").write_bytes(copied)
    with pytest.raises(DataError, match="2 images are both for training and for test, such as"):
        read(tmp_path)
    assert read(tmp_path, duplicates="keep").note.startswith("2 images are both for training and for test")


def test_equal_images_are_those_of_equal_pixels_and_not_of_equal_checksums(monkeypatch):
    pixels = np.array([[1, 2], [3, 4], [1, 2], [5, 6]], np.uint8).reshape(4, 1, 1, 2)
    assert groups_of_equal(pixels) == [[0, 2]]
    monkeypatch.setattr("clbench.data.same_images.zlib.crc32", lambda _: 0)
    assert groups_of_equal(pixels) == [[0, 2]]


def test_an_image_twice_in_one_split_of_one_class_is_no_fault():
    pixels, labels = np.zeros((4, 1, 2, 2), np.uint8), np.zeros(4, np.int64)
    pixels[2:] = 1
    files = [Path(f"{i}.png") for i in range(4)]
    assert refuse_or_note(files, pixels, labels, n_train=2, keep=False) == ""
    with pytest.raises(DataError, match="one image is both for training and for test"):
        refuse_or_note(files, pixels, labels, n_train=1, keep=False)


# ---- where things are -------------------------------------------------------------------------------------------------------


def test_the_option_that_is_wrong_is_named(two_classes, tmp_path, monkeypatch):
    with pytest.raises(DataError, match=r"^data\.root=.*nowhere does not exist: set data\.root"):
        read(tmp_path / "nowhere")
    with pytest.raises(DataError, match=r"^data\.root=.*000\.png is no folder"):
        read(two_classes / "ant" / "000.png")
    with pytest.raises(DataError, match=r"^data\.folder=sett does not exist in data\.root="):
        read(tmp_path, folder="sett")
    monkeypatch.setenv("CLBENCH_DATA", str(tmp_path / "gone"))
    with pytest.raises(DataError, match=r"^CLBENCH_DATA=.*gone does not exist"):
        SOURCES["folder"](DataConfig(folder="set"))


# ---- the cache --------------------------------------------------------------------------------------------------------------


def cached_file(root):
    [file] = (root / decode.CACHE_FOLDER).iterdir()
    return file


@pytest.mark.parametrize("left", [0, 10, 100, 300])
def test_a_cache_that_was_cut_off_is_made_again(left, two_classes, tmp_path):
    whole = read(tmp_path)
    expected, file = whole.train.content_hash, cached_file(tmp_path)
    del whole
    file.write_bytes(file.read_bytes()[:left])
    assert read(tmp_path).train.content_hash == expected
    assert file.stat().st_size > 300


def test_a_cache_of_an_earlier_decoder_is_not_read(two_classes, tmp_path, monkeypatch):
    read(tmp_path)
    monkeypatch.setattr(decode, "DECODER", decode.DECODER + 1)
    read(tmp_path)
    assert len(list((tmp_path / decode.CACHE_FOLDER).iterdir())) == 2


def test_an_image_that_was_replaced_and_dated_back_is_decoded_anew(two_classes, tmp_path):
    file = two_classes / "ant" / "000.bmp"
    Image.new("RGB", (8, 8), (1, 2, 3)).save(file)
    before = read(tmp_path)
    old = (before.train.content_hash, before.test.content_hash)
    status = file.stat()
    Image.new("RGB", (8, 8), (9, 9, 9)).save(file)
    os.utime(file, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert file.stat().st_size == status.st_size
    after = read(tmp_path)
    assert (after.train.content_hash, after.test.content_hash) != old


def test_many_may_make_one_cache_at_once(two_classes, tmp_path, monkeypatch):
    files = sorted(two_classes.rglob("*.png"))
    monkeypatch.setattr(decode, "_cached", lambda file, n: None)  # as if none had found it
    with ThreadPoolExecutor(4) as pool:
        decoded = list(pool.map(lambda _: decode.decode_files(files, None, "RGB", tmp_path), range(8)))
    assert all(np.array_equal(decoded[0], pixels) for pixels in decoded)
    assert cached_file(tmp_path).suffix == ".npy"


def test_a_full_disk_costs_the_cache_and_not_the_run(two_classes, tmp_path, monkeypatch, caplog):
    expected = read(tmp_path).train.content_hash
    cached_file(tmp_path).unlink()

    def full(*_args):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(decode.np.lib.format, "write_array_header_1_0", full)
    with caplog.at_level(logging.WARNING):
        assert read(tmp_path).train.content_hash == expected
    assert "decoded anew at every start" in caplog.text
    assert "No space left on device" in caplog.text
    assert not list((tmp_path / decode.CACHE_FOLDER).iterdir())


def test_without_any_place_for_a_cache_images_are_decoded_in_memory(two_classes, tmp_path, monkeypatch, caplog):
    (tmp_path / decode.CACHE_FOLDER).write_text("in the way")
    monkeypatch.setattr(decode, "user_cache_path", lambda _name: tmp_path / decode.CACHE_FOLDER / "no")
    with caplog.at_level(logging.WARNING):
        assert len(read(tmp_path).train) == 4
    assert "decoded anew at every start" in caplog.text
