"""What each message says: one class per message and direction, with the limits of every field.

A server does not trust its nodes, nor a node its server: `Info.read` checks the type and the range
of every field before anybody uses it, and drops fields that it does not know.

| message         | the server sends        | a node answers   |
|-----------------|-------------------------|------------------|
| `query.hello`   | `HelloAsk`              | `HelloAnswer`    |
| `train.edit`    | `EditAsk`, MKVs         | `EditAnswer`, MKVs |
| `train.reedit`  | `ReeditAsk`, MKVs       | `ReeditAnswer`, lookup keys |
| `train.compose` | `ComposeAsk`, values, MKVs | `ComposeAnswer`, values, MKVs |
| `evaluate`      | `EvaluateAsk`           | `EvaluateAnswer` |
| `train`         | `RoundAsk`, weights     | `TrainAnswer`, weights |

To add a message, add its classes here, name its answer in `ANSWERS`, and write its handler on each
side: `fedit_app/node/handlers.py` and a strategy of `fedit_app/server/`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, ClassVar, Literal, Self, TypeGuard

from flwr.app import RecordDict
from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    FailFast,
    Field,
    PlainValidator,
    Strict,
    TypeAdapter,
    ValidationError,
)

from fedit_app.mkv import Record
from fedit_app.mkv.numerics import NUMERICS_VERSION
from fedit_app.mkv.record import MAX_NAME_LENGTH, MAX_SLOT, is_id
from fedit_app.protocol.messages import (
    COMPOSE,
    EDIT,
    EVALUATE,
    HELLO,
    REEDIT,
    TRAIN,
    VERSION,
    pack,
    unpack_info,
)
from fedit_app.protocol.metrics import MOST, Metrics, Neutral
from fedit_app.support.errors import FedEditError, shown

MOST_HOLDERS = 256
"""Most MKVs, or nodes, that a contested key may have."""

MOST_LAYERS, MOST_WIDTH, MOST_KINDS = 4096, 2**20, 2
"""Most edited layers of a model, its largest width, and most kinds of contexts."""

Said = Literal["holds", "not yet", "declined"]

MOST_LEAD = 100.0
"""The largest lead of a target that a holder reports, either way, in nats."""


def _printable(text: str) -> str:
    if not text.isprintable():
        raise ValueError("Input should be printable text")
    return text


def _id(text: str) -> str:
    if not is_id(text):
        raise ValueError("Input should be 32 hex digits")
    return text


# A validation error lists every wrong item; `FailFast` keeps millions of them out of memory.
def _object(name: Any, value: Any) -> PlainValidator:
    """An object from such names to such values."""
    pairs = TypeAdapter(Annotated[list[tuple[name, value]], FailFast()])

    def check(found: object) -> object:
        if not isinstance(found, dict):
            raise ValueError("Input should be an object")
        return dict(pairs.validate_python(list(found.items())))

    return PlainValidator(check)


Flag = Annotated[bool, Strict()]
Name = Annotated[str, Strict(), Field(max_length=MAX_NAME_LENGTH), AfterValidator(_printable)]
Names = Annotated[list[Name], FailFast()]
Id = Annotated[str, Strict(), AfterValidator(_id)]
Ids = Annotated[list[Id], FailFast()]
Count = Annotated[int, Strict(), Field(ge=0, le=MOST)]
Width = Annotated[int, Strict(), Field(ge=1, le=MOST_WIDTH)]
Counts = Annotated[dict[str, int], _object(Name, Count)]
CountsById = Annotated[dict[str, int], _object(Id, Count)]
IdsById = Annotated[dict[str, list[str]], _object(Id, Ids)]
NamesById = Annotated[dict[str, list[str]], _object(Id, Names)]
Head = Annotated[str, Strict(), Field(pattern="^([0-9a-f]{64})?$")]
Lead = Annotated[float, Strict(), Field(ge=-MOST_LEAD, le=MOST_LEAD, allow_inf_nan=False)]
Slot = Annotated[int, Strict(), Field(ge=0, le=MAX_SLOT)]


_NAME = TypeAdapter(Name)


def is_name(value: object) -> TypeGuard[str]:
    """Whether a value can name a node: printable text, not empty, of limited length."""
    try:
        return bool(_NAME.validate_python(value))
    except ValidationError:
        return False


class _Content(BaseModel):
    model_config = ConfigDict(frozen=True)


class Info(_Content):
    """The JSON part of a message."""

    _whose: ClassVar[str]

    @classmethod
    def parse(cls, values: Mapping[str, object]) -> Self:
        """Check the fields of a message.

        Raises:
            FedEditError: a field is missing, or has an invalid value.
        """
        try:
            return cls.model_validate(dict(values))
        except ValidationError as error:
            first = error.errors(include_url=False)[0]
            field = ".".join(part for part in first["loc"] if isinstance(part, str))
            if first["type"] == "missing":
                raise FedEditError(f"{cls._whose} lacks {field}") from None
            found, wanted = shown(first["input"]), first["msg"].removeprefix("Value error, ")
            raise FedEditError(
                f"{cls._whose} has an invalid {field}: {found} found; {wanted}"
            ) from None

    @classmethod
    def read(cls, content: RecordDict) -> Self:
        """Read and check the JSON part of a message.

        Raises:
            FedEditError: there is none, it is damaged, or a field is missing or invalid.
        """
        return cls.parse(unpack_info(content))

    def packed(self, mkvs: Sequence[Record] = ()) -> RecordDict:
        """The message's content, see `messages.pack`."""
        return pack(self.model_dump(by_alias=True), mkvs)


