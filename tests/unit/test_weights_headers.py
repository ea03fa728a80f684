"""Weight headers: what real libraries write is read without them, and what lies is refused."""

from __future__ import annotations

import io
import json
import os
import pickle
import struct
import zipfile
from pathlib import Path

import pytest

from deepseek_ops.registry.weights import (
    LocalRanges,
    WeightFormatError,
    WeightInfo,
    combine_shards,
    compare_weights,
    diff_lines,
    read_shard_index,
    read_weights,
    weight_lines,
)
from deepseek_ops.registry.weights import ranges as ranges_module


def safetensors_bytes(header: dict | bytes, data: int = 0) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + bytes(data)


GOOD = {
    "__metadata__": {"format": "pt", "epoch": "3"},
    "b": {"dtype": "BF16", "shape": [2, 3], "data_offsets": [16, 28]},
    "a": {"dtype": "F32", "shape": [4], "data_offsets": [0, 16]},
}


@pytest.fixture
def write(tmp_path: Path):
    def place(data: bytes, name: str = "weights.bin") -> LocalRanges:
        (tmp_path / name).write_bytes(data)
        return LocalRanges(tmp_path / name)

    return place


class TestSafetensors:
    def test_a_good_header_is_read_whole(self, write):
        info = read_weights(write(safetensors_bytes(GOOD, 28)))
        assert (info.format, info.framework, info.num_parameters) == ("safetensors", "pytorch", 10)
        assert [(one.name, one.described) for one in info.tensors] == [("a", "F32 [4]"), ("b", "BF16 [2, 3]")]
        assert info.dtypes == {"BF16": 6, "F32": 4}
        assert info.metadata == {"format": "pt", "epoch": "3"}

    def test_only_the_header_is_read(self, write):
        big = {"w": {"dtype": "U8", "shape": [50_000_000], "data_offsets": [0, 50_000_000]}}
        source = write(safetensors_bytes(big, 50_000_000))
        read_weights(source)
        assert source.num_read < 2000

    @pytest.mark.parametrize(
        ("entry", "problem"),
        [
            ({"dtype": "F32", "shape": [4], "data_offsets": [0, 12]}, "cannot lie"),
            ({"dtype": "F32", "shape": [2], "data_offsets": [8, 16]}, "leaves a gap"),
            ({"dtype": "F99", "shape": [4], "data_offsets": [0, 16]}, "unknown dtype"),
            ({"dtype": "F32", "shape": [-4], "data_offsets": [0, 16]}, "no sizes"),
            ({"dtype": "F32", "shape": [True], "data_offsets": [0, 4]}, "no sizes"),
            ({"dtype": "F32", "shape": [1 << 62, 1 << 62], "data_offsets": [0, 16]}, "cannot lie"),
            ({"dtype": "F32", "shape": [4], "data_offsets": [16, 0]}, "cannot lie"),
            ({"dtype": "F32", "shape": [4]}, "exactly dtype"),
            ({"dtype": "F32", "shape": [4], "data_offsets": [0, 16], "extra": 1}, "exactly dtype"),
            ([], "exactly dtype"),
        ],
    )
    def test_a_tensor_that_lies_is_refused(self, write, entry, problem):
        with pytest.raises(WeightFormatError, match=problem):
            read_weights(write(safetensors_bytes({"a": entry}, 16)))

    def test_overlapping_tensors_are_refused(self, write):
        header = {
            "a": {"dtype": "U8", "shape": [8], "data_offsets": [0, 8]},
            "b": {"dtype": "U8", "shape": [8], "data_offsets": [4, 12]},
        }
        with pytest.raises(WeightFormatError, match="overlaps"):
            read_weights(write(safetensors_bytes(header, 12)))

    @pytest.mark.parametrize("data", [27, 29])
    def test_cut_and_padded_files_are_refused(self, write, data):
        with pytest.raises(WeightFormatError, match="cut, or more was added"):
            read_weights(write(safetensors_bytes(GOOD, data)))

    def test_a_huge_header_length_is_refused_before_it_is_read(self, write):
        source = write((1 << 60).to_bytes(8, "little") + b"{" + bytes(1000))
        with pytest.raises(WeightFormatError, match="claims"):
            read_weights(source)
        assert source.num_read < 1000

    @pytest.mark.parametrize(
        "header",
        [
            b'{"a": {"dtype": "U8", "shape": [1], "data_offsets": [0, 1]}, "a": {"dtype": "U8"}}',
            b"{" + b'"a":[' * 100_000,
            b'{"a": ' + b"9" * 10_000 + b"}",
            b'{"__metadata__": {"a": 1}}',
            b'{"a": NaN',
            b'{"\xff": 1}',
        ],
    )
    def test_headers_that_are_no_plain_json_are_refused(self, write, header):
        with pytest.raises(WeightFormatError):
            read_weights(write(safetensors_bytes(header, 1)))


