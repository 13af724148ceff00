"""pyoptim.datasets: what the data are, where they come from, and that damaged files are refused.

No test leaves this machine: downloads come from files and from a server on 127.0.0.1.
"""

import contextlib
import gzip
import hashlib
import http.server
import io
import os
import tarfile
import threading
import time
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from pyoptim import datasets
from pyoptim.datasets import _files, _formats
from pyoptim.datasets._sources import SOURCES, Source

DATA = os.environ.get("PYOPTIM_DATA", "")
needs_mnist = pytest.mark.skipif(
    not (DATA and Path(DATA, "mnist").is_dir()),
    reason="needs MNIST: PYOPTIM_DATA names no folder that holds mnist/",
)
MNIST_TRAIN = [5923, 6742, 5958, 6131, 5842, 5421, 5918, 6265, 5851, 5949]
MNIST_TEST = [980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009]


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def md5(data: bytes) -> str:
    return hashlib.md5(data).hexdigest()


def idx(array: np.ndarray) -> bytes:
    header = bytes([0, 0, 8, array.ndim])
    return header + b"".join(n.to_bytes(4, "big") for n in array.shape) + array.tobytes()


def listing(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir()) if folder.exists() else []


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    """An empty cache, no PYOPTIM_DATA, and no way to another machine."""
    monkeypatch.delenv("PYOPTIM_DATA", raising=False)
    monkeypatch.setenv("PYOPTIM_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("no_proxy", "*")
    urlopen = urllib.request.urlopen

    def guarded(url, *args, **kwargs):
        assert url.startswith(("file://", "http://127.0.0.1:")), f"a test went out to {url}"
        return urlopen(url, *args, **kwargs)

    monkeypatch.setattr(urllib.request, "urlopen", guarded)
    return tmp_path / "cache"


class Published:
    """A small stand-in for MNIST, in a folder that serves as the mirror."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        rng = np.random.default_rng(0)
        shapes = [(7, 28, 28), (7,), (3, 28, 28), (3,)]
        self.arrays = [rng.integers(0, 10, shape, dtype=np.uint8) for shape in shapes]
        self.folder, self.monkeypatch = folder, monkeypatch
        folder.mkdir()
        self.files = list(SOURCES["mnist"].files)
        self.raw = dict(zip(self.files, map(idx, self.arrays), strict=True))
        self.packed = {file: gzip.compress(raw, mtime=0) for file, raw in self.raw.items()}
        for file, packed in self.packed.items():
            (folder / file).write_bytes(packed)
        self.url = folder.as_uri() + "/"
        self.digests = {file: sha256(raw) for file, raw in self.raw.items()}
        self.use(self.url)

    def use(self, *mirrors: str, **digests: str) -> None:
        source = Source(_formats.parse_idx, mirrors, self.digests | digests)
        self.monkeypatch.setitem(SOURCES, "mnist", source)

    def check(self, dataset: datasets.Dataset) -> None:
        for got, want in zip(dataset, self.arrays, strict=True):
            np.testing.assert_array_equal(got, want)


@pytest.fixture
def published(tmp_path, monkeypatch):
    return Published(tmp_path / "published", monkeypatch)


@pytest.fixture
def own(tmp_path, monkeypatch):
    """The folder $PYOPTIM_DATA/mnist, empty."""
    monkeypatch.setenv("PYOPTIM_DATA", str(tmp_path / "data"))
    (tmp_path / "data" / "mnist").mkdir(parents=True)
    return tmp_path / "data" / "mnist"


@pytest.fixture
def serve():
    """Start a server whose answers are ``respond(path) -> (status, body, Content-Length)``."""
    servers = []

    def start(respond):
        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self):
                status, body, length = respond(self.path.removeprefix("/"))
                with contextlib.suppress(ConnectionError):  # the client may have gone
                    self.send_response(status)
                    self.send_header("Content-Length", str(length))
                    self.end_headers()
                    self.wfile.write(body)

            def log_message(self, *args):
                pass

        server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        servers.append((server, thread))
        return f"http://127.0.0.1:{server.server_port}/"

    yield start
    for server, thread in servers:
        server.shutdown()
        server.server_close()
        thread.join()


# The data


def test_digits():
    data = datasets.load("digits")
    assert data._fields == ("x_train", "y_train", "x_test", "y_test")
    assert data.x_train.shape == (1437, 8, 8)
    assert data.x_test.shape == (360, 8, 8)
    for x in (data.x_train, data.x_test):
        assert x.dtype == np.uint8
        assert (x.min(), x.max()) == (0, 16)
    assert data.y_train.dtype == data.y_test.dtype == np.int64
    train, test = np.bincount(data.y_train), np.bincount(data.y_test)
    np.testing.assert_array_equal(train + test, [178, 182, 177, 183, 181, 182, 181, 179, 174, 180])
    assert np.abs(test - 0.2 * (train + test)).max() < 1  # stratified
    assert (np.diff(data.y_train) < 0).mean() > 0.4  # shuffled: no order of the classes


def test_digits_parts_are_disjoint():
    data = datasets.load("digits", flatten=True)
    train, test = ({row.tobytes() for row in x} for x in (data.x_train, data.x_test))
    assert (len(train), len(test)) == (1437, 360)
    assert not train & test


def test_digits_labels_belong_to_the_images():
    data = datasets.load("digits", flatten=True, normalize=True)
    centres = np.stack([data.x_train[data.y_train == k].mean(0) for k in range(10)])
    nearest = ((data.x_test[:, None] - centres) ** 2).sum(-1).argmin(1)
    assert (nearest == data.y_test).mean() > 0.85


def test_digits_are_those_of_scikit_learn():
    reference = pytest.importorskip("sklearn.datasets").load_digits()
    data = datasets.load("digits", flatten=True)
    x, y = np.concatenate([data.x_train, data.x_test]), np.concatenate([data.y_train, data.y_test])
    rows = sorted(zip(map(bytes, x), y, strict=True))
    wanted = zip(map(bytes, reference.data.astype(np.uint8)), reference.target, strict=True)
    assert rows == sorted(wanted)


def test_digits_file_is_small_and_its_licence_lies_next_to_it():
    folder = Path(datasets.__file__).parent
    assert (folder / "digits.npz").stat().st_size < 100_000
    text = (folder / "DIGITS.txt").read_text()
    for needed in ("Alpaydin", "Kaynak", "CC BY 4.0", "10.24432/C50P49", "Changes"):
        assert needed in text


@needs_mnist
def test_mnist(monkeypatch, cache):
    monkeypatch.setenv("PYOPTIM_DATA", DATA)
    data = datasets.load("mnist")
    assert data.x_train.shape == (60000, 28, 28)
    assert data.x_test.shape == (10000, 28, 28)
    assert data.x_train.dtype == data.x_test.dtype == np.uint8
    np.testing.assert_array_equal(np.bincount(data.y_train), MNIST_TRAIN)
    np.testing.assert_array_equal(np.bincount(data.y_test), MNIST_TEST)
    assert list(data.y_train[:8]) == [5, 0, 4, 1, 9, 2, 1, 3]
    # The mean and the deviation that normalisation recipes for MNIST quote: 0.1307, 0.3081.
    assert data.x_train.mean() / 255 == pytest.approx(0.1307, abs=5e-5)
    assert data.x_train.std() / 255 == pytest.approx(0.3081, abs=5e-5)
    assert not cache.exists()


@needs_mnist
def test_one_changed_pixel_of_mnist_is_refused(own):
    for path in Path(DATA, "mnist").glob("*ubyte*"):
        (own / path.name).symlink_to(path.resolve())
    changed = own / "t10k-images-idx3-ubyte.gz"
    raw = bytearray(gzip.decompress(changed.read_bytes()))
    raw[-1] ^= 1
    changed.unlink()
    changed.write_bytes(gzip.compress(bytes(raw), 1))
    with pytest.raises(datasets.DatasetError, match=r"t10k-images.*wrong checksum"):
        datasets.load("mnist")


# load()


@pytest.mark.parametrize(("name", "scale"), [("digits", 16), ("mnist", 255)])
def test_flatten_and_normalize(name, scale, published):
    plain = datasets.load(name)
    flat = datasets.load(name, flatten=True)
    scaled = datasets.load(name, normalize=True)
    both = datasets.load(name, flatten=True, normalize=True)
    for part in ("x_train", "x_test"):
        x = getattr(plain, part)
        rows = x.reshape(len(x), -1)
        np.testing.assert_array_equal(getattr(flat, part), rows)
        assert getattr(flat, part).dtype == np.uint8
        for got, values in ((getattr(scaled, part), x), (getattr(both, part), rows)):
            assert got.dtype == np.float32
            np.testing.assert_array_equal(got, values.astype(np.float32) / np.float32(scale))
    assert both.y_train.dtype == np.int64
    np.testing.assert_array_equal(both.y_train, plain.y_train)
    if name == "digits":
        assert both.x_train.max() == 1


@pytest.mark.parametrize("name", ["digits", "mnist"])
@pytest.mark.parametrize("flatten", [False, True])
@pytest.mark.parametrize("normalize", [False, True])
def test_arrays_are_the_callers_own(name, flatten, normalize, published):
    first, second = (datasets.load(name, flatten=flatten, normalize=normalize) for _ in range(2))
    for array, other in zip(first, second, strict=True):
        assert array.flags.c_contiguous
        before = other.copy()
        array[...] = 3
        np.testing.assert_array_equal(other, before)


@pytest.mark.parametrize("name", ["MNIST", "", "imagenet", None, ["digits"]])
def test_unknown_name(name):
    with pytest.raises(ValueError, match="one of digits, mnist, fashion_mnist, cifar10"):
        datasets.load(name)


def test_import_is_cheap(run_python):
    code = (
        "import sys, pyoptim.datasets;"
        "print([m for m in ('urllib.request', 'tarfile', 'sklearn') if m in sys.modules])"
    )
    done = run_python(code)
    assert done.stdout.strip() == "[]", done.stderr


# Where files are found


@pytest.mark.parametrize("packed", [True, False])
@pytest.mark.parametrize("strip", [True, False])
def test_own_folder_packed_or_not(packed, strip, own, cache, published):
    # Both forms under both names: what counts is the content.
    published.use("http://127.0.0.1:9/")
    for file in published.files:
        content = published.packed[file] if packed else published.raw[file]
        (own / (file.removesuffix(".gz") if strip else file)).write_bytes(content)
    published.check(datasets.load("mnist"))
    assert not cache.exists()


def test_own_folder_comes_first_then_the_cache_then_a_download(own, cache, published):
    first, second, *_ = published.files
    (own / first).write_bytes(published.packed[first])
    (cache / "mnist").mkdir(parents=True)
    (cache / "mnist" / first).write_bytes(b"never read")
    (cache / "mnist" / second).write_bytes(published.packed[second])
    published.check(datasets.load("mnist"))
    assert listing(own) == [first]
    assert listing(cache / "mnist") == sorted(published.files)
    assert (cache / "mnist" / first).read_bytes() == b"never read"


@pytest.mark.parametrize(
    ("variables", "folder"),
    [
        ({"PYOPTIM_CACHE": "{tmp}/a", "XDG_CACHE_HOME": "{tmp}/b"}, "a"),
        ({"PYOPTIM_CACHE": "~/a"}, "home/a"),
        ({"PYOPTIM_CACHE": "", "XDG_CACHE_HOME": "{tmp}/b"}, "b/pyoptim"),
        ({"PYOPTIM_CACHE": "", "XDG_CACHE_HOME": "", "PYOPTIM_DATA": ""}, "home/.cache/pyoptim"),
    ],
)
def test_place_of_the_cache(variables, folder, tmp_path, monkeypatch, published):
    for variable in ("HOME", "USERPROFILE"):
        monkeypatch.setenv(variable, str(tmp_path / "home"))
    for variable, value in variables.items():
        monkeypatch.setenv(variable, value.format(tmp=tmp_path))
    published.check(datasets.load("mnist"))
    assert listing(tmp_path / folder / "mnist") == sorted(published.files)


# Verification


@pytest.mark.parametrize("place", ["own", "cache", "mirror"])
@pytest.mark.parametrize("cut", [0, 1, 2, 3, 9, 10, 11, 0.3, 0.7, -9, -8, -5, -4, -1])
def test_truncated_gz(place, cut, own, cache, published):
    file = published.files[0]
    packed = published.packed[file]
    folder = {"own": own, "cache": cache / "mnist", "mirror": published.folder}[place]
    folder.mkdir(parents=True, exist_ok=True)
    end = int(cut * len(packed)) if isinstance(cut, float) else cut
    (folder / file).write_bytes(packed[:end])
    with pytest.raises(datasets.DatasetError, match=r"truncated|wrong checksum") as caught:
        datasets.load("mnist")
    assert file in str(caught.value)
    if place == "mirror":
        assert not cache.exists()
    else:  # refused, not replaced in silence
        assert str(folder / file) in str(caught.value)
        assert (folder / file).read_bytes() == packed[:end]


def test_every_changed_byte_is_noticed_or_harmless(own, published):
    # Some bytes of a gzip header (time, system) may differ, the data in it never.
    for file in published.files:
        (own / file).write_bytes(published.packed[file])
    path = own / published.files[1]
    packed = path.read_bytes()
    refused = 0
    for i in range(len(packed)):
        path.write_bytes(packed[:i] + bytes([packed[i] ^ 0x41]) + packed[i + 1 :])
        try:
            data = datasets.load("mnist")
        except datasets.DatasetError:
            refused += 1
        else:
            published.check(data)
    assert len(packed) - 10 <= refused < len(packed)


@pytest.mark.parametrize("content", [b"<html>404</html>", b"\0\0\x08\x01\0\0\0\x01\5", bytes(range(99))])
@pytest.mark.parametrize("packed", [True, False])
def test_another_file(content, packed, own, published):
    path = own / published.files[2]
    path.write_bytes(gzip.compress(content) if packed else content)
    with pytest.raises(datasets.DatasetError, match="wrong checksum") as caught:
        datasets.load("mnist")
    assert str(path) in str(caught.value)


def test_files_in_each_others_place(own, published):
    first, second = published.files[0], published.files[2]
    (own / first).write_bytes(published.packed[second])
    with pytest.raises(datasets.DatasetError, match=r"train-images.*wrong checksum"):
        datasets.load("mnist")


@pytest.mark.parametrize("digest", [md5, sha256])
@pytest.mark.parametrize(
    ("proves", "accepted"),
    [
        ("packed", ["packed"]),
        ("raw", ["packed", "again", "raw"]),
        ("both", ["packed", "again", "raw"]),
    ],
)
def test_kinds_of_digest(digest, proves, accepted, own, published):
    file = published.files[0]
    forms = {"packed": published.packed[file], "raw": published.raw[file]}
    forms["again"] = gzip.compress(forms["raw"], 1, mtime=1)
    assert forms["again"] != forms["packed"]
    kinds = ["packed", "raw"] if proves == "both" else [proves]
    published.use(published.url, **{file: " ".join(digest(forms[kind]) for kind in kinds)})
    for form, content in forms.items():
        (own / file).write_bytes(content)
        if form in accepted:
            published.check(datasets.load("mnist"))
        else:
            with pytest.raises(datasets.DatasetError, match="wrong checksum"):
                datasets.load("mnist")


def test_table():
    assert datasets.NAMES == ("digits", "mnist", "fashion_mnist", "cifar10")
    for source in SOURCES.values():
        assert all(mirror.endswith("/") for mirror in source.mirrors)
        digests = [digest for row in source.files.values() for digest in row.split()]
        assert len(set(digests)) == len(digests)
        assert all(len(digest) in (32, 64) and int(digest, 16) for digest in digests)


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "not an IDX file"),
        (b"\0\0\x08", "not an IDX file"),
        (b"\0\0\x0d\x01\0\0\0\x01\0\0\0\0", "not an IDX file"),  # floats
        (b"\1\0\x08\x01\0\0\0\x01\0", "not an IDX file"),
        (b"\0\0\x08\x03\0\0\0\x02", "header says"),  # ends within the header
        (b"\0\0\x08\x01\0\0\0\x03\1\2", "header says"),
        (b"\0\0\x08\x01\0\0\0\x01\1\2", "header says"),
        (b"\0\0\x08\x01\xff\xff\xff\xff\1", "header says"),
        (b"\0\0\x08\x03" + b"\xff" * 12 + b"\1", "header says"),  # more than 64 bits can count
        (b"\0\0\x08\xff" + b"\0\0\0\x01" * 255 + b"\1", "dimension"),  # more than NumPy has
    ],
)
def test_idx_header_lies(data, reason, own, published):
    with pytest.raises(ValueError, match=reason):
        _formats.parse_idx(data)
    # The same from outside, were such a file ever the published one.
    file = published.files[1]
    published.use(published.url, **{file: sha256(data)})
    (own / file).write_bytes(gzip.compress(data))
    with pytest.raises(datasets.DatasetError, match=f"{file}.*{reason}"):
        datasets.load("mnist")


def test_no_file_exhausts_the_memory(own, cache, published, monkeypatch):
    monkeypatch.setattr(_files, "_LIMIT", 1000)
    file = published.files[0]
    (own / file).write_bytes(gzip.compress(bytes(1001)))
    with pytest.raises(datasets.DatasetError, match="more than 1000 bytes when uncompressed"):
        datasets.load("mnist")
    (own / file).unlink()
    assert len(published.packed[file]) > 1000
    with pytest.raises(datasets.DatasetError, match="more than 1000 bytes"):
        datasets.load("mnist")
    assert not cache.exists()


# Downloads


def test_download_once(cache, published):
    published.check(datasets.load("mnist"))
    for file, packed in published.packed.items():
        assert (cache / "mnist" / file).read_bytes() == packed
    assert listing(cache / "mnist") == sorted(published.files)  # no temporary file is left
    published.use("http://127.0.0.1:9/")
    published.check(datasets.load("mnist"))


@pytest.mark.parametrize("failure", ["404", "503", "html", "changed", "cut", "broken", "refused"])
def test_mirror_fallback(failure, serve, cache, published):
    def respond(file):
        packed = published.packed[file]
        if failure.isdigit():
            return int(failure), b"sorry", 5
        body = {
            "html": b"<html>welcome to this hotel</html>",
            "changed": packed[:-20] + bytes(20),
            "cut": packed[:100],
            "broken": packed[:100],
        }[failure]
        return 200, body, len(packed) if failure == "broken" else len(body)

    bad = "http://127.0.0.1:9/" if failure == "refused" else serve(respond)
    published.use(bad, published.url)
    published.check(datasets.load("mnist"))
    assert listing(cache / "mnist") == sorted(published.files)


def test_no_answer_in_time(serve, monkeypatch, published):
    monkeypatch.setattr(_files, "_TIMEOUT", 0.1)
    done = threading.Event()

    def respond(file):
        done.wait(10)
        return 404, b"", 0

    published.use(serve(respond), published.url)
    start = time.monotonic()
    published.check(datasets.load("mnist"))
    assert time.monotonic() - start < 5  # four files
    done.set()


def test_offline(own, cache, published, monkeypatch):
    present, *missing = published.files
    (own / present).write_bytes(published.packed[present])
    mirrors = ("file:///nowhere/", "http://127.0.0.1:9/")
    published.use(*mirrors)
    with pytest.raises(datasets.DatasetError) as caught:
        datasets.load("mnist")
    message = str(caught.value)
    assert f"$PYOPTIM_DATA/mnist ({own})" in message
    assert str(cache / "mnist") in message
    for mirror in mirrors:
        assert f"{mirror}{missing[0]}: " in message
    for file in missing:
        assert f"\n  {file} from {mirrors[0]}{file}" in message
    assert present not in message
    assert not cache.exists()

    monkeypatch.delenv("PYOPTIM_DATA")
    with pytest.raises(datasets.DatasetError, match=r"\$PYOPTIM_DATA/mnist \(not set\)"):
        datasets.load("mnist")


@pytest.mark.parametrize("fails", ["mkdir", "write", "replace"])
def test_cache_that_cannot_be_written(fails, cache, published, monkeypatch):
    def full(*args):
        raise OSError(28, "No space left on device")

    if fails == "mkdir":
        cache.write_bytes(b"a file where the folder should be")
    elif fails == "write":
        monkeypatch.setattr(os, "fsync", full)
    else:
        monkeypatch.setattr(os, "replace", full)
    with pytest.warns(RuntimeWarning, match="could not be written") as caught:
        data = datasets.load("mnist")
    published.check(data)
    assert len(caught) == 4
    assert caught[0].filename == __file__
    if fails != "mkdir":
        assert listing(cache / "mnist") == []


def test_interrupted_write_leaves_nothing(cache, published, monkeypatch):
    def interrupt(*args):
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "replace", interrupt)
    with pytest.raises(KeyboardInterrupt):
        datasets.load("mnist")
    assert listing(cache / "mnist") == []


def test_concurrent_first_loads(serve, cache, published):
    barrier = threading.Barrier(8)

    def respond(file):
        return 200, published.packed[file], len(published.packed[file])

    published.use(serve(respond))

    def load(_):
        barrier.wait(10)
        return datasets.load("mnist")

    with ThreadPoolExecutor(8) as pool:
        for data in pool.map(load, range(8)):
            published.check(data)
    assert listing(cache / "mnist") == sorted(published.files)


# CIFAR-10


def archive(batches: dict[str, bytes | None]) -> bytes:
    """A .tar.gz of these batches; None makes a link instead of a file."""
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w:gz") as tar:
        for name, content in batches.items():
            member = tarfile.TarInfo(f"cifar-10-batches-bin/{name}.bin")
            if content is None:
                member.type, member.linkname = tarfile.SYMTYPE, "/etc/passwd"
            member.size = len(content or b"")
            tar.addfile(member, io.BytesIO(content or b""))
    return stream.getvalue()


@pytest.fixture
def batches():
    records = np.random.default_rng(0).integers(0, 256, (6, 2, 3073), dtype=np.uint8)
    records[:, :, 0] = np.arange(12).reshape(6, 2) % 10
    names = [f"data_batch_{i}" for i in range(1, 6)] + ["test_batch"]
    return dict(zip(names, (batch.tobytes() for batch in records), strict=True))


def publish_cifar(content, tmp_path, monkeypatch):
    (tmp_path / "cifar-10-binary.tar.gz").write_bytes(content)
    source = SOURCES["cifar10"]._replace(
        mirrors=(tmp_path.as_uri() + "/",), files={"cifar-10-binary.tar.gz": md5(content)}
    )
    monkeypatch.setitem(SOURCES, "cifar10", source)


def test_cifar10(batches, tmp_path, monkeypatch, cache):
    publish_cifar(archive(batches), tmp_path, monkeypatch)
    data = datasets.load("cifar10")
    assert data.x_train.shape == (10, 3, 32, 32)
    assert data.x_test.shape == (2, 3, 32, 32)
    np.testing.assert_array_equal(data.y_train, np.arange(10))
    np.testing.assert_array_equal(data.y_test, [0, 1])
    # Image 3 is the second of batch 2; plane 2 is blue; rows of 32 pixels.
    start = 3073 + 1 + 2 * 1024 + 5 * 32
    blue_row = np.frombuffer(batches["data_batch_2"], np.uint8)[start : start + 32]
    np.testing.assert_array_equal(data.x_train[3, 2, 5], blue_row)
    for x in (data.x_train, data.x_test, datasets.load("cifar10", flatten=True).x_test):
        assert x.flags.c_contiguous
        assert x.flags.writeable
    scaled = datasets.load("cifar10", flatten=True, normalize=True).x_train
    assert scaled.flags.c_contiguous
    np.testing.assert_array_equal(scaled, data.x_train.reshape(10, -1) / np.float32(255))
    assert listing(cache / "cifar10") == ["cifar-10-binary.tar.gz"]


@pytest.mark.parametrize("damage", ["missing", "ragged", "empty", "link", "not tar", "cut tar"])
def test_cifar10_archive_of_something_else(damage, batches, tmp_path, monkeypatch, cache):
    if damage == "missing":
        del batches["data_batch_4"]
    elif damage in ("ragged", "empty", "link"):
        whole = batches["test_batch"]
        batches["test_batch"] = {"ragged": whole[:-1], "empty": b"", "link": None}[damage]
    content = archive(batches)
    if damage == "not tar":
        content = gzip.compress(b"no archive")
    elif damage == "cut tar":
        content = gzip.compress(gzip.decompress(content)[:9000])
    publish_cifar(content, tmp_path, monkeypatch)
    with pytest.raises(datasets.DatasetError, match=r"test_batch|not the archive"):
        datasets.load("cifar10")
    assert not cache.exists()


def test_cifar10_truncated(batches, tmp_path, monkeypatch):
    content = archive(batches)
    publish_cifar(content, tmp_path, monkeypatch)
    for end in (0, 1, 100, len(content) // 2, len(content) - 1):
        (tmp_path / "cifar-10-binary.tar.gz").write_bytes(content[:end])
        with pytest.raises(datasets.DatasetError, match=r"truncated|wrong checksum"):
            datasets.load("cifar10")