class Ask(Info):
    """What a server sends to a node."""

    _whose = "the server's message"


class Answer(Info):
    """What a node answers.

    Attributes:
        node: the node's name.
    """

    _whose = "its answer"

    node: Annotated[Name, Field(min_length=1)]


class HelloAsk(Ask):
    """Asks a node to introduce itself.

    Attributes:
        version: of the protocol.
        numerics: of the arithmetic that an MKV depends on, see `mkv.numerics`.
        first_slot: the slot with which the run starts or resumes.
    """

    version: int = VERSION
    numerics: int = NUMERICS_VERSION
    first_slot: Annotated[Slot, Field(ge=1)]

    @classmethod
    def parse(cls, values: Mapping[str, object]) -> Self:
        """See `Info.parse`; a server of another version is named before anything else is read."""
        theirs = values.get("version"), values.get("numerics")
        if theirs != (VERSION, NUMERICS_VERSION):
            protocol, numerics = map(shown, theirs)
            raise FedEditError(
                f"{cls._whose}: protocol version {protocol}, numerics version {numerics}; this "
                f"node has protocol version {VERSION}, numerics version {NUMERICS_VERSION}: "
                "install the same version of FedEdit on both"
            )
        return super().parse(values)


class HelloAnswer(Answer):
    """A node introduces itself.

    Attributes:
        simulated: whether it is a virtual node of a simulation.
        requests: the number of its requests in each slot.
        components: what its MKVs depend on; their hash is the fingerprint.
        layers: the edited layers.
        d_model: width of the model's states.
        d_ff: width of the MLPs' inner states.
        kinds: of how many kinds of contexts its MKVs have a pair.
        wants: ids of the MKVs in its ledger that fulfil requests of its own.
        holds: ids of the other MKVs in its ledger.
        withdrawn: ids of the MKVs of its own that it has withdrawn.
    """

    simulated: Flag
    requests: Annotated[list[Count], FailFast()] = Field(default_factory=list)
    components: Annotated[dict[str, str], _object(Name, Name)]
    layers: Annotated[list[Count], FailFast(), Field(min_length=1, max_length=MOST_LAYERS)]
    d_model: Width
    d_ff: Width
    kinds: Annotated[int, Strict(), Field(ge=1, le=MOST_KINDS)]
    wants: Ids
    holds: Ids
    withdrawn: Ids


class EditAsk(Ask):
    """Asks for the edit stage of a slot; MKVs that the node may reuse come with it.

    Attributes:
        slot: the slot.
        central: whether one node edits for all, in a simulation.
        upload: whether the new MKVs are to be sent.
        missing: ids of earlier MKVs that the server's pool lacks and the node is to send again.
        withdrawn: id -> the nodes that have withdrawn it, of all withdrawn MKVs.
    """

    slot: Annotated[Slot, Field(ge=1)]
    central: Flag
    upload: Flag
    missing: Ids
    withdrawn: NamesById


class ReeditAsk(Ask):
    """Asks for the re-edit stage of a slot; the MKVs of others come with it.

    Attributes:
        slot: the slot.
        votes: id -> how many nodes want this MKV, where more than one does.
        supersedes: id of an MKV that comes with it -> ids of those in whose place it holds.
    """

    slot: Annotated[Slot, Field(ge=1)]
    votes: CountsById
    supersedes: IdsById


class ContestedKey(_Content):
    """A key for whose facts several nodes learn one value together.

    Attributes:
        ids: of the MKVs that contest it.
        round: how many rounds have shaped its value; in the first one it is the mean of the MKVs.
        holders: the nodes whose values of the last of these come with the message, in their order.
        settled: all holders have said that the value holds: make its MKV.
    """

    ids: Annotated[Ids, Field(min_length=2, max_length=MOST_HOLDERS)]
    round: Count
    holders: Annotated[Names, Field(max_length=MOST_HOLDERS)]
    settled: Flag


