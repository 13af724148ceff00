"""A training by several processes: ranks end with equal bits, and with those of one process to rounding."""

import shutil
import subprocess
import time

import numpy as np
import pytest
from support.mpi import command, ends_all, needs_mpi, program, run, start, succeeds

from pyoptim import distributed
from pyoptim.train.ranks import Ranks, share_of

PROGRAM = "ranked.py"


@needs_mpi
@pytest.mark.parametrize(
    ("name", "ranks"), [("equal", 3), ("uneven", 3), ("empty", 3), ("blocks", 3), ("refused", 2)]
)
def test_ranks(name, ranks, tmp_path):
    succeeds(ranks, PROGRAM, name, tmp_path)


@needs_mpi
def test_a_training_that_was_killed_goes_on_to_the_same_bits(tmp_path):
    killed = command(2, program(PROGRAM), "killed", tmp_path)
    with subprocess.Popen(killed, stdout=subprocess.PIPE, text=True) as process:
        assert any(line == "waiting\n" for line in process.stdout)
        process.kill()
    assert (tmp_path / "random").exists()
    for rank in range(3):
        shutil.copy(tmp_path / "plain", tmp_path / f"plain of {rank}")
    for name, ranks in (("again", 2), ("others", 3)):
        ended = start(ranks, PROGRAM, name, tmp_path)
        assert ended.returncode == 0, ended.stdout + ended.stderr


@needs_mpi
def test_a_rank_that_fails_ends_all(tmp_path):
    started = time.monotonic()
    ends_all(PROGRAM, tmp_path, "the disk of rank 1 is full")
    assert time.monotonic() - started < 100  # it does not hang


@needs_mpi
def test_the_command_line(tmp_path):
    arguments = [
        "-m",
        "pyoptim",
        "train",
        "digits",
        "--epochs",
        "1",
        "--hidden",
        "8",
        "--save",
        "m.safetensors",
    ]
    ended = run(2, *arguments, cwd=tmp_path)
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout.count("model saved") == 1
    assert "on each of 2 ranks" in ended.stdout
    assert [path.name for path in tmp_path.iterdir()] == ["m.safetensors"]
    ended = run(2, *arguments, "--optimizer", "l-bfgs", cwd=tmp_path)
    assert ended.returncode != 0
    assert "one process, without mpiexec" in ended.stderr


@pytest.mark.parametrize("count", [0, 1, 7, 12])
@pytest.mark.parametrize("size", [1, 2, 5])
def test_shares_are_all_examples_once(count, size):
    shares = [share_of(count, rank, size) for rank in range(size)]
    assert [i for share in shares for i in range(*share)] == list(range(count))
    assert np.ptp([end - begin for begin, end in shares]) <= 1


@pytest.mark.parametrize("shard", [True, False])
@pytest.mark.parametrize("drop_last", [True, False])
@pytest.mark.parametrize("counts", [[7, 7, 7], [12, 0, 5], [1, 40, 2]])
@pytest.mark.parametrize("batch", [3, 4, 9])
def test_batches_have_parts_of_all_ranks(shard, drop_last, counts, batch):
    total, ends = sum(counts), []
    for rank, count in enumerate(counts):
        ranks = Ranks(None)
        ranks.rank, ranks.size = rank, len(counts)
        of_all, own = ranks.ends(total if shard else count, total, batch, drop_last, shard)
        ends.append(own)
    left_out = total % batch if drop_last else 0
    assert of_all[-1] == total - left_out
    sizes = np.diff(of_all, prepend=0)
    assert (sizes[:-1] == batch).all()
    parts = np.diff(ends, prepend=0, axis=1)
    assert (parts >= 0).all()
    if shard or len(set(counts)) == 1:
        assert (parts.sum(axis=0) == sizes).all()
    else:
        assert (parts.sum(axis=0) > 0).all()
        shares = np.outer(counts, sizes) / total
        assert (abs(parts - shares) <= 1).all()
    if not shard and not drop_last:
        assert [own[-1] for own in ends] == counts


def test_a_process_that_was_started_alone():
    assert distributed.world() is None
    with pytest.raises(TypeError, match="comm is 3, expected a communicator"):
        Ranks(3)
