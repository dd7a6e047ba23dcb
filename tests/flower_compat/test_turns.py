"""Many threads that write to one database of Flower's at the same time."""

import threading
import time

import pytest
from flwr.supercore import sql_mixin
from flwr.superlink.config_loader import get_objectstore_linkstate_factories
from flwr.superlink.federation.noop_federation_manager import NoOpFederationManager
from sqlalchemy import Engine, event, text
from sqlalchemy.exc import OperationalError

from fedit_app.flower_compat import turns
from fedit_app.flower_compat.turns import Turns

pytestmark = pytest.mark.integration

WRITERS, SECONDS = 10, 0.1
PATIENCE = 0.2  # SQLite's; Flower's is 5 seconds
WRITE = text("UPDATE node SET status = 'online' WHERE node_id = 1")


@pytest.fixture
def state(tmp_path, monkeypatch):
    """Flower's own state in a file, as a SuperLink has it, but with less patience."""
    pragmas = dict(sql_mixin.SQLITE_PRAGMAS) | {"busy_timeout": str(int(PATIENCE * 1000))}
    monkeypatch.setattr(sql_mixin, "SQLITE_PRAGMAS", tuple(pragmas.items()))
    _, factory = get_objectstore_linkstate_factories(
        str(tmp_path / "superlink.db"), NoOpFederationManager()
    )
    return factory.state()


@pytest.fixture
def taken():
    """Turns for all engines, as long as a test runs."""
    turns = Turns()
    hooks = [(name, getattr(turns, name)) for name in ("before_cursor_execute", "checkin")]
    for name, hook in hooks:
        event.listen(Engine, name, hook)
    yield turns
    for name, hook in hooks:
        event.remove(Engine, name, hook)


def errors_of_many(state) -> list[OperationalError]:
    """What happens to writers that begin together and take longer than SQLite's patience."""
    errors = []

    def write():
        try:
            with state.session() as session:
                session.execute(WRITE)
                time.sleep(SECONDS)
        except OperationalError as error:
            errors.append(error)

    threads = [threading.Thread(target=write) for _ in range(WRITERS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return errors


def test_without_turns_the_database_is_locked(state):
    assert any("database is locked" in str(error) for error in errors_of_many(state))


def test_with_turns_every_write_gets_through(state, taken):
    assert errors_of_many(state) == []


def test_a_write_that_fails_gives_its_turn_back(state, taken):
    for _ in range(2):
        with pytest.raises(OperationalError, match="no such table"), state.session() as session:
            session.execute(WRITE)
            session.execute(text("UPDATE absent SET a = 1"))
    with state.session() as session:
        session.execute(WRITE)


def test_reading_needs_no_turn(state, taken):
    with state.session() as session:
        session.execute(WRITE)
        reader = threading.Thread(target=state.query, args=("SELECT node_id FROM node",))
        reader.start()
        reader.join(60)
        assert not reader.is_alive()


def test_nobody_waits_for_ever(state, taken, monkeypatch):
    monkeypatch.setattr(turns, "LONGEST_WAIT", 0.1)
    with state.session() as session:
        session.execute(WRITE)
        assert len(errors_of_many(state)) == WRITERS, "each has waited for its turn, then failed"
    with state.session() as session:
        session.execute(WRITE)