class ComposeAsk(Ask):
    """Asks for a round of composition; with it come the holders' values, and MKVs of settled keys.

    Attributes:
        slot: the slot.
        keys: the contested keys of which the node is a holder.
        supersedes: see `ReeditAsk`.
    """

    slot: Annotated[Slot, Field(ge=1)]
    keys: Annotated[list[ContestedKey], FailFast()]
    supersedes: IdsById


class EvaluateAsk(Ask):
    """Asks for metrics.

    Attributes:
        slot: the slot; 0 for the unedited model.
        central: whether the central ledger is meant.
    """

    slot: Slot
    central: Flag


class RoundAsk(Ask):
    """What a stock strategy sends along with the global model's weights.

    Attributes:
        server_round: the slot.
        key_sums: whether K K^T of the node's new keys has to come with its weights.
        prior_from: name of the node that is to send lambda C as well; empty: none.
    """

    server_round: Slot = Field(alias="server-round")
    key_sums: Flag = Field(False, alias="key-sums")
    prior_from: Name = Field("", alias="prior-from")


class TrainAnswer(Answer):
    """A node has edited: for a stock strategy, whose weights come with it.

    Attributes:
        requests: how many requests the slot has.
        optimised: for how many a value was optimised.
        cached: how many of these values came from the node's own cache.
    """

    requests: Count
    optimised: Count
    cached: Count


class ConflictIds(_Content):
    """Two MKVs of one key of which only one can hold.

    Attributes:
        held: id of the one that holds.
        gave_way: id of the other.
    """

    held: Id
    gave_way: Id


Conflicts = Annotated[list[ConflictIds], FailFast()]


class LedgerAnswer(Answer):
    """What a node answers after a stage that may have changed its ledger.

    Attributes:
        head: hash of the last record of the journal of the node's own ledger, which the run's
            record keeps; empty after an edit of the central one.
        quarantined: how many MKVs it has put aside.
        conflicts: the MKVs that contradict each other.
    """

    head: Head
    quarantined: Count
    conflicts: Conflicts


class EditAnswer(TrainAnswer, LedgerAnswer):
    """A node has edited; its new MKVs come with it.

    Attributes:
        warm_started: how many optimisations began at a similar MKV's value.
        renewed: how many MKVs of facts of before were written anew.
        reused: ids of the MKVs of others that fulfil requests of its own.
        again: ids of the MKVs of earlier slots that are among those sent.
        supersedes: id of an MKV that comes with it -> ids of those of the node itself in whose
            place it holds.
        gone: ids of the withdrawn MKVs that it was told of and has no more, or never had.
    """

    warm_started: Count
    renewed: Count
    reused: Ids
    again: Ids
    supersedes: IdsById
    gone: Ids


class ReeditAnswer(LedgerAnswer):
    """A node has re-edited; the lookup keys of its next slot come with it.

    Attributes:
        received_from: node -> how many of its MKVs were accepted.
        rejections: reason -> how many MKVs were rejected for it.
        contested: own MKVs and those of others that do not say the targets of the node's requests.
        agreed: MKVs of others, of those sent, that say the targets of own requests with their key.
    """

    received_from: Counts
    rejections: Counts
    contested: Conflicts
    agreed: Ids


class ComposeAnswer(LedgerAnswer):
    """A node has done a round of composition; its values and the MKVs that it made come with it.

    Attributes:
        said: for each key that was asked for: whether the value with which the round began says all
            targets of the node's facts ("holds", "not yet"), or "declined", if the node takes no
            part. Values come for those that are not declined.
        leads: for each key that is not declined by how much, patched in, that value says these
            targets, in nats, see `values.Outcome`; at most `MOST_LEAD` either way.
        received_from, rejections: see `ReeditAnswer`, for the MKVs of settled keys.
        supersedes: id of an MKV that comes with it -> ids of those in whose place it holds.
    """

    said: Annotated[list[Said], FailFast()]
    leads: Annotated[list[Lead], FailFast()]
    received_from: Counts
    rejections: Counts
    supersedes: IdsById


class EvaluateAnswer(Answer):
    """Metrics of a node's model; None is what is not known there.

    Attributes:
        own: over the node's own requests.
        received: over the requests of others whose MKVs it has accepted.
        federation: over everybody's requests.
        neutral: on neutral text.
    """

    own: Metrics | None
    received: Metrics | None
    federation: Metrics | None
    neutral: Neutral | None


ANSWERS: dict[str, type[Answer]] = {
    HELLO: HelloAnswer,
    EDIT: EditAnswer,
    TRAIN: TrainAnswer,
    REEDIT: ReeditAnswer,
    COMPOSE: ComposeAnswer,
    EVALUATE: EvaluateAnswer,
}
"""Message type -> what a node answers."""
