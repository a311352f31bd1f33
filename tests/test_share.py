"""Work that several runs share: each piece once, those that come before it first."""

import contextlib

import pytest

from hpt_jax import workdir
from hpt_jax.share import Task, share


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(workdir, "POLL_SECONDS", 0.01)


@pytest.fixture
def make(tmp_path):
    """Makes tasks that write their name to `done`, in which others may write as well."""

    def make(key, *before):
        return Task(
            key, frozenset(before), tmp_path / key, lambda: key in done, lambda: done.append(key)
        )

    done = make.done = []
    return make


def test_a_run_that_is_alone_does_all_in_order(make):
    share([make("a"), make("b", "a"), make("c"), make("d", "b")], pytest.fail)
    assert make.done == ["a", "b", "c", "d"]


def test_what_is_done_is_not_done_again(make):
    make.done.append("a")
    share([make("a"), make("b", "a")], pytest.fail)
    assert make.done == ["a", "b"]


def test_what_another_run_holds_is_put_off_and_done_when_that_has_died(make, tmp_path):
    told = []

    def waits(text):
        told.append(text)
        assert make.done == ["c"]
        other.close()

    other = workdir.take(tmp_path / "a")
    share([make("a"), make("b", "a"), make("c")], waits)
    assert make.done == ["c", "a", "b"]
    assert [text.partition(" on ")[0] for text in told] == [
        f"a is held by process {workdir.os.getpid()}"
    ]


def test_what_another_run_has_done_meanwhile_is_left_alone(make, tmp_path):
    def waits(text):
        make.done.append("a")
        other.close()

    other = workdir.take(tmp_path / "a")
    share([make("a"), make("b", "a")], waits)
    assert make.done == ["a", "b"]


def test_what_is_done_between_a_look_and_the_lock_is_left_alone(make, tmp_path):
    task = make("a")
    looks = iter([False, True])
    share([Task("a", frozenset(), task.folder, lambda: next(looks), task.do)], pytest.fail)
    assert make.done == []


def test_a_folder_is_held_while_its_task_is_done_and_free_after_an_error(tmp_path):
    folder = tmp_path / "a"

    def do():
        assert workdir.take(folder) is None
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        share([Task("a", frozenset(), folder, lambda: False, do)], pytest.fail)
    with contextlib.closing(workdir.take(folder)):
        pass
