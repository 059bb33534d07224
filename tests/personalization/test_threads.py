import fcntl
import os
import subprocess
import sys
import time

import pytest
import torch

import cli
from personalization import threads
from personalization.scoring.products import fast_products
from personalization.threads import Share, Slots, wait_briefly

HOLD = """
import os, sys, time
from pathlib import Path
from personalization.threads import Slots
if len(sys.argv) > 2:
    os.sched_getaffinity = lambda _: set(map(int, sys.argv[2:]))
Slots(Path(sys.argv[1])).others()
print("held", flush=True)
time.sleep(600)
"""


@pytest.fixture
def hold(tmp_path):
    """A function that starts a process which holds a slot; whatever still runs at the end is killed."""
    processes = []

    def start(*cores):
        command = [sys.executable, "-c", HOLD, str(tmp_path), *map(str, cores)]
        processes.append(subprocess.Popen(command, stdout=subprocess.PIPE))
        assert processes[-1].stdout.readline() == b"held\n"
        return processes[-1]

    yield start
    for process in processes:
        process.kill()
        process.communicate()


@pytest.fixture
def eight(monkeypatch):
    """Torch with eight threads, of which the user has chosen none."""
    before = torch.get_num_threads()
    for name in threads.CHOSEN:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(threads, "LOOK_S", 0.0)
    torch.set_num_threads(8)
    yield
    threads._set_threads(before)


def test_a_process_is_counted_as_long_as_it_lives(tmp_path, hold):
    mine = Slots(tmp_path)
    assert mine.others() == 0
    first, second = hold(), hold()
    assert mine.others() == 2
    first.kill()
    first.wait()
    assert mine.others() == 1
    third = hold()
    assert mine.others() == 2
    assert len(list(tmp_path.iterdir())) == 3
    for process in (second, third):
        process.kill()
        process.wait()
    assert mine.others() == 0


def test_an_idle_process_and_one_on_other_cores_are_not_counted(tmp_path, hold):
    mine = Slots(tmp_path)
    hold(max(os.sched_getaffinity(0)) + 1)
    assert mine.others() == 0
    hold(*os.sched_getaffinity(0))
    assert mine.others() == 1
    long_ago = time.time() - threads.IDLE_S - 1
    os.utime(tmp_path / "2.slot", (long_ago, long_ago))
    assert mine.others() == 0


def test_threads_are_shared_and_come_back(tmp_path, hold, eight):
    share = Share(tmp_path)
    share.update()
    assert torch.get_num_threads() == 8
    other = hold()
    share.update()
    assert torch.get_num_threads() == 4
    many = [hold() for _ in range(8)]
    share.update()
    assert torch.get_num_threads() == 1
    for process in (other, *many):
        process.kill()
        process.wait()
    share.update()
    assert torch.get_num_threads() == 8


def test_the_pools_of_other_libraries_are_shared_also_those_that_came_later(tmp_path, hold, eight, monkeypatch):
    from threadpoolctl import ThreadpoolController

    def widest():
        return max(library["num_threads"] for library in ThreadpoolController().info())

    share = Share(tmp_path)
    hold(), hold(), hold()
    share.update()
    assert widest() == 2
    ThreadpoolController().limit(limits=7)
    monkeypatch.setitem(sys.modules, "a_library_that_was_just_loaded", sys)
    share.update()
    assert widest() == 2


def test_what_the_user_chose_stands(tmp_path, hold, eight, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "8")
    share = Share(tmp_path)
    hold()
    share.update()
    assert torch.get_num_threads() == 8


def test_every_batch_takes_its_part(tmp_path, hold, eight, monkeypatch):
    monkeypatch.setattr(threads.tempfile, "tempdir", str(tmp_path))
    threads._share_of.cache_clear()
    folder = tmp_path / f"chamtune-{os.getuid()}"
    with fast_products("cpu"):
        assert torch.get_num_threads() == 8
    assert folder.stat().st_mode & 0o777 == 0o700
    with (folder / "1.slot").open("ab") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        with fast_products("cpu"):
            assert torch.get_num_threads() == 4
    threads._share_of.cache_clear()


@pytest.mark.parametrize("kind", ["link", "open", "file"])
def test_a_folder_that_others_may_write_is_not_used(tmp_path, monkeypatch, kind, eight, caplog):
    monkeypatch.setattr(threads.tempfile, "tempdir", str(tmp_path))
    folder = tmp_path / f"chamtune-{os.getuid()}"
    if kind == "link":
        (tmp_path / "elsewhere").mkdir()
        folder.symlink_to(tmp_path / "elsewhere")
    elif kind == "open":
        folder.mkdir()
        folder.chmod(0o777)
    else:
        folder.touch()
    share = Share(threads._folder())
    share.update()
    assert "cores are not shared" in caplog.text
    assert not list(tmp_path.rglob("*.slot"))


@pytest.mark.parametrize("chosen", threads.WAITING)
def test_threads_wait_briefly_unless_the_user_says_how(monkeypatch, chosen):
    for given, wanted in (({chosen: "7"}, {chosen: "7"}), ({}, {"GOMP_SPINCOUNT": threads.SPINS})):
        monkeypatch.setattr(os, "environ", given)
        wait_briefly()
        assert os.environ == wanted


def test_the_command_lets_threads_wait_briefly(monkeypatch):
    seen = []
    monkeypatch.setattr(os, "environ", {})
    monkeypatch.setattr(cli, "app", lambda *_, **__: seen.append(dict(os.environ)))
    monkeypatch.setattr(cli.app, "registered_groups", [], raising=False)
    with pytest.raises(SystemExit):
        cli.main()
    assert seen == [{"GOMP_SPINCOUNT": threads.SPINS}]
