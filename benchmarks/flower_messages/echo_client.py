"""The other side of `echo_server`: answers a message with what it says."""

from flwr.app import Context, Message
from flwr.clientapp import ClientApp

__all__ = ["app"]

app = ClientApp()


@app.query("echo")
def answer(message: Message, context: Context) -> Message:
    """The same content."""
    return Message(message.content, reply_to=message)