def torch_zip(pickled: bytes, storages: dict[str, int], extra: dict[str, bytes] | None = None) -> bytes:
    target = io.BytesIO()
    with zipfile.ZipFile(target, "w") as archive:
        archive.writestr("archive/data.pkl", pickled)
        archive.writestr("archive/version", b"3\n")
        for key, size in storages.items():
            archive.writestr(f"archive/data/{key}", bytes(size))
        for name, data in (extra or {}).items():
            archive.writestr(name, data)
    return target.getvalue()


def tensor_opcodes(shape: tuple[int, ...], storage: str = "FloatStorage", elements: int = 4, key: str = "0") -> bytes:
    """Return the opcodes of one tensor, as torch.save writes them."""

    def text(value: str) -> bytes:
        return b"X" + struct.pack("<I", len(value)) + value.encode()

    def number(value: int) -> bytes:
        return b"\x8a\x09" + value.to_bytes(9, "little", signed=True)

    sizes = b"(" + b"".join(map(number, shape)) + b"t"
    strides = b"(" + b"".join(number(1) for _ in shape) + b"t"
    persistent = b"(" + text("storage") + b"ctorch\n" + storage.encode() + b"\n" + text(key) + text("cpu")
    persistent += number(elements) + b"tQ"
    return b"ctorch._utils\n_rebuild_tensor_v2\n(" + persistent + number(0) + sizes + strides + b"\x89)tR"


def state_dict(tensor: bytes, name: str = "w") -> bytes:
    return b"\x80\x02}X" + struct.pack("<I", len(name)) + name.encode() + tensor + b"s."


