"""Who takes part: nodes introduce themselves at the start, and newcomers before every slot."""

from __future__ import annotations

import logging
import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

from flwr.app import Message

from fedit_app.config.run_config import RunConfig
from fedit_app.mkv.fingerprint import fingerprint_of
from fedit_app.protocol.messages import FEDERATION_KEY, HELLO, unpack_lookup
from fedit_app.protocol.schema import HelloAnswer, HelloAsk
from fedit_app.server.grid import Member, RunGrid
from fedit_app.server.uploads import within
from fedit_app.support.errors import FedEditError

logger = logging.getLogger(__name__)

# Seconds: a node that is not at work introduces itself within a few.
_PATIENCE_WITH_THE_SLOW = 30.0


@dataclass(frozen=True)
class Agreement:
    """What all members of a run agree on: what their MKVs are measured on.

    Attributes:
        components: the parts of the fingerprint.
        layers: the edited layers.
        d_model: width of the model's states.
        d_ff: width of the MLPs' inner states.
        kinds: of how many kinds of contexts an MKV has a pair.
        simulated: whether the members are virtual nodes.
        lookup_width: number of elements of a lookup key, or of a sketch of one.
        most_lookups: how many lookup keys of a node are looked up in a slot.
    """

    components: Mapping[str, str]
    layers: tuple[int, ...]
    d_model: int
    d_ff: int
    kinds: int
    simulated: bool
    lookup_width: int
    most_lookups: int

    @property
    def fingerprint(self) -> str:
        """The fingerprint of the run's MKVs."""
        return fingerprint_of(self.components)

    def model_name(self, of_run: str) -> str:
        """What the members' model is called.

        Args:
            of_run: the run's model, which virtual nodes load. A real node may have its own, and
                tells its hash only: a folder's name is the node's affair.
        """
        if self.simulated:
            return of_run
        return f"the nodes' model {self.components.get('model', self.fingerprint)[:12]}"

    @property
    def sealed(self) -> bool:
        """Whether the nodes seal what they send."""
        return FEDERATION_KEY in self.components


@dataclass(frozen=True)
class Hello:
    """The introduction of a node.

    Attributes:
        node_id: Flower's id of the node.
        says: what it says of itself.
        reply: the whole message.
    """

    node_id: int
    says: HelloAnswer
    reply: Message

    @property
    def measures(self) -> tuple[object, ...]:
        """What the node's MKVs are measured on."""
        says = self.says
        shape = says.d_model, says.d_ff, says.kinds
        return fingerprint_of(says.components), tuple(says.layers), *shape


def gather(grid: RunGrid, config: RunConfig) -> Agreement:
    """Say hello to every node and let those with the commonest fingerprint take part.

    Args:
        grid: the grid; its members are set.
        config: the run configuration.

    Raises:
        FedEditError: no node can take part.
    """
    hellos = _greet(grid, _wait_for_nodes(grid, config.slot_timeout), grid.record.first_slot)
    if not hellos:
        raise FedEditError("no node can take part; see the reasons above")
    in_order = [hello for _, hello in sorted(hellos.items())]
    (chosen, _), *_ = Counter(hello.measures for hello in in_order).most_common(1)
    reference = next(hello.says for hello in in_order if hello.measures == chosen)
    simulated = all(hello.says.simulated for hello in in_order)
    if config.strategy == "central" and not simulated:
        raise FedEditError("strategy = central needs everybody's data and runs in simulation only")
    agreement = Agreement(
        reference.components,
        tuple(reference.layers),
        reference.d_model,
        reference.d_ff,
        reference.kinds,
        simulated,
        config.sketch_width if FEDERATION_KEY in reference.components else reference.d_ff,
        config.max_uploads_per_slot,
    )
    _admit(grid, hellos, agreement)
    logger.info("%d nodes take part: %s", len(grid.members), ", ".join(sorted(grid.members)))
    return agreement


