"""How files are written and read: killed writers, modes and links, damage, what cannot be written."""

import errno
import os
import stat
import sys
import threading
import time
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from support import children, hostile, kills

import pyoptim as po
from pyoptim import callbacks, cli, nn
from pyoptim.runtime import files

TOOLS = Path(__file__).resolve().parents[1]
X, Y = np.zeros((8, 4), np.float32), np.arange(8) % 3


@pytest.fixture
def path(tmp_path):
    return tmp_path / "model.safetensors"


def temporary_files(folder):
    return [name for name in os.listdir(folder) if name.startswith(".")]


# ---- what a file says --------------------------------------------------------------------------------


def test_bad_files_are_refused(tmp_path):
    paths = hostile.write_corpus(tmp_path)
    nn.Sequential.load(tmp_path / "good.safetensors")
    for name, each in paths.items():
        assert hostile.outcome("model", each) == (False, ""), name


@pytest.mark.parametrize("name", hostile.FINE)
def test_files_in_any_valid_json_load(path, name):
    model = hostile.a_model()
    model.save(path)
    path.write_bytes(hostile.FINE[name](path.read_bytes()))
    assert np.array_equal(nn.Sequential.load(path).flat_parameters, model.flat_parameters)


def test_files_that_declare_more_than_they_hold_take_no_memory(path):
    hostile.a_model().save(path)
    path.write_bytes(hostile.bomb(2**18)(path.read_bytes()))
    tracemalloc.start()
    try:
        assert hostile.outcome("model", path) == (False, "")
        assert tracemalloc.get_traced_memory()[1] < 30 * 2**20  # of 1.4 MB that declare 8 GB
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("kind", hostile.READERS)
def test_every_flipped_byte_is_refused(kind, tmp_path):
    content = hostile.good_files(tmp_path)[kind]
    damaged = tmp_path / "damaged"
    for i in [*range(150), *range(150, len(content), 31)]:  # first the length, the checksum and their names
        damaged.write_bytes(content[:i] + bytes([content[i] ^ 1 << i % 8]) + content[i + 1 :])
        with pytest.raises(ValueError, match="damaged"):
            hostile.READERS[kind](damaged)


def test_files_from_before_there_were_checksums_load(path):
    hostile.a_model(1).save(path)
    path.write_bytes(hostile.Parts(path.read_bytes()).joined(checksum=False))
    assert b"checksum" not in path.read_bytes()
    again = nn.Sequential.load(path)
    assert np.array_equal(again.flat_parameters, hostile.a_model(1).flat_parameters)


def test_a_file_that_is_read_can_be_written_again(path):
    hostile.a_model().save(path)
    content = path.read_bytes()
    files.write(path, *files.read(path, "pyoptim-model-1"))
    assert path.read_bytes() == content


def test_changed_files(tmp_path):
    taken, wrong = hostile.fuzz(300, 0, tmp_path)
    assert wrong == []
    assert 0 < taken < 100


# ---- writers -------------------------------------------------------------------------------------------


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.parametrize("kind", ["model", "training"])
def test_killed_writers_leave_a_whole_file_and_nothing_else(kind, tmp_path):
    done = children.run(TOOLS / "support" / "kills.py", "--rounds", "12", "--kind", kind,
                        cwd=tmp_path, timeout=120, env={**os.environ, "PYTHONPATH": str(TOOLS)})  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert "{'damaged': 0, 'failed': 0, 'left': 0}" in done.stdout


