"""Opening data of every kind, and every way in which data can be wrong."""

import gzip
import json
import os
import re
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image
from pyarrow import parquet

from layerwise.data.examples import Examples
from layerwise.errors import DataError, OptionError
from layerwise.kinds.opening import open_data


def draw(path: Path, shade: int = 0) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    suffix = path.suffix.lower().lstrip(".")
    form = {"jpg": "JPEG", "jpeg": "JPEG", "tif": "TIFF"}.get(suffix, suffix.upper() or "PNG")
    Image.new("RGB", (4, 3), (shade % 256, shade // 256 % 256, 7)).save(path, form)
    return path


def classes(root: Path, names: str = "cat dog", each: int = 3, suffix: str = ".png") -> Path:
    for c, name in enumerate(names.split()):
        for i in range(each):
            draw(root / name / f"img{i}{suffix}", 100 * c + i)
    return root


def write(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf8")
    return path


def refused(path: Path, *patterns: str, **options) -> str:
    """The sentence of the DataError; it must match every pattern and be a single line."""
    with pytest.raises(DataError) as caught:
        open_data(path, **options)
    message = str(caught.value)
    assert "\n" not in message
    for pattern in patterns:
        assert re.search(pattern, message), f"{pattern!r} not in {message!r}"
    return message


def found(examples: Examples, kind: str) -> str:
    return " ".join(f.message for f in examples.findings if f.kind == kind)


# -- class folders --------------------------------------------------------------------------------


def test_class_folders(tmp_path):
    classes(tmp_path, "img10 img2 Zebra ant", each=2)
    opened = open_data(tmp_path)
    assert opened.labels == ("ant", "img2", "img10", "Zebra")  # natural, case only breaks ties
    assert (opened.kind, opened.target_kind, len(opened)) == ("image", "class", 8)
    assert opened.understood == "8 images in 4 class folders"
    assert opened.labels[opened.targets[0]] == opened.names[0].split("/")[0]
    assert all(isinstance(path, Path) and path.exists() for path in opened["image"])
    assert opened.given.tolist() == [""] * 8


def test_numeric_classes_sort_by_number(tmp_path):
    assert open_data(classes(tmp_path, "10 9 -1 2.5 0")).labels == ("-1", "0", "2.5", "9", "10")


@pytest.mark.parametrize("val", ["val", "valid", "Validation", "dev"])
@pytest.mark.parametrize("test", ["test", "Testing"])
def test_given_splits_and_their_synonyms(tmp_path, val, test):
    for part in ("train", val, test):
        classes(tmp_path / part, each=2)
    opened = open_data(tmp_path)
    assert sorted(set(opened.given)) == ["test", "train", "val"]
    assert (opened.given == "train").sum() == 4
    assert opened.labels == ("cat", "dog")
    assert opened.understood == (
        "12 images in 2 class folders, train (4), val (4) and test (4) given"
    )


def test_nested_folders_any_suffix_any_case_and_a_wrapper(tmp_path):
    root = tmp_path / "archive" / "photos"
    draw(root / "cat" / "monday" / "a.JPG")
    draw(root / "cat" / "b.jpeg")
    draw(root / "dog" / "deep" / "er" / "c.BMP")
    draw(root / "dog" / "d.webp")
    draw(root / "dog" / "no_suffix")
    opened = open_data(tmp_path)
    assert opened.labels == ("cat", "dog")
    assert len(opened) == 5


def test_a_class_may_be_called_train(tmp_path):
    assert open_data(classes(tmp_path, "bus car train")).labels == ("bus", "car", "train")


def test_names_in_any_script_compose_alike(tmp_path):
    draw(tmp_path / "train" / "猫" / "写真 1.png", 1)
    draw(tmp_path / "train" / "собака" / "a b'c.png", 2)
    draw(tmp_path / "train" / "caf\u00e9" / "x.png", 3)  # é as one character
    draw(tmp_path / "test" / "cafe\u0301" / "y.png", 4)  # as two, as macOS writes it
    opened = open_data(tmp_path)
    assert set(opened.labels) == {"猫", "собака", "caf\u00e9"}
    folder = os.fsencode(tmp_path / "train" / "猫")
    draw(Path(os.fsdecode(folder + b"/bad\xff.png")), 5)
    assert any("bad\\udcff.png" in name for name in open_data(tmp_path).names)


def test_what_systems_leave_behind_is_ignored_and_other_files_are_listed(tmp_path):
    classes(tmp_path)
    for junk in ("Thumbs.db", ".DS_Store", "__MACOSX/cat/._img0.png", ".ipynb_checkpoints/a.png"):
        write(tmp_path / junk, "x")
    write(tmp_path / "cat" / "notes.txt", "x")
    write(tmp_path / "README.md", "x")
    opened = open_data(tmp_path)
    assert len(opened) == 6
    [finding] = [f for f in opened.findings if f.kind == "unused"]
    assert set(finding.names) == {"cat/notes.txt", "README.md"}


def test_symlinks_are_followed_but_not_in_circles(tmp_path):
    root = classes(tmp_path / "data")
    elsewhere = draw(tmp_path / "elsewhere" / "one.png", 9).parent
    draw(elsewhere / "two.png", 10)
    (root / "bird").symlink_to(elsewhere)
    (root / "cat" / "up").symlink_to(root)
    (root / "dog" / "nothing.png").symlink_to(tmp_path / "absent.png")
    opened = open_data(root)
    assert opened.labels == ("bird", "cat", "dog")
    assert len(opened) == 8
    assert "cat/up" in found(opened, "symlink_loop")
    assert "dog/nothing.png" in found(opened, "unreadable")


def test_empty_class_folders_and_classes_of_one_are_pointed_out(tmp_path):
    classes(tmp_path)
    (tmp_path / "bird").mkdir()
    draw(tmp_path / "fish" / "only.png", 5)
    opened = open_data(tmp_path)
    assert "bird" in found(opened, "empty_class")
    assert "'fish'" in found(opened, "few")


def test_similar_labels_are_pointed_out(tmp_path):
    lines = "".join(f"{draw(tmp_path / f'{i}.png', i).name},{c}\n" for i, c in enumerate("aAbb"))
    write(tmp_path / "metadata.csv", "file_name,label\n" + lines)
    assert "'A', 'a'" in found(open_data(tmp_path), "similar_labels")


# -- loose images ---------------------------------------------------------------------------------


def test_loose_images_and_a_single_one(tmp_path):
    one = draw(tmp_path / "b10.png")
    draw(tmp_path / "b9.jpg")
    opened = open_data(tmp_path)
    assert (opened.target_kind, opened.targets, opened.labels) == ("none", None, ())
    assert list(opened.names) == ["b9.jpg", "b10.png"]
    alone = open_data(one)
    assert (alone.target_kind, len(alone)) == ("none", 1)


def test_to_predict_any_mixture_of_folders_will_do(tmp_path):
    classes(tmp_path / "train")
    classes(tmp_path / "extra")
    draw(tmp_path / "loose.png")
    opened = open_data(tmp_path, learn=False)
    assert (len(opened), opened.target_kind) == (13, "none")
    assert len(open_data(tmp_path / "extra", learn=False)) == 6
    assert len(open_data(tmp_path / "extra" / "cat", learn=False)) == 3


# -- metadata -------------------------------------------------------------------------------------


def photos(root: Path, n: int = 6) -> list[str]:
    return [draw(root / f"p{i}.png", i).name for i in range(n)]


def test_metadata_csv_with_splits(tmp_path):
    names = photos(tmp_path)
    rows = [
        f"{n},{'cat' if i % 2 else 'dog'},{'test' if i > 3 else 'training'}"
        for i, n in enumerate(names)
    ]
    write(tmp_path / "metadata.csv", "file_name,label,split\n" + "\n".join(rows))
    opened = open_data(tmp_path)
    assert opened.labels == ("cat", "dog")
    assert opened.targets.tolist() == [1, 0] * 3
    assert opened.given.tolist() == ["train"] * 4 + ["test"] * 2
    assert "6 images named by metadata.csv, 2 classes from column 'label'" in opened.understood
    assert open_data(tmp_path / "metadata.csv").labels == opened.labels  # the table itself, too


@pytest.mark.parametrize("cells", ["list", "a|b", "a, b", "json"])
def test_several_labels(tmp_path, cells):
    names = photos(tmp_path, 4)
    tags = [["sun"], ["sun", "sea"], ["sea"], ["hill", "sun"]]
    if cells == "list":
        lines = [json.dumps({"file_name": n, "tags": t}) for n, t in zip(names, tags, strict=True)]
        write(tmp_path / "metadata.jsonl", "\n".join(lines))
    else:
        join = {"a|b": "|".join, "a, b": ", ".join, "json": lambda t: json.dumps(t)}[cells]
        quoted = [join(t).replace('"', '""') for t in tags]
        rows = [f'{n},"{t}"' for n, t in zip(names, quoted, strict=True)]
        write(tmp_path / "metadata.csv", "file_name,tags\n" + "\n".join(rows))
    opened = open_data(tmp_path)
    assert opened.target_kind == "classes"
    assert opened.labels == ("hill", "sea", "sun")
    assert opened.targets.tolist() == [[0, 0, 1], [0, 1, 1], [0, 1, 0], [1, 0, 1]]
    assert opened.targets.dtype == np.uint8


def test_a_comma_within_a_name_is_no_second_label(tmp_path):
    names = photos(tmp_path, 4)
    rows = [f'{n},"{who}"' for n, who in zip(names, ["Smith, Jo", "Li, Bo"] * 2, strict=True)]
    write(tmp_path / "metadata.csv", "file_name,label\n" + "\n".join(rows))
    assert open_data(tmp_path).labels == ("Li, Bo", "Smith, Jo")


def test_metadata_parquet_with_numbers_to_learn_and_per_split_folders(tmp_path):
    for part, n in (("train", 4), ("test", 2)):
        names = photos(tmp_path / part, n)
        table = pa.table({"file_name": names, "label": [0.5 * i for i in range(n)]})
        parquet.write_table(table, tmp_path / part / "metadata.parquet")
    opened = open_data(tmp_path)
    assert opened.target_kind == "number"
    assert opened.given.tolist() == ["test"] * 2 + ["train"] * 4
    assert opened.targets.tolist() == [0, 0.5, 0, 0.5, 1, 1.5]


def test_rows_without_label_or_file_are_set_aside(tmp_path):
    names = photos(tmp_path, 5)
    rows = [*(f"{n},{label}" for n, label in zip(names, ["a", "b", "a", "b", ""], strict=True))]
    write(tmp_path / "metadata.csv", "file_name,label\n" + "\n".join([*rows, "gone.png,a"]))
    draw(tmp_path / "extra.png")
    opened = open_data(tmp_path)
    assert len(opened) == 4
    assert "metadata.csv row 6" in found(opened, "unlabelled")
    assert "'metadata.csv row 7: gone.png'" in found(opened, "absent_file")
    assert "extra.png" in found(opened, "unlisted")


def test_another_label_column_can_be_named(tmp_path):
    names = photos(tmp_path, 4)
    rows = [f"{n},{'ab'[i % 2]}" for i, n in enumerate(names)]
    write(tmp_path / "metadata.csv", "file_name,Breed\n" + "\n".join(rows))
    assert open_data(tmp_path, target="Breed").labels == ("a", "b")
    assert open_data(tmp_path, learn=False).target_kind == "none"
    refused(tmp_path, "no column 'breed'; did you mean 'Breed'", "--target", target="breed")


def test_a_labels_table_of_another_name_is_used(tmp_path):
    names = photos(tmp_path / "images", 4)
    rows = [f"images/{n},{'ab'[i % 2]}" for i, n in enumerate(names)]
    write(tmp_path / "labels.csv", "image,class\n" + "\n".join(rows))
    assert open_data(tmp_path).labels == ("a", "b")


# -- parquet with images --------------------------------------------------------------------------


def hub_parquet(path: Path, labels: list[int], names: list[str] | None, start: int = 0) -> Path:
    files = [draw(path.parent / "raw" / f"{start + i}.png", start + i) for i in range(len(labels))]
    images = [{"bytes": f.read_bytes(), "path": f.name} for f in files]
    table = pa.table({"image": images, "label": labels})
    if names is not None:
        features = {"image": {"_type": "Image"}, "label": {"names": names, "_type": "ClassLabel"}}
        written = json.dumps({"info": {"features": features}})
        table = table.replace_schema_metadata({"huggingface": written})
    for f in files:
        f.unlink()
    (path.parent / "raw").rmdir()
    parquet.write_table(table, path)
    return path


def test_parquet_of_the_hub(tmp_path):
    data = tmp_path / "data"
    data.mkdir()
    hub_parquet(data / "train-00000-of-00002.parquet", [0, 1, 0, -1], ["wolf", "ape"])
    hub_parquet(data / "train-00001-of-00002.parquet", [1, 1], ["wolf", "ape"], 10)
    hub_parquet(data / "test-00000-of-00001.parquet", [0, 1], ["wolf", "ape"], 20)
    opened = open_data(tmp_path)
    assert opened.labels == ("ape", "wolf")
    assert opened.given.tolist() == ["test"] * 2 + ["train"] * 5
    animals = [opened.labels[t] for t in opened.targets]
    assert animals == ["wolf", "ape", "wolf", "ape", "wolf", "ape", "ape"]
    assert "8 images held in 3 Parquet files, 2 classes" in opened.understood
    assert "no label" in found(opened, "unlabelled")
    assert opened["image"][0].startswith(b"\x89PNG")
    part = opened.subset(np.array([2, 0]))
    assert part["image"][1] == opened["image"][0]


def test_parquet_without_names_and_plain_bytes(tmp_path):
    path = hub_parquet(tmp_path / "a.parquet", [7, 3, 7, 3], None)
    opened = open_data(path)
    assert opened.labels == ("3", "7")
    table = parquet.read_table(path)
    held = [image["bytes"] for image in table.column("image").to_pylist()]
    plain = pa.table({"photo": pa.array([*held[:3], None], pa.binary()), "y": list("abab")})
    parquet.write_table(plain, tmp_path / "b.parquet")
    opened = open_data(tmp_path / "b.parquet")
    assert (opened.labels, len(opened)) == (("a", "b"), 3)
    assert "b.parquet row 3" in found(opened, "unreadable")
    refused(path, "no column 'labl'; did you mean 'label'", target="labl")


def test_truncated_parquet(tmp_path):
    path = hub_parquet(tmp_path / "a.parquet", [0, 1, 0, 1], None)
    path.write_bytes(path.read_bytes()[:-20])
    refused(path, "a.parquet", "cut off|cannot be read as Parquet")


# -- bad input ------------------------------------------------------------------------------------


def test_path_does_not_exist_names_the_nearest(tmp_path):
    (tmp_path / "photos").mkdir()
    refused(tmp_path / "photo", "photo' does not exist", "did you mean 'photos'")


def test_empty_folder(tmp_path):
    refused(tmp_path, "is empty", "expected class folders")
    (tmp_path / "cat").mkdir()
    refused(tmp_path, "is empty .1 empty folders")


def test_empty_file_and_unknown_kind(tmp_path):
    refused(write(tmp_path / "a.csv", ""), "a.csv' is empty", "again")
    refused(write(tmp_path / "a.docx", "x"), "a.docx' is not of a kind", "expected class folders")
    refused(write(tmp_path / "a.zip", "x"), "Unpack the archive")
    with pytest.raises(OptionError, match="did you mean 'image'"):
        open_data(tmp_path, kind="images")


def test_one_class(tmp_path):
    refused(classes(tmp_path, "cat"), "one class 'cat' in all 3 images", "add another")


def test_one_image_per_class(tmp_path):
    refused(classes(tmp_path, "a b c", each=1), "one image for each of its 3 classes", "add more")


def test_label_column_missing(tmp_path):
    names = photos(tmp_path)
    write(tmp_path / "metadata.csv", "file_name,lable\n" + "".join(f"{n},a\n" for n in names))
    refused(tmp_path, "metadata.csv' has no column 'label'", "did you mean 'lable'", "--target")


def test_file_name_column_missing(tmp_path):
    photos(tmp_path)
    write(tmp_path / "metadata.csv", "filenames,label\np0.png,a\n")
    refused(tmp_path, "no column 'file_name'", "did you mean 'filenames'")
    write(tmp_path / "metadata.csv", "file_name,label\np0.png,a\n,b\n")
    refused(tmp_path, "metadata.csv row 3 has no file name", "remove the row")


def test_label_column_all_one_value(tmp_path):
    names = photos(tmp_path)
    write(tmp_path / "metadata.csv", "file_name,label\n" + "".join(f"{n},a\n" for n in names))
    refused(tmp_path, "one class 'a' in all 6 images", "another column with --target")


def test_all_rows_unlabelled(tmp_path):
    names = photos(tmp_path)
    write(tmp_path / "metadata.csv", "file_name,label\n" + "".join(f"{n},\n" for n in names))
    refused(tmp_path, "column 'label' of metadata.csv is empty in all 6 rows", "--target")


def test_metadata_names_files_that_do_not_exist(tmp_path):
    photos(tmp_path, 2)
    rows = "".join(f"img/p{i}.png,{'ab'[i % 2]}\n" for i in range(6))
    write(tmp_path / "metadata.csv", "file_name,label\n" + rows)
    refused(tmp_path, "6 files, of which 6 do not exist", "metadata.csv row 2: img/p0.png", "fix")


def test_metadata_split_of_another_word(tmp_path):
    names = photos(tmp_path, 4)
    rows = [f"{n},{'ab'[i % 2]},{'train' if i else 'trian'}" for i, n in enumerate(names)]
    write(tmp_path / "metadata.csv", "file_name,label,split\n" + "\n".join(rows))
    refused(tmp_path, "metadata.csv row 2 has 'trian'", "train, val or test")


def test_jsonl_row_that_does_not_parse(tmp_path):
    photos(tmp_path)
    write(
        tmp_path / "metadata.jsonl", '{"file_name": "p0.png", "label": "a"}\n\n{"file_name": p1}\n'
    )
    refused(tmp_path, "metadata.jsonl line 3 is not a JSON object", "each line should be")
    write(tmp_path / "metadata.jsonl", '["p0.png", "a"]\n')
    refused(tmp_path, "metadata.jsonl line 1 is not a JSON object")


def test_class_folders_and_loose_files_mixed(tmp_path):
    classes(tmp_path)
    draw(tmp_path / "loose.png")
    refused(tmp_path, "1 images lie loose beside class folders", "'loose.png'", "move each image")


def test_loose_images_within_a_given_split(tmp_path):
    classes(tmp_path / "train")
    classes(tmp_path / "test")
    draw(tmp_path / "test" / "loose.png")
    refused(tmp_path, "1 images lie loose", "'test/loose.png' beside 'test/cat'", "move each")


def test_an_unlabelled_test_folder_is_left_out(tmp_path):
    classes(tmp_path / "train")
    draw(tmp_path / "test" / "1.png")
    opened = open_data(tmp_path)
    assert len(opened) == 6
    assert "1 images in 'test' have no class folders" in found(opened, "unlabelled")


def test_splits_beside_other_folders(tmp_path):
    classes(tmp_path / "train")
    classes(tmp_path / "extra")
    refused(tmp_path, "'train' look like given splits", "'extra' beside them do not", "rename")


def test_train_and_test_with_different_classes(tmp_path):
    classes(tmp_path / "train", "cat dog")
    classes(tmp_path / "test", "cat cow")
    refused(tmp_path, "classes of train and test differ", "'cow' never occur in train")


def test_everything_is_test(tmp_path):
    classes(tmp_path / "test")
    refused(tmp_path, "every row is given as test", "add training rows")
    assert len(open_data(tmp_path, learn=False)) == 6


def test_symlink_loops(tmp_path):
    loop = tmp_path / "loop"
    loop.symlink_to(loop)
    refused(loop, "loop of symbolic links", "name the real")
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / "self").symlink_to(folder)
    refused(folder, "only symbolic links that lead back", "'self'")
    gone = tmp_path / "gone"
    gone.symlink_to(tmp_path / "nowhere")
    refused(gone, "gone' does not exist: it is a symbolic link to '.*nowhere'")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_no_permission(tmp_path):
    path = write(tmp_path / "a.csv", "a,b\n1,2\n")
    path.chmod(0)
    refused(path, "a.csv' cannot be read", "permission")


def test_truncated_gzip(tmp_path):
    path = tmp_path / "a.csv.gz"
    rows = "".join(f"{i},{i * i % 7}\n" for i in range(2000))
    path.write_bytes(gzip.compress(f"a,b\n{rows}".encode())[:-900])
    refused(path, "a.csv.gz' is a damaged gzip", "download or copy it again")


@pytest.mark.data
def test_photographs_of_ants_and_bees(shared_data):
    opened = open_data(shared_data / "hymenoptera")
    assert opened.labels == ("ants", "bees")
    assert ((opened.given == "train").sum(), (opened.given == "val").sum()) == (243, 153)
    loose = open_data(shared_data / "imagenet-1k-samples")
    assert (len(loose), loose.target_kind) == (1000, "none")