class TestPickles:
    def test_a_tensor_is_read(self, write):
        info = read_weights(write(torch_zip(state_dict(tensor_opcodes((4,))), {"0": 16})))
        assert [(one.name, one.described) for one in info.tensors] == [("w", "F32 [4]")]
        assert info.executes == ()

    def test_nothing_is_executed_and_what_would_be_is_named(self, write, tmp_path):
        class Attack:
            def __reduce__(self):
                return os.system, (f"touch {tmp_path}/owned",)

        info = read_weights(write(torch_zip(pickle.dumps({"epoch": 3, "model": Attack()}), {})))
        assert not (tmp_path / "owned").exists()
        assert info.executes == ("posix.system",)
        assert info.metadata["epoch"] == "3"

    def test_a_module_of_the_attackers_is_not_imported(self, write, tmp_path, monkeypatch):
        (tmp_path / "attack_module_9.py").write_text(f"open({str(tmp_path / 'owned')!r}, 'w')")
        monkeypatch.syspath_prepend(str(tmp_path))
        info = read_weights(write(torch_zip(b"\x80\x02cattack_module_9\nrun\n)R.", {})))
        assert info.executes == ("attack_module_9.run",)
        assert not (tmp_path / "owned").exists()

    @pytest.mark.parametrize(
        ("opcodes", "problem"),
        [
            (tensor_opcodes((5,)), "reaches to element 5"),
            (tensor_opcodes((4,), elements=5), "has 16 in the file"),
            (tensor_opcodes((4,), key="missing"), "is missing"),
            (tensor_opcodes((4,), key="../../etc"), "is missing"),
            (tensor_opcodes((-1,)), "no sizes"),
            (tensor_opcodes((1 << 61,)), "no sizes"),
            (tensor_opcodes((1 << 31, 1 << 31)), "reaches"),
            (tensor_opcodes((4,), storage="EvilStorage"), "EvilStorage"),
        ],
    )
    def test_a_tensor_that_lies_is_refused(self, write, opcodes, problem):
        with pytest.raises(WeightFormatError, match=problem):
            read_weights(write(torch_zip(state_dict(opcodes), {"0": 16})))

    @pytest.mark.parametrize(
        "pickled",
        [
            b"",
            b"\x80\x02",
            b"\x80\x02}",
            b"\x80\x02t.",
            b"\x80\x02h\x07.",
            b"\x80\x02\x82\x01.",
            b"\x80\x02I" + b"9" * 6000 + b"\n.",
            b"\x80\x02X\xff\xff\xff\x7fabc.",
            b"\x80\x02\x8b\xff\xff\xff\x7f\x01.",
            b"\x80\x02N(NNe.",
            b"\x80\x02Nb.",
            b"\x80\x02R.",
        ],
    )
    def test_broken_pickles_are_refused(self, write, pickled):
        with pytest.raises(WeightFormatError):
            read_weights(write(torch_zip(pickled, {})))

    def test_cycles_and_shared_containers_end(self, write):
        cycle: list = []
        cycle.append(cycle)
        laughs: object = "ha"
        for _ in range(100):
            laughs = [laughs, laughs]
        deep: object = 1
        for _ in range(150):
            deep = {"a": deep}
        info = read_weights(write(torch_zip(pickle.dumps({"c": cycle, "l": laughs, "d": deep}), {})))
        assert info.tensors == ()

    def test_nesting_without_end_is_refused(self, write):
        pickled = b"\x80\x02" + b"]" * 5000 + b"a" * 4999 + b"."
        with pytest.raises(WeightFormatError, match="nested"):
            read_weights(write(torch_zip(pickled, {})))

    def test_a_zip_bomb_is_refused(self, write, monkeypatch):
        monkeypatch.setattr("deepseek_ops.registry.weights.pytorch.MAX_PICKLE_BYTES", 1 << 20)
        target = io.BytesIO()
        with zipfile.ZipFile(target, "w", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr("archive/data.pkl", bytes(8 << 20))
        with pytest.raises(WeightFormatError, match="claims"):
            read_weights(write(target.getvalue()))
        lying = bytearray(target.getvalue())
        for at in range(len(lying) - 4):  # both headers say that it is small
            if lying[at : at + 4] == struct.pack("<I", 8 << 20):
                lying[at : at + 4] = struct.pack("<I", 100)
        with pytest.raises(WeightFormatError):
            read_weights(write(bytes(lying)))

    @pytest.mark.parametrize("name", ["/etc/passwd", "archive/../../x", "a\\b"])
    def test_paths_that_climb_are_refused(self, write, name):
        with pytest.raises(WeightFormatError, match="holds the path"):
            read_weights(write(torch_zip(state_dict(tensor_opcodes((4,))), {"0": 16}, {name: b"x"})))

    def test_a_cut_archive_is_refused(self, write):
        whole = torch_zip(state_dict(tensor_opcodes((4,))), {"0": 16})
        for length in (10, len(whole) // 2, len(whole) - 3):
            with pytest.raises(WeightFormatError):
                read_weights(write(whole[:length]))

    def test_reading_has_a_budget(self, write, monkeypatch):
        monkeypatch.setattr(ranges_module, "BUDGET_BYTES", 10_000)
        with pytest.raises(WeightFormatError, match="more than"):
            read_weights(write(torch_zip(state_dict(tensor_opcodes((4,))) + bytes(200_000), {"0": 16})))


def gguf_text(value: str) -> bytes:
    return struct.pack("<Q", len(value)) + value.encode()


def gguf_bytes(
    keys: list[tuple[str, int, bytes]], tensors: list[tuple[str, tuple[int, ...], int, int]], data: int, **given: int
) -> bytes:
    head = b"GGUF" + struct.pack("<I", given.get("version", 3))
    head += struct.pack("<QQ", given.get("num_tensors", len(tensors)), given.get("num_keys", len(keys)))
    for key, kind, value in keys:
        head += gguf_text(key) + struct.pack("<I", kind) + value
    for name, shape, kind, offset in tensors:
        head += gguf_text(name) + struct.pack("<I", len(shape)) + b"".join(struct.pack("<Q", size) for size in shape)
        head += struct.pack("<IQ", kind, offset)
    return head + bytes(-len(head) % 32) + bytes(data)


ARCHITECTURE = ("general.architecture", 8, gguf_text("deepseek2"))
TOKENS = ("tokens", 9, struct.pack("<IQ", 8, 4) + b"".join(map(gguf_text, "abcd")))
SCORES = ("scores", 9, struct.pack("<IQ", 6, 100) + bytes(400))


class TestGguf:
    def test_a_good_header_is_read_whole(self, write):
        tensors = [("q", (64, 2), 2, 0), ("n", (8,), 0, 96)]
        info = read_weights(write(gguf_bytes([ARCHITECTURE, TOKENS, SCORES], tensors, 128)))
        assert info.framework == "gguf deepseek2"
        assert [(one.name, one.described, one.num_bytes) for one in info.tensors] == [
            ("n", "F32 [8]", 32),
            ("q", "Q4_0 [2, 64]", 72),
        ]
        assert info.metadata["tokens"] == "4 items: a, b, c, ..."
        assert info.metadata["scores"].startswith("100 items: 0.0")

    @pytest.mark.parametrize(
        ("data", "problem"),
        [
            (gguf_bytes([], [], 0, version=1), "version 1"),
            (gguf_bytes([], [], 0, version=3 << 24), "big-endian"),
            (gguf_bytes([], [], 0, num_tensors=1 << 60), "claims"),
            (gguf_bytes([], [], 0, num_keys=1 << 60), "claims"),
            (gguf_bytes([], [], 0, num_tensors=5), "cut short"),
            (gguf_bytes([], [("q", (33,), 2, 0)], 64), "impossible shape"),
            (gguf_bytes([], [("q", (32,), 999, 0)], 64), "unknown type"),
            (gguf_bytes([], [("q", (1 << 40, 1 << 40), 0, 0)], 64), "impossible shape"),
            (gguf_bytes([], [("q", (8,), 0, 32)], 32), "ends? at byte|it was cut"),
            (gguf_bytes([], [("a", (16,), 0, 0), ("b", (8,), 0, 32)], 96), "overlaps"),
            (gguf_bytes([], [("a", (8,), 0, 0), ("a", (8,), 0, 32)], 64), "twice"),
            (gguf_bytes([], [("a", (8,), 0, 5)], 96), "not aligned"),
            (gguf_bytes([ARCHITECTURE, ARCHITECTURE], [], 0), "twice"),
            (gguf_bytes([("k", 8, struct.pack("<Q", 1 << 40))], [], 0), "claims"),
            (gguf_bytes([("k", 9, struct.pack("<IQ", 0, 1 << 50))], [], 0), "claims"),
            (gguf_bytes([("k", 9, struct.pack("<IQ", 9, 1) * 10)], [], 0), "too deep"),
            (gguf_bytes([("general.alignment", 4, struct.pack("<I", 0))], [], 0), "power of two"),
        ],
    )
    def test_what_lies_is_refused(self, write, data, problem):
        with pytest.raises(WeightFormatError, match=problem):
            read_weights(write(data))


@pytest.mark.parametrize(
    ("data", "problem"),
    [
        (b"", "no safetensors"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:", "has to be fetched"),
        (pickle.dumps({"a": 1}), "bare pickle"),
        (bytes(257) + b"ustar" + bytes(300), "tar archive"),
        (b"\x89HDF\r\n\x1a\n" + bytes(100), "HDF5"),
        (b"\xfa#D\xf4bi\xbc", "no safetensors"),
    ],
)
def test_other_files_are_named(write, data, problem):
    with pytest.raises(WeightFormatError, match=problem):
        read_weights(write(data))


class TestSeveralFiles:
    def shard(self, write, names: list[str]) -> WeightInfo:
        header = {name: {"dtype": "U8", "shape": [1], "data_offsets": [at, at + 1]} for at, name in enumerate(names)}
        return read_weights(write(safetensors_bytes(header, len(names))))

    def test_shards_are_one_model(self, write):
        shards = {"1.safetensors": self.shard(write, ["a", "b"]), "2.safetensors": self.shard(write, ["c"])}
        text = json.dumps(
            {
                "metadata": {"total_size": 3},
                "weight_map": {"a": "1.safetensors", "b": "1.safetensors", "c": "2.safetensors"},
            }
        )
        index = read_shard_index(text.encode(), file="index")
        whole = combine_shards(shards, file="index", index=index)
        assert [one.name for one in whole.tensors] == ["a", "b", "c"]
        assert whole.shards == ("1.safetensors", "2.safetensors")
        wrong = read_shard_index(text.replace('"c": "2', '"c": "1').encode(), file="index")
        with pytest.raises(WeightFormatError, match="disagree about 1 tensors, such as 'c'"):
            combine_shards(shards, file="index", index=wrong)

    def test_a_tensor_in_two_files_is_refused(self, write):
        shards = {"1": self.shard(write, ["a"]), "2": self.shard(write, ["a"])}
        with pytest.raises(WeightFormatError, match="is in 1 and in 2"):
            combine_shards(shards, file="index")

    @pytest.mark.parametrize("name", ["../secret", "/etc/passwd", "a/b", "", ".."])
    def test_an_index_names_only_files_beside_it(self, name):
        with pytest.raises(WeightFormatError, match="not beside it"):
            read_shard_index(json.dumps({"weight_map": {"a": name}}).encode(), file="index")


def test_a_difference_names_what_changed(write):
    old = read_weights(write(safetensors_bytes(GOOD, 28)))
    header = {
        "__metadata__": {"format": "pt", "epoch": "4"},
        "b": {"dtype": "BF16", "shape": [3, 2], "data_offsets": [0, 12]},
        "c": {"dtype": "F32", "shape": [1], "data_offsets": [12, 16]},
    }
    new = read_weights(write(safetensors_bytes(header, 16)))
    assert compare_weights(old, old).empty
    lines = list(diff_lines(compare_weights(old, new), old="old", new="new"))
    assert lines[:2] == ["--- old", "+++ new"]
    for line in ("-tensor a F32 [4]", "+tensor c F32 [1]", "-tensor b BF16 [2, 3]", "+tensor b BF16 [3, 2]"):
        assert line in lines
    assert {"-parameters 10", "+parameters 7", "-metadata epoch 3", "+metadata epoch 4", "+dtype F32 1"} <= set(lines)


def test_names_cannot_forge_lines_or_terminal_codes(write):
    header = {"a\n+tensor x\x1b[31m": {"dtype": "U8", "shape": [], "data_offsets": [0, 1]}}
    lines = list(weight_lines(read_weights(write(safetensors_bytes(header, 1)))))
    assert lines[-1] == "tensor a?+tensor x?[31m U8 []"