def test_threads_that_save_to_one_file_do_not_disturb_each_other(path):
    failures = []

    def save(seed):
        model = kills.a_model(seed)
        try:
            for _ in range(10):
                model.save(path)
                nn.Sequential.load(path)
        except Exception as error:
            failures.append(error)

    threads = [threading.Thread(target=save, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    assert os.listdir(path.parent) == [path.name]


fcntl = pytest.importorskip("fcntl")


def left_over(folder, machine, age=0.0):
    made = folder / f".pyoptim-{machine}-{'0123456789abcdef'}.tmp"
    made.write_bytes(b"part of a model")
    os.utime(made, (time.time() - age,) * 2)
    return made


def test_temporary_files_are_removed_once_their_writer_is_dead(path):
    own = files._machine() or pytest.skip("this system does not name its machine")
    made = left_over(path.parent, own)
    with made.open("rb") as held:  # as a writer that lives
        fcntl.flock(held, fcntl.LOCK_EX)
        kills.a_model().save(path)
        assert made.exists()
    kills.a_model().save(path)
    assert temporary_files(path.parent) == []


def test_temporary_files_of_other_machines_are_left_alone_for_an_hour(path):
    made = left_over(path.parent, "other123", age=3000)
    kills.a_model().save(path)
    assert made.exists()
    os.utime(made, (time.time() - 3700,) * 2)
    kills.a_model().save(path)
    assert not made.exists()


def test_files_of_other_names_are_never_removed(path):
    own = ".pyoptim-0123abcd-0123456789abcdef.tmp"
    names = [".pyoptim-", own + ".txt", own[1:], "x" + own, own.replace("9", "g"), ".x"]
    for name in names:
        (path.parent / name).write_bytes(b"mine")
        os.utime(path.parent / name, (0, 0))
    kills.a_model().save(path)
    assert sorted(os.listdir(path.parent)) == sorted([*names, path.name])


def test_a_temporary_file_that_is_taken_for_left_over_is_made_again(path, monkeypatch):
    """Another process may see it in the moment before it is locked."""
    lock, taken = files._lock, []

    def late(descriptor, wait):
        if not taken:
            taken.append(temporary_files(path.parent))
            os.unlink(path.parent / taken[0][0])
        return lock(descriptor, wait)

    monkeypatch.setattr(files, "_lock", late)
    kills.a_model().save(path)
    nn.Sequential.load(path)
    assert os.listdir(path.parent) == [path.name]


# ---- modes, links, folders -----------------------------------------------------------------------------


def mode_of(path):
    return stat.S_IMODE(path.stat().st_mode)


@pytest.mark.parametrize("mode", [0o600, 0o640, 0o666, 0o755])
def test_the_mode_of_a_replaced_file_is_kept(path, mode):
    path.write_bytes(b"old")
    path.chmod(mode)
    kills.a_model().save(path)
    assert mode_of(path) == mode


@pytest.mark.parametrize(
    ("refused", "before", "after"),
    [("nothing", 0o664, 0o664), ("the owner", 0o664, 0o664), ("owner and group", 0o664, 0o644),
     ("owner and group", 0o660, 0o600), ("owner and group", 0o666, 0o666)],
)  # fmt: skip
def test_rights_of_a_group_are_given_to_no_other(path, refused, before, after, monkeypatch):
    """A file of another user keeps its group where we belong to it; else the group's rights are dropped."""
    path.write_bytes(b"old")
    path.chmod(before)
    stat_of, given = os.stat, []

    def of_another(name, *arguments, **options):
        found = stat_of(name, *arguments, **options)
        if os.fspath(name) != str(path):
            return found
        return os.stat_result([*found[:4], found.st_uid + 1, found.st_gid + 1, *found[6:]])

    def chown(name, user, group):
        if refused == "owner and group" or (refused == "the owner" and user != -1):
            raise PermissionError
        given.append((user, group))

    found = stat_of(path)
    monkeypatch.setattr(os, "stat", of_another)
    monkeypatch.setattr(os, "chown", chown)
    files.write_atomically(path, b"new")
    monkeypatch.undo()
    assert mode_of(path) == after
    user = found.st_uid + 1 if refused == "nothing" else -1
    assert given == ([] if refused == "owner and group" else [(user, found.st_gid + 1)])


def test_a_new_file_has_the_mode_of_any_and_the_mask_is_never_changed(path, monkeypatch):
    before = os.umask(0o027)
    try:
        monkeypatch.setattr(os, "umask", None)  # other threads' files would have that mask
        kills.a_model().save(path)
        assert mode_of(path) == 0o640
    finally:
        monkeypatch.undo()
        os.umask(before)


def test_what_replaces_a_private_file_is_never_readable(path, monkeypatch):
    path.write_bytes(b"old")
    path.chmod(0o600)
    modes, fsync = [], os.fsync

    def look(descriptor):
        modes.append(stat.S_IMODE(os.fstat(descriptor).st_mode))
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", look)
    monkeypatch.setattr(files, "_take_over", lambda *arguments: None)  # as before its mode is set
    kills.a_model().save(path)
    assert modes[0] == 0o600


def test_a_link_stays_one_and_its_target_is_replaced(path, tmp_path):
    (tmp_path / "other").mkdir()
    target, link, second = tmp_path / "other" / "file", tmp_path / "link", tmp_path / "second"
    link.symlink_to("other/file")
    second.symlink_to(link)
    for each in (second, link):  # the first save makes the target
        kills.a_model().save(each)
        assert link.is_symlink()
        assert second.is_symlink()
        nn.Sequential.load(target)
    assert os.listdir(tmp_path / "other") == ["file"]
    circle = tmp_path / "circle"
    circle.symlink_to(circle)
    with pytest.raises(OSError, match=os.strerror(errno.ELOOP)):
        kills.a_model().save(circle)
    assert circle.is_symlink()


def test_the_folder_reaches_the_disk_after_the_file_is_in_place(path, monkeypatch):
    synced, fsync = [], os.fsync

    def look(descriptor):
        is_folder = stat.S_ISDIR(os.fstat(descriptor).st_mode)
        synced.append((is_folder, path.exists()))
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", look)
    kills.a_model().save(path)
    assert synced == [(False, False), (True, True)]


# ---- what cannot be written is said before the work ----------------------------------------------------


def fails_at_once(model, match, **options):
    """fit refuses, and neither the model nor any file has changed."""
    optimizer = po.SGD(model.parameters())
    before = model.flat_parameters.copy()
    with pytest.raises(ValueError, match=match):
        po.Trainer(model, nn.CrossEntropy(), optimizer).fit(X, Y, verbose=False, **options)
    assert np.array_equal(model.flat_parameters, before)


TARGETS = {
    "sub/model": "no folder",
    "folder": "exists and is no file",
    "null\0byte": "expected the name of a file",
    "link": "no folder",
}


@pytest.mark.parametrize("name", TARGETS)
def test_a_training_refuses_what_it_could_not_write(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "folder").mkdir()
    (tmp_path / "link").symlink_to("nowhere/model")
    (tmp_path / "old.csv").write_text("an older log")
    match = TARGETS[name]
    first = callbacks.CSVLogger("old.csv")  # what comes before the one that is refused has written nothing
    model = hostile.a_model()
    fails_at_once(model, f"checkpoint .*{match}", checkpoint=name)
    for kind in (callbacks.ModelCheckpoint, callbacks.CSVLogger):
        if "\0" in name:
            with pytest.raises(ValueError, match=f"path .*{match}"):
                kind(name)
        else:
            fails_at_once(model, f"path .*{match}", callbacks=[first, kind(name)])
    assert (tmp_path / "old.csv").read_text() == "an older log"
    assert sorted(os.listdir(tmp_path)) == ["folder", "link", "old.csv"]


def test_a_checkpoint_with_values_in_its_name_is_refused_too(tmp_path):
    model = hostile.a_model()
    for name, match in {
        "sub/m-{epoch:02d}-{val_loss:.3f}": "no folder",
        "m-{epoch:x.3f}": "no measured values fit",
        "m-{}": "no measured values fit",
    }.items():
        fails_at_once(model, match, callbacks=[callbacks.ModelCheckpoint(tmp_path / name)])
    assert os.listdir(tmp_path) == []

    class Mine(nn.ReLU):
        pass

    own = nn.Sequential(nn.Dense(4, 3), Mine(), seed=0)
    fails_at_once(own, r"layers\[1\] is a Mine", callbacks=[callbacks.ModelCheckpoint(tmp_path / "m")])


def test_unwritable_folders_are_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "access", lambda *_: False)  # root may write anywhere
    model = hostile.a_model()
    fails_at_once(model, "cannot be written", checkpoint=tmp_path / "x")
    (tmp_path / "x").write_bytes(b"")
    with pytest.raises(PermissionError, match="x"):
        model.save(tmp_path / "x")


@pytest.mark.parametrize("name", ["sub/file.png", "null\0byte.png"])
@pytest.mark.parametrize(
    "command",
    [
        "train --save",
        "train --plot",
        "bench --json",
        "bench --plot",
        "compare --plot",
        "study schedules --plot",
    ],
)
def test_commands_refuse_what_they_could_not_write(command, name, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert cli.main([*command.split(), name]) == 2
    captured = capsys.readouterr()
    assert f"{command.split()[-1]} is {name!r}" in captured.err
    assert not captured.out
    assert os.listdir(tmp_path) == []


@pytest.mark.skipif(sys.platform != "linux", reason="needs /dev/zero and pipes")
def test_what_is_no_file_is_neither_read_nor_replaced(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    for target in ("/dev/zero", tmp_path / "pipe", tmp_path, "null\0byte"):
        for call in (hostile.a_model().save, nn.Sequential.load):
            with pytest.raises(ValueError, match=r"device|directory|expected the name of a file"):
                call(target)


@pytest.mark.skipif(sys.platform != "linux", reason="needs the limits of Linux")
@pytest.mark.skipif("native" not in po.available_backends(), reason="needs the compiled kernels")
def test_without_threads_to_be_had_the_process_goes_on(run_python):
    """Root is not bound by the number of processes, so the child becomes somebody else.

    It may then import no more, so it has done everything once before, on one thread.
    """
    code = (
        "import os, resource, threading\n"
        "import numpy as np, pyoptim as po\n"
        "from pyoptim import nn\n"
        "x, y = np.ones((512, 256), np.float32), np.arange(512) % 10\n"
        "model = nn.Sequential(nn.Dense(256, 256), nn.Dense(256, 10), seed=0)\n"
        "trainer = po.Trainer(model, nn.CrossEntropy(), po.SGD(model.parameters()))\n"
        "def work():\n"
        "    trainer.fit(x, y, epochs=2, verbose=False, parallel='hogwild', batch_size=16)\n"
        "    trainer.fit(x, y, epochs=2, verbose=False)\n"
        "    return trainer.predict(x)\n"
        "work()\n"
        "if os.getuid() == 0: os.setgid(65534), os.setuid(65534)\n"
        "resource.setrlimit(resource.RLIMIT_NPROC, (0, 0))\n"
        "try: threading.Thread(target=print).start()\n"
        "except RuntimeError: print('no threads')\n"
        "po.set_num_threads(8)\n"
        "print(np.isfinite(work()).all())\n"
    )
    done = run_python(code, PYOPTIM_ALWAYS_SHARE="1", PYOPTIM_NUM_THREADS="1")
    assert (done.returncode, done.stdout) == (0, "no threads\nTrue\n"), done.stderr


def test_numbers_of_threads_that_cannot_be(backend):
    for n in (0, -1, 100_000, 2**31, 2**64):
        with pytest.raises(ValueError, match=f"n is {n}, expected between 1 and"):
            po.set_num_threads(n)
