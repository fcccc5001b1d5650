"""Feature bags: what TRIDENT and CLAM write is read at once, what we write is theirs to the name; bad ones are named.

The files of those tools are made here from their description with h5py and torch alone.
"""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch

from longvit.data.bag_layouts import tile_attributes, tile_level0_px, write_bag, write_coordinates
from longvit.data.bags import FeatureBag, find_bags, folder_of_encoder, join_bags, read_bag
from longvit.errors import InputError

N, D = 300, 24


def numbers(n: int = N, d: int = D, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    return rng.normal(size=(n, d)).astype(np.float32), rng.integers(0, 50_000, (n, 2))


def tridents(folder: Path, name: str, features: np.ndarray, coords: np.ndarray) -> Path:
    """A file as TRIDENT extracts it: 256 px at 20× from a slide of 40×."""
    folder.mkdir(parents=True, exist_ok=True)
    with h5py.File(folder / f"{name}.h5", "w") as file:
        data = file.create_dataset("features", data=features, chunks=(1, features.shape[1]))
        data.attrs["name"] = name
        data.attrs["savetodir"] = str(folder)
        data.attrs["encoder"] = "uni_v1"
        _tridents_coords(file, folder, name, coords)
    return folder / f"{name}.h5"


def _tridents_coords(file: h5py.File, folder: Path, name: str, coords: np.ndarray) -> None:
    data = file.create_dataset("coords", data=coords.astype(np.int64), chunks=(1, 2))
    facts = {"patch_size": 256, "patch_size_level0": 512, "level0_magnification": 40, "target_magnification": 20}
    facts |= {"overlap": 0, "level0_width": 90_000, "level0_height": 60_000}
    for key, value in {**facts, "name": name, "savetodir": str(folder)}.items():
        data.attrs[key] = value


def clams(folder: Path, name: str, features: np.ndarray, coords: np.ndarray) -> tuple[Path, Path]:
    """The two files that CLAM extracts."""
    for part in ("h5_files", "pt_files"):
        (folder / part).mkdir(parents=True, exist_ok=True)
    h5, pt = folder / "h5_files" / f"{name}.h5", folder / "pt_files" / f"{name}.pt"
    with h5py.File(h5, "w") as file:
        shape = (1, features.shape[1])
        file.create_dataset("features", data=features, chunks=shape, maxshape=(None, features.shape[1]))
        file.create_dataset("coords", data=coords.astype(np.int32), chunks=(1, 2), maxshape=(None, 2))
    torch.save(torch.from_numpy(features), pt)
    return h5, pt


def described(path: Path) -> dict[str, Any]:
    """Names, shapes, dtypes and attributes of an HDF5 file, with the attributes' dtypes; not the chunks."""
    with h5py.File(path) as file:
        facts: dict[str, Any] = {name: (file[name].shape, file[name].dtype) for name in file}
        for name in file:
            for key, value in file[name].attrs.items():
                facts[f"{name}.{key}"] = (value, np.asarray(value).dtype, file[name].attrs.get_id(key).dtype)
        facts["root"] = dict(file.attrs)
        return facts


def test_a_bag_of_tridents_is_read(tmp_path: Path) -> None:
    features, coords = numbers()
    bag = read_bag(tridents(tmp_path, "a.b", features, coords))
    np.testing.assert_array_equal(bag.features, features)
    np.testing.assert_array_equal(bag.coords, coords)
    assert (bag.features.dtype, bag.coords.dtype) == (np.float32, np.int64)
    assert bag.attributes["encoder"] == "uni_v1"
    assert bag.attributes["level0_width"] == 90_000
    assert bag.tile_level0_px == 512
    assert len(bag) == N


@pytest.mark.parametrize("dtype", [np.float16, np.float64])
def test_features_of_another_precision_become_float32(tmp_path: Path, dtype: type) -> None:
    features, coords = numbers()
    bag = read_bag(tridents(tmp_path, "a", features.astype(dtype), coords))
    np.testing.assert_array_equal(bag.features, features.astype(dtype).astype(np.float32))
    assert bag.features.dtype == np.float32


def test_both_files_of_clams_are_read(tmp_path: Path) -> None:
    features, coords = numbers()
    h5, pt = clams(tmp_path, "a", features, coords)
    with_coords, bare = read_bag(h5), read_bag(pt)
    for bag in (with_coords, bare):
        np.testing.assert_array_equal(bag.features, features)
        assert bag.tile_level0_px is None
    np.testing.assert_array_equal(with_coords.coords, coords)
    assert with_coords.coords.dtype == np.int64
    assert bare.coords is None


def test_a_tensor_of_bfloat16_is_read(tmp_path: Path) -> None:
    torch.save(torch.ones(3, 4, dtype=torch.bfloat16), tmp_path / "a.pt")
    assert read_bag(tmp_path / "a.pt").features.tolist() == [[1.0] * 4] * 3


def test_what_we_write_is_tridents_to_the_name_dtype_and_attribute(tmp_path: Path) -> None:
    features, coords = numbers()
    theirs = tridents(tmp_path / "job", "a", features, coords)
    wanted = described(theirs)
    attributes = tile_attributes(tile_px=256, tile_mpp=0.5, overlap_px=0, mpp=(0.25, 0.25), size_px=(90_000, 60_000))
    theirs.unlink()
    write_bag(tmp_path / "job", "a", features, coords, encoder="uni_v1", coords_attributes=attributes)
    assert described(theirs) == wanted
    np.testing.assert_array_equal(read_bag(theirs).features, features)
    with h5py.File(theirs) as file:
        assert file["features"].chunks == (256, D)


def test_our_coordinates_are_tridents(tmp_path: Path) -> None:
    _, coords = numbers()
    path = tmp_path / "patches" / "a_patches.h5"
    path.parent.mkdir()
    for n in (N, 0):  # an empty slide is (0, 2)
        with h5py.File(path, "w") as file:
            _tridents_coords_of_any(file, path.parent, coords[:n])
        wanted = described(path)
        attributes = tile_attributes(
            tile_px=256, tile_mpp=0.5, overlap_px=0, mpp=(0.25, 0.25), size_px=(90_000, 60_000)
        )
        write_coordinates(path, "a", coords[:n], attributes)
        assert described(path) == wanted
        with h5py.File(path) as file:
            np.testing.assert_array_equal(file["coords"][()], coords[:n])


def _tridents_coords_of_any(file: h5py.File, folder: Path, coords: np.ndarray) -> None:
    if len(coords):
        _tridents_coords(file, folder, "a", coords)
        return
    _tridents_coords(file, folder, "a", np.zeros((1, 2)))
    attributes = dict(file["coords"].attrs)
    del file["coords"]
    file.create_dataset("coords", data=coords.astype(np.int64)).attrs.update(attributes)


def test_what_we_write_is_clams_to_the_name_dtype_and_attribute(tmp_path: Path) -> None:
    features, coords = numbers()
    wanted = described(clams(tmp_path / "theirs", "a", features, coords)[0])
    paths = write_bag(tmp_path / "ours", "a", features, coords, layout="clam", encoder="x", coords_attributes={"y": 1})
    assert [str(path.relative_to(tmp_path / "ours")) for path in paths] == ["h5_files/a.h5", "pt_files/a.pt"]
    assert described(paths[0]) == wanted
    with h5py.File(paths[0]) as file:
        np.testing.assert_array_equal(file["features"][()], features)
        np.testing.assert_array_equal(file["coords"][()], coords)
    tensor = torch.load(paths[1], weights_only=True)
    assert type(tensor) is torch.Tensor
    assert (tensor.dtype, tuple(tensor.shape)) == (torch.float32, (N, D))
    assert torch.equal(tensor, torch.from_numpy(features))


def test_attributes_of_tiles_between_tridents_magnifications() -> None:
    attributes = tile_attributes(tile_px=224, tile_mpp=0.45, overlap_px=8, mpp=(0.2347, 0.2347), size_px=(10, 20))
    assert attributes["patch_size_level0"] == round(224 * 0.45 / 0.2347)
    assert attributes["level0_magnification"] == 40
    assert attributes["target_magnification"] == pytest.approx(10 / 0.45)
    assert "patch_height_level0" not in attributes
    narrow = tile_attributes(tile_px=224, tile_mpp=0.5, overlap_px=0, mpp=(0.25, 0.5), size_px=(10, 20))
    assert (narrow["patch_size_level0"], narrow["patch_height_level0"]) == (448, 224)


@pytest.mark.parametrize(
    ("attributes", "side"),
    [
        ({"patch_size_level0": 513, "patch_size": 256}, 513),
        ({"patch_size": 256, "level0_magnification": 40, "target_magnification": 20}, 512),
        ({"patch_size": 256, "level0_magnification": "None", "target_magnification": "None"}, None),
        ({"patch_size": 256, "patch_level": 0}, 256),  # CLAM
        ({"patch_size": 256, "patch_level": 1, "downsample": np.array([4.0, 4.0])}, 1024),
        ({"patch_size": 256, "patch_level": 0, "custom_downsample": 2}, 512),
        ({"patch_size": 256, "patch_level": 1}, None),
        ({"patch_size": 256}, None),
        ({}, None),
    ],
)
def test_the_side_of_a_tile_is_told_from_either_tools_attributes(
    attributes: dict[str, Any], side: float | None
) -> None:
    assert tile_level0_px(attributes) == side


def test_features_that_are_not_finite_are_named_with_their_tile(tmp_path: Path) -> None:
    features, coords = numbers()
    features[7, 3], features[9, 0] = np.nan, np.inf
    path = tridents(tmp_path, "a", features, coords)
    with pytest.raises(
        InputError, match=r"a\.h5: 2 of 300 tiles have features that are not finite \(the first is tile 7\)"
    ):
        read_bag(path)


def test_an_empty_bag_is_named(tmp_path: Path) -> None:
    (path,) = write_bag(tmp_path, "a", np.empty((0, D), np.float32), np.empty((0, 2)))
    with pytest.raises(InputError, match=r"a\.h5: an empty bag: features of shape \(0, 24\)"):
        read_bag(path)


def test_features_and_coords_of_different_number_are_named(tmp_path: Path) -> None:
    features, coords = numbers()
    path = tridents(tmp_path, "a", features, coords[:-1])
    with pytest.raises(InputError, match=r"a\.h5: 300 features and 299 coords do not match"):
        read_bag(path)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ({"coords": np.zeros((3, 2), int)}, "no dataset 'features' \\(it has coords\\)"),
        ({"features": np.zeros(24, np.float32)}, r"features of shape \(24,\) and type float32, not \(tiles, width\)"),
        ({"features": np.zeros((3, 4), int)}, r"features of shape \(3, 4\) and type int64"),
        ({"features": np.ones((3, 4)), "coords": np.ones((3, 3))}, r"coords of shape \(3, 3\)"),
        ({"features": np.ones((3, 4)), "coords": np.full((3, 2), np.nan)}, "coords that are not finite"),
    ],
)
def test_an_h5_of_something_else_says_what_it_has(content: dict[str, np.ndarray], words: str, tmp_path: Path) -> None:
    with h5py.File(tmp_path / "a.h5", "w") as file:
        for name, values in content.items():
            file[name] = values
    with pytest.raises(InputError, match=rf"a\.h5: {words}"):
        read_bag(tmp_path / "a.h5")


