"""The other side of `server_app`: answers an empty message with another."""

from flwr.app import Context, Message, RecordDict
from flwr.clientapp import ClientApp

__all__ = ["app"]

app = ClientApp()


@app.query("empty")
def answer(message: Message, context: Context) -> Message:
    """An empty answer."""
    return Message(RecordDict(), reply_to=message)