def welcome(grid: RunGrid, slot: int, agreement: Agreement) -> list[str]:
    """Let nodes join that were not there before, or could not take part.

    The cause may have been fixed meanwhile. A member that failed in the slot before says hello
    again, too: it may have done its part without being heard. Until it does it is left out, so
    that the run waits for it once per slot, and not for long if it need not wait for the slow.

    Args:
        grid: the grid; newcomers become members.
        slot: the slot with which they start.
        agreement: what all members agree on, see `gather`.

    Returns:
        Their names.
    """
    for name in grid.silent:
        grid.members.pop(name, None)
    present = set(grid.all_node_ids())
    ids = sorted(present - {member.node_id for member in grid.members.values()})
    patience = _PATIENCE_WITH_THE_SLOW if grid.share < 1 else None
    names = _admit(grid, _greet(grid, ids, slot, patience), agreement) if ids else []
    if names:
        logger.info("slot %d: joined by %s", slot, ", ".join(names))
    for name, member in sorted(grid.silent.items()):
        if name in names:
            del grid.silent[name]
        else:
            there = "did not introduce itself again" if member.node_id in present else "is gone"
            grid.record.failed(name, slot, "hello", f"it failed before, and {there}")
    return names


def _greet(
    grid: RunGrid, ids: list[int], slot: int, timeout: float | None = None
) -> dict[str, Hello]:
    """The introductions of nodes by their names; of several with one name the first by id."""
    content = HelloAsk(first_slot=slot).packed()
    messages = [Message(content, message_type=HELLO, dst_node_id=id_) for id_ in ids]
    present, registered = set(grid.all_node_ids()), grid.registered_names()
    hellos: dict[str, Hello] = {}
    replies = grid.send_and_receive(messages, timeout=timeout)
    for reply in sorted(replies, key=lambda r: r.metadata.src_node_id):
        hello = Hello(reply.metadata.src_node_id, HelloAnswer.read(reply.content), reply)
        name, known = hello.says.node, registered.get(hello.node_id)
        if known and known != name:  # virtual nodes are registered under no name
            grid.record.failed(known, 0, "hello", _misnamed(name, known))
            continue
        taken = name in hellos or (name in grid.members and grid.members[name].node_id in present)
        if taken:
            grid.record.failed(name, 0, "hello", f"two nodes are named {name!r}; rename one")
        else:
            hellos[name] = hello
    return hellos


def _misnamed(name: str, known: str) -> str:
    return (
        f"it calls itself {name!r}, but its key is registered as {known!r}; write that name into "
        "its node.toml, or register a new key under the other one"
    )


def _admit(grid: RunGrid, hellos: Mapping[str, Hello], agreement: Agreement) -> list[str]:
    """Make members of the nodes that agree; returns their names."""
    names = []
    for name, hello in sorted(hellos.items()):
        says = hello.says
        if says.components != agreement.components:
            reason = _difference(says.components, agreement.components)
            grid.record.failed(name, 0, "hello", reason)
            continue
        try:
            lookup = unpack_lookup(hello.reply.content, agreement.lookup_width)
            lookup = within(lookup, agreement.most_lookups, name)
        except FedEditError as error:
            grid.record.failed(name, 0, "hello", str(error))
            continue
        ids = set(says.wants), set(says.holds), set(says.withdrawn)
        grid.members[name] = Member(name, hello.node_id, lookup, *ids)
        names.append(name)
    return names


def _wait_for_nodes(grid: RunGrid, timeout: float) -> list[int]:
    started = time.monotonic()
    while not (ids := sorted(grid.all_node_ids())):
        if time.monotonic() - started > timeout:
            raise FedEditError(f"no node connected within {timeout:g} s (slot-timeout)")
        time.sleep(0.5)
    return ids


def _difference(found: Mapping[str, str], agreed: Mapping[str, str]) -> str:
    parts = [
        f"{part} {found.get(part)} (the federation has {value})"
        for part, value in agreed.items()
        if found.get(part) != value
    ]
    remedy = "use the federation's model, editor settings and seed"
    if found.get(FEDERATION_KEY) != agreed.get(FEDERATION_KEY):
        remedy = (
            "get the key file from an organisation whose key has that id (`fedit node key show "
            "DIR`), then `fedit node key take DIR FILE`"
        )
    return f"fingerprint differs in {', '.join(parts)}; {remedy}"
