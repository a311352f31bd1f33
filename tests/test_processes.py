"""How the processes of a run find each other; test_two_processes.py promises what comes of it."""

import os
import socket
import subprocess
import sys
import threading

import pytest

from hpt_jax import processes
from hpt_jax.errors import UserError
from hpt_jax.main import parse
from hpt_jax.processes import Leader, Place, asked_for

CLUSTERS = {
    "slurm": dict(
        SLURM_JOB_ID="4242",
        SLURM_STEP_NODELIST="node[007-009],other2",
        SLURM_NTASKS="4",
        SLURM_PROCID="2",
        SLURM_LOCALID="0",
    ),
    "open mpi": dict(
        OMPI_MCA_orte_hnp_uri="1531576320.0;tcp://10.96.0.1,10.148.0.1:34911",
        OMPI_COMM_WORLD_SIZE="3",
        OMPI_COMM_WORLD_RANK="1",
        OMPI_COMM_WORLD_LOCAL_RANK="1",
    ),
    "a task alone": dict(
        SLURM_JOB_ID="4242",
        SLURM_STEP_NODELIST="node7",
        SLURM_NTASKS="1",
        SLURM_PROCID="0",
        SLURM_LOCALID="0",
    ),
    "nothing": {},
}
FOUND = {
    "slurm": ("node007", 4, 2),
    "open mpi": ("10.96.0.1", 3, 1),
    "a task alone": None,
    "nothing": None,
}


@pytest.mark.parametrize("cluster", CLUSTERS)
def test_a_clusters_environment_gives_the_place(cluster):
    code = (
        "from hpt_jax.processes import detected; p = detected();"
        "print(p and (p.host, p.count, p.index))"
    )
    own = {k: v for k, v in os.environ.items() if not k.startswith(("SLURM_", "OMPI_"))}
    made = subprocess.run(
        [sys.executable, "-c", code],
        env={**own, **CLUSTERS[cluster]},
        capture_output=True,
        text=True,
        check=True,
    )
    assert made.stdout.strip() == str(FOUND[cluster])


def flags(*more):
    return parse(["--config=c.py", "--workdir=w", *more])[0]


def test_the_flags_give_a_place():
    given = flags("--coordinator=node7:1234", "--processes=4", "--process", "2")
    assert asked_for(given)[0] == Place("node7", 1234, 4, 2)
    assert asked_for(flags()) == (None, 30.0)
    alone = flags("--coordinator=a:1", "--processes=1", "--process=0", "--wait_minutes=0.5")
    assert asked_for(alone) == (None, 0.5)


@pytest.mark.parametrize(
    ("given", "wrong"),
    [
        (["--processes=2"], ["--coordinator", "--process"]),
        (["--coordinator=node7:1234"], ["--processes", "--process"]),
        (["--coordinator=node7", "--processes=2", "--process=0"], ["--coordinator"]),
        (["--coordinator=:80", "--processes=2", "--process=0"], ["--coordinator"]),
        (["--coordinator=a:99999", "--processes=2", "--process=0"], ["--coordinator"]),
        (["--coordinator=a:80", "--processes=two", "--process=0"], ["--processes"]),
        (["--coordinator=a:80", "--processes=2", "--process=2"], ["--process"]),
        (["--coordinator=a:80", "--processes=2", "--process=-1"], ["--process"]),
    ],
)
def test_what_is_wrong_with_a_place_is_told_at_once(given, wrong):
    with pytest.raises(UserError) as caught:
        asked_for(flags(*given))
    assert [mistake.field for mistake in caught.value.mistakes] == wrong


@pytest.mark.parametrize("minutes", ["0", "-1", "soon", "inf", "nan"])
def test_waiting_takes_a_number_of_minutes(minutes):
    with pytest.raises(UserError, match="--wait_minutes"):
        asked_for(flags(f"--wait_minutes={minutes}"))


def come(place, command, answers):
    """Comes to the roll call in a thread of its own, and notes what comes of it."""

    def run():
        try:
            answers[place.index] = processes._answer(place, hello(place, command), 20.0)
        except UserError as error:
            answers[place.index] = error

    thread = threading.Thread(target=run)
    thread.start()
    return thread


def hello(place, command=()):
    return {"count": place.count, "command": list(command)}


def places(count):
    with socket.create_server(("", 0)) as free:
        port = free.getsockname()[1]
    return [Place("127.0.0.1", port, count, index) for index in range(count)]


def test_a_stranger_that_knocks_does_not_disturb_the_roll_call():
    first, *others = places(3)
    answers = {}

    def strange():
        for words in (b"GET / HTTP/1.1\r\n\r\n", b'{"index": "1"}\n', b'{"index": 7}\n', b"[]\n"):
            while True:
                try:
                    with socket.create_connection((first.host, first.port), timeout=5) as knocking:
                        knocking.sendall(words)
                    break
                except ConnectionRefusedError:
                    pass
        for other in others:
            threads.append(come(other, (), answers))

    threads = [threading.Thread(target=strange)]
    threads[0].start()
    peers = processes._roll_call(first, hello(first), 20.0, lambda line: None)
    assert sorted(peer.index for peer in peers) == [1, 2]
    for peer in peers:
        peer.send(start=77, host="first")
    for thread in threads:
        thread.join()
    assert {index: port for index, (_, port) in answers.items()} == {1: 77, 2: 77}


def test_two_with_one_number_are_told_so():
    first, second, _ = places(3)
    answers = {}
    threads = [come(second, (), answers) for _ in range(2)]
    with pytest.raises(UserError, match=r"--process = 1: expected another number"):
        processes._roll_call(first, hello(first), 20.0, lambda line: None)
    for thread in threads:
        thread.join()
    assert isinstance(answers[1], UserError)


@pytest.mark.parametrize("other", [["seeds=1"], []])
def test_another_command_is_told(other):
    first, second = places(2)
    answers = {}
    thread = come(second, other, answers)
    with pytest.raises(UserError, match=r"the command .* process 1 \(.*\) has"):
        processes._roll_call(first, hello(first, ["seeds=0"]), 20.0, lambda line: None)
    thread.join()
    assert isinstance(answers[1], UserError)


def test_a_port_that_is_taken_is_a_mistake():
    first, _ = places(2)
    with socket.create_server(("", first.port)), pytest.raises(UserError, match="a free port"):
        processes._roll_call(first, hello(first), 1.0, lambda line: None)


def test_nobody_at_the_address_is_a_mistake_after_the_wait():
    _, second = places(2)
    with pytest.raises(UserError, match=r"process 0 to answer within .*refused"):
        processes._answer(second, hello(second), 0.1)


def test_alone_there_is_nobody_to_wait_for():
    leader = Leader()
    with leader.together("stage"):
        leader.begin(0)
        leader.doing("in step 1", 1)
    leader.fail()
    leader.end(2)  # returns: the process goes on
