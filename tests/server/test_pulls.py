"""How the messages of a stage are sent."""

from flwr.app import Message, RecordDict
from flwr.supercore.task_identity import TaskIdentity

from fedit_app.server import pulls
from fedit_app.server.pulls import push


class Sending:
    """A grid that keeps what it was given together."""

    def __init__(self):
        self.sent = []

    def push_messages(self, messages):
        self.sent.append(list(messages))


def test_nodes_do_not_hear_of_a_message_long_before_its_content_is_there():
    TaskIdentity.run_id = TaskIdentity.node_id = TaskIdentity.task_id = 1
    messages = [Message(RecordDict(), dst_node_id=n, message_type="query.it") for n in range(10)]
    grid = Sending()
    push(grid, messages)

    assert [message for few in grid.sent for message in few] == messages
    assert max(map(len, grid.sent)) <= pulls._PUSHED_AT_ONCE < len(messages)