def test_files_that_are_none_are_one_line(tmp_path: Path) -> None:
    for name in ("a.h5", "a.pt"):
        with pytest.raises(InputError, match=rf"{name}: No such file"):
            read_bag(tmp_path / name)
        (tmp_path / name).write_bytes(b"nothing of use")
        with pytest.raises(InputError, match=rf"{name}: no") as caught:
            read_bag(tmp_path / name)
        assert "\n" not in str(caught.value)
        (tmp_path / name).write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n")
        with pytest.raises(InputError, match="a pointer of Git LFS"):
            read_bag(tmp_path / name)


class _Harmful:
    def __reduce__(self) -> tuple[Any, ...]:
        return (open, ("harm", "w"))


def test_a_pt_that_would_run_code_is_refused_and_runs_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save({"features": _Harmful()}, tmp_path / "a.pt")
    (tmp_path / "b.pt").write_bytes(pickle.dumps(_Harmful()))
    for name in ("a.pt", "b.pt"):
        with pytest.raises(InputError, match="only plain tensors are opened"):
            read_bag(tmp_path / name)
    assert not (tmp_path / "harm").exists()


def test_a_pt_with_a_dict_names_its_keys(tmp_path: Path) -> None:
    torch.save({"features": torch.ones(2, 3), "coords": torch.ones(2, 2)}, tmp_path / "a.pt")
    with pytest.raises(InputError, match=r"a\.pt: holds a dict of features, coords, not a tensor"):
        read_bag(tmp_path / "a.pt")


