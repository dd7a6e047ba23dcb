"""A SuperLink looks for expired tasks once a second, not in every request of a node."""

import pytest
from flwr.superlink.config_loader import get_objectstore_linkstate_factories
from flwr.superlink.federation.noop_federation_manager import NoOpFederationManager
from sqlalchemy import event

from fedit_app.flower_compat import expiry
from fedit_app.flower_compat.expiry import SqlCoreState, look_seldom


@pytest.fixture
def writes(tmp_path, monkeypatch):
    """How many writes to the database ten looks at a run's status take, as `push-object` has."""
    # What `look_seldom` sets is Flower's own again after the test.
    monkeypatch.setattr(SqlCoreState, "_cleanup_expired_task_tokens", expiry._look)
    _, factory = get_objectstore_linkstate_factories(
        str(tmp_path / "superlink.db"), NoOpFederationManager()
    )
    state = factory.state()
    written = []

    def note(_connection, _cursor, statement, *_):
        if not statement.startswith(("SELECT", "PRAGMA")):
            written.append(statement)

    event.listen(state._engine, "before_cursor_execute", note)

    def count() -> int:
        written.clear()
        for _ in range(10):
            state.get_run_status({1})
        return len(written)

    return count


def test_nodes_requests_do_not_each_look_for_expired_tasks(writes):
    assert writes() == 20
    look_seldom()
    assert writes() == 2
    assert writes() == 0


def test_it_looks_again_when_a_second_has_passed(writes, monkeypatch):
    look_seldom()
    assert writes() == 2
    monkeypatch.setattr(expiry, "SECONDS_BETWEEN_LOOKS", 0.0)
    assert writes() == 20
