"""The ClientApp: passes every message to the node's handlers, and their answer back to Flower.

In a simulation the handlers run in this process. On a real node Flower starts a process per
message, so the handlers run in the node's resident process, which keeps the model in memory. The
ClientApp process then imports neither torch nor transformers.
"""

from __future__ import annotations

import logging

from flwr.app import Context, Message, RecordDict
from flwr.clientapp import ClientApp

from fedit_app.config.folders import run_folder
from fedit_app.config.node_config import is_simulated, node_run_config
from fedit_app.config.run_config import RunConfig
from fedit_app.facts.partition import own_data
from fedit_app.node.identity import signing_key
from fedit_app.protocol.messages import HELLO, Call, pack_error
from fedit_app.protocol.parcel import unwrap, wrap
from fedit_app.protocol.signed import Question, sign
from fedit_app.support.errors import FedEditError
from fedit_app.support.log import set_up_logging

logger = logging.getLogger(__name__)

app = ClientApp()


@app.query("hello")
@app.train("edit")
@app.train("reedit")
@app.train("compose")
@app.train()
@app.evaluate()
def answer(message: Message, context: Context) -> Message:
    """Answer a message; an error becomes an answer that states it."""
    set_up_logging()
    call = Call(
        message.metadata.message_type,
        node_run_config(context.run_config, context.node_config),
        dict(context.node_config),
        context.run_id,
    )
    try:
        message.content = unwrap(message.content)
        content = _ask(call, message.content)
    except FedEditError as error:
        logger.error("node %s: %s failed: %s", call.node, call.stage, error)
        content = pack_error(call.node, call.stage, error)
    except Exception as error:
        logger.exception("node %s: %s failed", call.node, call.stage)
        content = pack_error(call.node, call.stage, error)
    _sign(content, call, message)
    return Message(content if call.message_type == HELLO else wrap(content), reply_to=message)


def _sign(answer: RecordDict, call: Call, message: Message) -> None:
    """Sign an answer, if the node has a key."""
    question = Question(
        call.run_id,
        message.metadata.message_id,
        call.message_type,
        call.node,
        message.content,
    )
    try:
        key = signing_key(call.node_config)
    except FedEditError as error:  # the answer says so itself, or the server says that it lacks
        logger.error("node %s: %s is not signed: %s", call.node, call.stage, error)
        return
    if key is not None:
        sign(answer, question, key)


def _ask(call: Call, content: RecordDict) -> RecordDict:
    """The answer of the node's handlers, in the resident process if the node has one."""
    if not is_simulated(call.node_config):
        from fedit_app.node.resident import WorkerSettings, ask

        settings = WorkerSettings.of(call.node_config)
        if settings.idle_seconds:
            config = RunConfig.parse(call.run_config)
            name = own_data(config, call.node_config, run_folder(config, call.run_id)).name
            return ask(call, content, config, name, settings)
    from fedit_app.node import handlers

    return handlers.answer(call, content).content