def test_slides_of_a_patient_become_one_bag_that_remembers_them(tmp_path: Path) -> None:
    bags = []
    for i, n in enumerate((5, 1, 8)):
        features, coords = numbers(n, seed=i)
        bags.append(read_bag(tridents(tmp_path, f"s{i}", features, coords)))
    whole = join_bags(bags)
    assert len(whole) == 14
    np.testing.assert_array_equal(whole.slide_numbers, [0] * 5 + [1] + [2] * 8)
    np.testing.assert_array_equal(whole.features[6:], bags[2].features)
    np.testing.assert_array_equal(whole.coords[5], bags[1].coords[0])
    assert whole.slides == tuple(bag.path for bag in bags)
    without = FeatureBag(Path("c.pt"), bags[0].features)
    assert join_bags([bags[0], without]).coords is None


def test_slides_of_different_width_are_both_named(tmp_path: Path) -> None:
    one = tridents(tmp_path, "one", *numbers(4, 24))
    other = tridents(tmp_path, "other", *numbers(4, 32))
    words = r"other\.h5: features of width 32, while .*one\.h5 has 24; were both made by the same encoder"
    with pytest.raises(InputError, match=words):
        join_bags([read_bag(one), read_bag(other)])


def test_bags_are_found_by_id_with_or_without_extension(tmp_path: Path) -> None:
    for name in ("TCGA-01.uuid", "b"):
        tridents(tmp_path / "features_uni", name, *numbers(3))
    found = find_bags(tmp_path / "features_uni", ["TCGA-01.uuid.svs", "b", "c.ndpi", "b"])
    assert {key: path.name for key, path in found.paths.items()} == {
        "TCGA-01.uuid.svs": "TCGA-01.uuid.h5",
        "b": "b.h5",
    }
    assert found.missing == ("c.ndpi",)


