import numpy as np
import pytest
import torch
from PIL import Image

from utils.cli import UserError
from utils.data import captions, datasets, loader, scenes


def to_tensor(image):
    return torch.from_numpy(np.array(image.resize((8, 8)))).permute(2, 0, 1).float()


def read(images, batch_size=4, **options):
    return list(loader.batches(images, to_tensor, batch_size, num_workers=0, **options))


def test_a_folder_of_class_folders(folder_of_images):
    images = datasets.load_images("imagefolder", str(folder_of_images))
    assert images.classes == ["big dog", "cat", "owl"]
    found = read(images)
    assert [len(labels) for _, labels, _ in found] == [4, 4, 4, 3]  # the last batch is partial
    assert np.concatenate([labels for _, labels, _ in found]).tolist() == [0] * 5 + [1] * 5 + [2] * 5
    assert found[0][0].shape == (4, 3, 8, 8)


def test_worker_processes_keep_the_order(folder_of_images):
    images = datasets.load_images("imagefolder", str(folder_of_images))
    alone, shared = read(images), list(loader.batches(images, to_tensor, 4, num_workers=2))
    assert all(torch.equal(a, b) for (a, *_), (b, *_) in zip(alone, shared))


def test_only_some_images_are_read(folder_of_images):
    images = datasets.load_images("imagefolder", str(folder_of_images))
    chosen, every = [1, 6, 7, 12, 14], torch.cat([pixels for pixels, *_ in read(images)])
    found = read(images, batch_size=2, only=chosen)
    assert torch.equal(torch.cat([pixels for pixels, *_ in found]), every[chosen])
    assert [labels.tolist() for _, labels, _ in found] == [[0, 1], [1, 2], [2]]
    assert torch.equal(read(images, batch_size=2, only=chosen, numbers=[1])[0][0], every[[7, 12]])
    damage(folder_of_images)
    assert [bad[0][0] for _, _, bad in read(images, batch_size=1, only=[7, 10], skip_bad_images=True)] == [7, 10]


@pytest.mark.parametrize("order", [sorted, list], ids=["class by class", "classes in turns"])
def test_some_images_stand_for_all_classes(order):
    labels = order(index % 100 for index in range(2000))
    images = datasets.Images(samples=labels, classes=[str(label) for label in range(100)])
    chosen = loader.some(images, 200)
    assert len(chosen) == len(set(chosen)) == 200
    assert chosen == sorted(chosen) == loader.some(images, 200)
    assert len({labels[index] for index in chosen}) > 75  # of 200 draws, 87 on average
    assert loader.some(images, 3000) == list(range(2000))


def test_as_many_processes_read_as_there_are_cores(folder_of_images, monkeypatch, capsys):
    started, made = [], torch.utils.data.DataLoader

    def make(*args, num_workers, **options):
        started.append(num_workers)
        return made(*args, num_workers=0, **options)

    monkeypatch.setattr("torch.utils.data.DataLoader", make)
    monkeypatch.setattr("os.cpu_count", lambda: 3)
    images = datasets.load_images("imagefolder", str(folder_of_images))
    for wanted in (5000, 2, 0, None):
        assert len(list(loader.batches(images, to_tensor, 8, wanted))) == 2
    assert started == [3, 2, 0, 3]
    assert "--num_workers 5000: this machine has 3 cores" in capsys.readouterr().err


def test_embedded_scenes_at_any_size():
    for size in (64, 50):
        images = datasets.load_images("emoji", None, size)
        assert images.samples[3][0].size == (size, size)
        expected, _ = scenes.draw(images.scenes[3:4], size)
        assert np.array_equal(np.array(images.samples[3][0]), expected[0].permute(1, 2, 0).numpy())


def damage(folder):
    path = folder / "cat" / "2.png"
    path.write_bytes(path.read_bytes()[:200])
    (folder / "owl" / "0.png").write_bytes(b"")
    return path


def test_a_truncated_image_is_named(folder_of_images):
    path = damage(folder_of_images)
    images = datasets.load_images("imagefolder", str(folder_of_images))
    with pytest.raises(UserError, match=f"cannot read {path}.*; mend or remove it$"):
        read(images)
    with pytest.raises(UserError, match=f"cannot read {path}.*--skip_bad_images"):  # for scripts that have the option
        read(images, skip_bad_images=False)


def test_bad_images_can_be_left_out_and_are_listed(folder_of_images):
    damage(folder_of_images)
    found = read(datasets.load_images("imagefolder", str(folder_of_images)), skip_bad_images=True)
    assert sum(len(labels) for _, labels, _ in found) == sum(len(pixels) for pixels, *_ in found) == 13
    bad = [sample for *_, samples in found for sample in samples]
    assert [index for index, _ in bad] == [7, 10]
    assert "2.png" in bad[0][1]
    assert "0.png" in bad[1][1]


def test_a_batch_of_bad_images_only(folder_of_images):
    damage(folder_of_images)
    found = read(datasets.load_images("imagefolder", str(folder_of_images)), batch_size=1, skip_bad_images=True)
    assert sorted(len(labels) for _, labels, _ in found) == [0, 0] + [1] * 13


@pytest.mark.parametrize("name, message", [
    ("imagefolder", "expected folders, one a class"), ("imagenet", "expected folders, one a class"),
    ("binary_waterbirds", "metadata.csv does not exist"), ("cub", "images.txt does not exist")])
