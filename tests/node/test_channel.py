"""Messages on the socket between a ClientApp and a resident process."""

import socket
import threading
import tracemalloc
from multiprocessing import AuthenticationError
from multiprocessing.connection import Client

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, MetricRecord, RecordDict

from fedit_app.node import channel
from fedit_app.support.errors import FedEditError

KEY = b"k" * 32
MEGABYTE = 2**20


def _connect(address: str, key: bytes):
    return Client(address, "AF_UNIX", authkey=key)


@pytest.fixture
def address(tmp_path_factory):
    return tmp_path_factory.mktemp("s") / "s"


@pytest.fixture
def ends(address):
    """Gives `ends(key)`: a connected pair, or what went wrong at the listening end."""
    opened = []

    def ends(connect=_connect, key: bytes = KEY):
        found: list = []

        def listen():
            accepted, _ = listener.accept()
            try:
                found.append(channel.welcome(accepted, KEY))
            except Exception as error:
                found.append(error)

        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(str(address))
            listener.listen()
            thread = threading.Thread(target=listen)
            thread.start()
            try:
                client = connect(str(address), key)
            finally:
                thread.join()
        opened.extend([client, *found])
        return client, found[0]

    yield ends
    for end in opened:
        if not isinstance(end, Exception):
            end.close()


def sent(sender, receiver, content):
    """What arrives of a message; the two ends need a thread each."""
    thread = threading.Thread(target=channel.send, args=(sender, {"stage": "edit"}, content))
    thread.start()
    head, arrived = channel.receive(receiver)
    thread.join()
    return head, arrived


def test_all_records_arrive(ends):
    content = RecordDict(
        {
            "info": ConfigRecord({"json": '{"slot": 1}', "ids": ["a", "b"]}),
            "metrics": MetricRecord({"num-examples": 5.0}),
            "mkvs": ArrayRecord(
                {
                    "keys": Array(np.arange(6, dtype=np.float16).reshape(2, 3)),
                    "none": Array(np.zeros((0, 3), np.float32)),
                }
            ),
            "keys": ArrayRecord({}),
        }
    )
    head, arrived = sent(*ends(), content)

    assert head == {"stage": "edit"}
    assert arrived == content
    assert list(arrived) == list(content)
    assert arrived["mkvs"]["keys"].numpy().tolist() == [[0, 1, 2], [3, 4, 5]]


def test_greetings_are_json_of_any_shape(ends):
    client, worker = ends()
    channel.send_greeting(worker, {"code": "abc", "idle-seconds": 1.5})
    assert channel.receive_greeting(client) == {"code": "abc", "idle-seconds": 1.5}


@pytest.mark.parametrize("key", [b"x" * 32, b""])
def test_another_key_is_refused_on_both_sides(ends, key):
    refusals = []

    def connect(address, key):
        with pytest.raises(AuthenticationError) as refused:
            _connect(str(address), key)
        refusals.append(refused.value)
        return refused.value

    _, worker = ends(connect, key)
    assert isinstance(worker, AuthenticationError)
    assert refusals


def test_without_a_key_nothing_can_be_said(ends):
    def barge_in(address, key):
        connection = Client(str(address), "AF_UNIX")
        connection.send_bytes(b'{"message_type": "train.edit"}')
        return connection

    _, worker = ends(barge_in)
    assert isinstance(worker, AuthenticationError)


def test_large_arrays_are_not_copied(ends):
    client, worker = ends()
    # Several arrays, so that one of them in passing differs from all of them.
    arrays = {f"layer-{n}": Array(np.full(2 * MEGABYTE, n, np.float32)) for n in range(8)}
    content = RecordDict({"arrays": ArrayRecord(arrays)})
    whole = sum(len(array.data) for array in arrays.values())
    tracemalloc.start()
    _, arrived = sent(client, worker, content)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()

    assert arrived == content
    assert whole > 64 * MEGABYTE
    # What arrives is there once, and the one array that is just being read may be twice.
    assert peak < whole * 1.3


def test_a_message_beyond_the_limit_is_refused_before_it_is_sent(monkeypatch):
    content = RecordDict({"arrays": ArrayRecord({"a": Array(np.zeros(300_000))})})
    channel.check_size(content)
    monkeypatch.setattr(channel, "MOST_BYTES", MEGABYTE)
    with pytest.raises(FedEditError, match="message of 2 MB; .* at most 1 MB: serve fewer MKVs"):
        channel.check_size(content)


def test_a_receiver_reads_no_more_than_the_limit(ends, monkeypatch):
    client, worker = ends()
    array = Array(np.zeros(300_000))
    content = RecordDict({"arrays": ArrayRecord({"a": array, "b": array})})
    monkeypatch.setattr(channel, "MOST_BYTES", 0)
    monkeypatch.setattr(channel, "_MOST_FRAMING", 3 * MEGABYTE)

    def send():
        with pytest.raises(OSError):
            channel.send(client, {}, content)

    thread = threading.Thread(target=send)
    thread.start()
    with pytest.raises(OSError):
        channel.receive(worker)
    worker.close()
    thread.join()