def test_the_h5_of_clams_goes_before_its_pt(tmp_path: Path) -> None:
    clams(tmp_path, "a", *numbers(3))
    torch.save(torch.ones(2, 3), tmp_path / "pt_files" / "b.pt")
    found = find_bags(tmp_path, ["a", "b"])
    assert [found.paths[name].parent.name for name in "ab"] == ["h5_files", "pt_files"]
    assert find_bags(tmp_path / "pt_files", ["a"]).paths["a"].suffix == ".pt"


def test_a_folder_above_leads_to_the_only_features_in_it(tmp_path: Path) -> None:
    job = tmp_path / "20x_256px_0px_overlap"
    tridents(job / "features_uni", "a", *numbers(3))
    write_coordinates(job / "patches" / "a_patches.h5", "a", np.zeros((3, 2)), {})
    assert find_bags(tmp_path, ["a"]).paths["a"] == job / "features_uni" / "a.h5"
    tridents(job / "features_conch", "a", *numbers(3))
    with pytest.raises(
        InputError, match=r"2 folders of features in it \(20x_256px_0px_overlap/features_conch, .*name one"
    ):
        find_bags(tmp_path, ["a"])
    with pytest.raises(InputError, match="no such folder"):
        find_bags(tmp_path / "none", ["a"])
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="no features in it"):
        find_bags(tmp_path / "empty", ["a"])


def test_the_features_of_an_encoder_are_found_in_a_job(tmp_path: Path) -> None:
    for place in ("20x_256px_0px_overlap/features_uni", "20x_224px_0px_overlap/features_virchow2"):
        tridents(tmp_path / place, "a", *numbers())
    assert folder_of_encoder(tmp_path, "uni") == tmp_path / "20x_256px_0px_overlap" / "features_uni"
    with pytest.raises(InputError, match="no folder features_uni2-h with features in it"):
        folder_of_encoder(tmp_path, "uni2-h")
    tridents(tmp_path / "40x_256px_0px_overlap" / "features_uni", "a", *numbers())
    with pytest.raises(
        InputError, match=r"2 folders features_uni with features in it \(20x_256px.*; give one as --feat"
    ):
        folder_of_encoder(tmp_path, "uni")