def test_an_empty_folder_is_refused(tmp_path, name, message):
    with pytest.raises(UserError, match=message):
        datasets.load_images(name, str(tmp_path))


def test_missing_paths_are_refused(folder_of_images):
    with pytest.raises(UserError, match="needs --data_path"):
        datasets.load_images("imagenet")
    with pytest.raises(UserError, match="no such folder"):
        datasets.load_images("imagenet", "nowhere")
    with pytest.raises(UserError, match="1,000 class folders .* found 3"):
        datasets.load_images("imagenet", str(folder_of_images))


def test_imagenet_folders_in_the_order_of_their_names(tmp_path):
    for i in range(1000):
        folder = tmp_path / "val" / f"n{i:08d}"
        folder.mkdir(parents=True)
        Image.new("RGB", (4, 4)).save(folder / "x.png")
    images = datasets.load_images("imagenet", str(tmp_path))
    assert len(images.classes) == 1000
    assert images.classes[0] == "tench"
    assert [label for _, label in images.samples.samples] == list(range(1000))


def test_waterbirds_takes_the_test_split(tmp_path):
    root = tmp_path / "waterbird_complete95_forest2water2"
    (root / "001.A").mkdir(parents=True)
    rows = ["img_id,img_filename,y,split,place,place_filename"]
    for i, (y, split) in enumerate([(0, 0), (1, 2), (0, 2), (1, 1)]):
        Image.new("RGB", (4, 4)).save(root / "001.A" / f"{i}.png")
        rows.append(f"{i},001.A/{i}.png,{y},{split},1,/o/x.jpg")
    (root / "metadata.csv").write_text("\n".join(rows) + "\n")
    for path in (tmp_path, root):
        images = datasets.load_images("binary_waterbirds", str(path))
        assert [label for _, label in images.samples.samples] == [1, 0]
        assert images.classes == ["landbird", "waterbird"]


@pytest.mark.parametrize("row", ["1,a.jpg,,2,1", "1,a.jpg,2,2,1", "1,a.jpg,1,2", "1,a.jpg,0,3,1", "1,,0,2,1"])
def test_a_row_of_waterbirds_that_is_none_is_named(tmp_path, row):
    header = "\ufeffimg_id,img_filename,y,split,place"
    (tmp_path / "metadata.csv").write_text(f"{header}\r\n0,b.jpg,0,2,1\r\n{row}\r\n", encoding="utf-8", newline="")
    with pytest.raises(UserError, match="metadata.csv, line 3: not as in the official download; unpack waterbird_"):
        datasets.load_images("binary_waterbirds", str(tmp_path))


def test_cub_takes_the_test_images(tmp_path):
    root = tmp_path / "CUB_200_2011"
    root.mkdir()
    (root / "images.txt").write_text("1 001.Black_footed_Albatross/a.jpg\n2 002.Laysan_Albatross/b.jpg\n")
    (root / "image_class_labels.txt").write_text("1 1\n2 2\n")
    (root / "train_test_split.txt").write_text("1 1\n2 0\n")
    (root / "classes.txt").write_text("1 001.Black_footed_Albatross\n2 002.Laysan_Albatross\n")
    images = datasets.load_images("cub", str(tmp_path))
    assert images.samples.samples == [(str(root / "images" / "002.Laysan_Albatross" / "b.jpg"), 1)]
    assert images.classes == ["Black footed Albatross", "Laysan Albatross"]
    assert datasets.class_names("cub", str(tmp_path)) == images.classes


def test_cifar_from_its_own_files(tmp_path, monkeypatch):
    import pickle

    from torchvision.datasets import CIFAR10

    folder = tmp_path / CIFAR10.base_folder
    folder.mkdir()
    pixels = np.arange(2 * 3072, dtype=np.uint32).astype(np.uint8).reshape(2, 3072)
    (folder / "test_batch").write_bytes(pickle.dumps({"data": pixels, "labels": [3, 5]}))
    (folder / "batches.meta").write_bytes(pickle.dumps({"label_names": ["a", "b", "c", "cat", "d", "dog"]}))
    monkeypatch.setattr(CIFAR10, "_check_integrity", lambda self: True)  # these are not the real files
    monkeypatch.setattr("torchvision.datasets.cifar.check_integrity", lambda *_: True)
    images = datasets.load_images("CIFAR10", str(tmp_path))
    assert [label for _, label in (images.samples[0], images.samples[1])] == [3, 5]
    assert images.classes[5] == "dog"


def test_cifar_without_files_or_network_is_refused(tmp_path, monkeypatch):
    monkeypatch.setenv("https_proxy", "http://127.0.0.1:9")
    with pytest.raises(UserError, match="CIFAR100 is not there and cannot be downloaded"):
        datasets.load_images("CIFAR100", str(tmp_path))


def test_templates():
    assert len(captions.templates("imagenet")) == 80
    filled = [template("owl") for template in captions.templates("emoji")]
    assert "a drawing of an owl" in filled
    assert "a picture of owls" in filled
    assert captions.templates("emoji_spurious")[0]("sea animal") == "a drawing of a sea animal"
    assert captions.templates("emoji")[0]("grapes") == "a drawing of grapes"


def test_workers_as_many_as_cores_at_most_ten(monkeypatch):
    monkeypatch.setattr("os.cpu_count", lambda: 64)
    assert loader.worker_count(None) == 10
    assert loader.worker_count(0) == 0
    assert loader.worker_count(32) == 32
