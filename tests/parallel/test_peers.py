"""Watches over socket pairs: what each process is told when another one dies, stops, fails or says goodbye."""

import queue
import socket
import threading
import time

import pytest

from robust_jax.parallel import peers


@pytest.fixture
def quick(monkeypatch):
    for name, seconds in {"_BEAT": 0.05, "_VERDICT": 0.3, "_LAST": 1.0}.items():
        monkeypatch.setattr(peers, name, seconds)


class Processes:
    """Watches of several processes in one, and what ended each."""

    def __init__(self, count, timeout=2.0, silent=()):
        pairs = {i: socket.socketpair() for i in range(1, count)}
        self.ended = {i: queue.Queue() for i in range(count)}
        self.sockets = {0: {i: pair[0] for i, pair in pairs.items()}} | {i: {0: p[1]} for i, p in pairs.items()}
        self.watches = {
            i: peers.Watch(i, count, self.sockets[i], timeout, lambda: "run: step 7.", self._end(i))
            for i in range(count) if i not in silent
        }  # fmt: skip

    def _end(self, index):
        def end(message):
            self.ended[index].put(message)
            for connection in self.sockets[index].values():
                connection.close()

        return end

    def said(self, index):
        return self.ended[index].get(timeout=5)


@pytest.mark.usefixtures("quick")
def test_a_process_that_dies_ends_the_others_which_say_which_it_was():
    for dead in (0, 1, 2):
        processes = Processes(3, timeout=60, silent=(dead,))
        for connection in processes.sockets[dead].values():
            connection.close()
        for other in {0, 1, 2} - {dead}:
            message = f"process {dead} of 3 was lost: it ended without a word. run: step 7. Start all processes again"
            assert processes.said(other).startswith(message)


@pytest.mark.usefixtures("quick")
def test_a_process_that_does_not_answer_is_lost_after_the_timeout():
    for silent in (0, 2):
        processes = Processes(3, silent=(silent,))
        for other in {0, 1, 2} - {silent}:
            assert f"process {silent} of 3 was lost: it did not answer for 2 s." in processes.said(other)


@pytest.mark.usefixtures("quick")
def test_an_error_in_one_process_ends_the_others_with_its_first_line():
    for failing in (0, 1):
        processes = Processes(3, timeout=60)
        processes.watches[failing].fail("ValueError: no such file\nand more")
        for other in {0, 1, 2} - {failing}:
            assert f"process {failing} of 3 failed: ValueError: no such file." in processes.said(other)
        assert processes.ended[failing].empty()


@pytest.mark.usefixtures("quick")
def test_an_error_that_follows_from_the_death_of_another_process_is_no_failure():
    processes = Processes(3, timeout=60, silent=(2,))
    threading.Timer(0.1, processes.sockets[2][0].close).start()
    processes.watches[1].fail("JaxRuntimeError: connection closed by peer")
    assert "process 2 of 3 was lost" in processes.said(1)
    assert "process 2 of 3 was lost" in processes.said(0)


@pytest.mark.usefixtures("quick")
def test_the_same_error_in_all_processes_is_everyones_own():
    processes = Processes(3, timeout=60)
    threads = [threading.Thread(target=watch.fail, args=["ValueError: wrong"]) for watch in processes.watches.values()]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(10)
        assert not thread.is_alive()
    assert all(ended.empty() for ended in processes.ended.values())


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize("order", [(0, 1, 2), (2, 1, 0)])
def test_goodbyes_in_any_order_end_nobody(order):
    processes = Processes(3, timeout=60)
    for index in order:
        processes.watches[index].leave()
        time.sleep(0.2)
    for connection in processes.sockets[order[0]].values():
        connection.close()
    time.sleep(0.8)
    assert all(ended.empty() for ended in processes.ended.values())


def test_connections_are_made_through_the_listener():
    listener = socket.create_server(("127.0.0.1", 0))
    port, made = listener.getsockname()[1], {}
    others = [threading.Thread(target=lambda i=i: made.update({i: peers.connect(i, 3, None, "127.0.0.1", port, 5)}))
              for i in (2, 1)]  # fmt: skip
    for other in others:
        other.start()
    sockets = peers.connect(0, 3, listener, "127.0.0.1", port, 5)
    for other in others:
        other.join()
    assert sorted(sockets) == [1, 2]
    made[2][0].sendall(b"x")
    assert sockets[2].recv(1) == b"x"


def test_strangers_are_no_processes_and_those_that_are_missing_are_told():
    listener = socket.create_server(("127.0.0.1", 0))
    port, made = listener.getsockname()[1], {}
    for told in (b"", b"GET ", (9).to_bytes(4, "big")):
        with socket.create_connection(("127.0.0.1", port)) as stranger:
            stranger.sendall(told)
    other = threading.Thread(target=lambda: made.update({1: peers.connect(1, 2, None, "127.0.0.1", port, 5)}))
    other.start()
    assert list(peers.connect(0, 2, listener, "127.0.0.1", port, 5)) == [1]
    other.join()
    with pytest.raises(OSError):
        peers.connect(0, 3, socket.create_server(("127.0.0.1", 0)), "127.0.0.1", port, 0.2)
