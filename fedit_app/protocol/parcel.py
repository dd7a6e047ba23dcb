"""Parcels: a message in one record.

Flower stores, sends and fetches each record, each array and each piece of an array of a message by
a request of its own, whatever its size. An upload of sealed MKVs with lookup keys has some twenty
such parts; as a parcel it has three, one more than an empty message. In a parcel every field and
array of a message is an entry RECORD/NAME of one record, arrays as numpy.save writes them.

A hello travels as it is: every version of FedEdit has to read which version the other side has. So
do the messages of Flower's own strategies, and large ones, whose arrays Flower cuts into pieces.
"""

from __future__ import annotations

from flwr.app import Array, ArrayRecord, ConfigRecord, RecordDict

from fedit_app.protocol.messages import INFO, STYPE, content_bytes, read_header
from fedit_app.support.errors import FedEditError, shown

MOST_BYTES = 4 * 2**20
"""Of a message that becomes a parcel. Flower's own pieces of arrays have 5 MiB."""

_PARCEL, _SEPARATOR = "parcel", "/"


def wrap(content: RecordDict) -> RecordDict:
    """A message's content as a parcel, or as it is; see above which ones."""
    ours = INFO in content and not content.metric_records and len(content) > 1
    if not ours or content_bytes(content) > MOST_BYTES:
        return content
    parcel = ConfigRecord()
    for name, arrays in content.array_records.items():
        for key, array in arrays.items():
            parcel[f"{name}{_SEPARATOR}{key}"] = array.data
    for name, fields in content.config_records.items():
        for key, value in fields.items():
            parcel[f"{name}{_SEPARATOR}{key}"] = value
    return RecordDict({_PARCEL: parcel})


def unwrap(content: RecordDict) -> RecordDict:
    """The content that `wrap` was given, whose fields are not checked yet.

    Nothing in it is larger than what has arrived.

    Raises:
        FedEditError: it is a parcel that `wrap` does not make.
    """
    parcel = content.config_records.get(_PARCEL)
    if parcel is None:
        return content
    if len(content) > 1:
        raise FedEditError("message: records beside a parcel")
    found = RecordDict()
    for path, value in parcel.items():
        name, separator, key = path.partition(_SEPARATOR)
        if not separator:
            raise FedEditError(
                f"message: entry {shown(path)} of a parcel; it has to be RECORD/NAME"
            )
        record = found.setdefault(
            name, ArrayRecord() if isinstance(value, bytes) else ConfigRecord()
        )
        if isinstance(record, ArrayRecord) and isinstance(value, bytes):
            record[key] = _array(value, f"message, array {shown(path)}")
        elif isinstance(record, ConfigRecord) and not isinstance(value, bytes):
            record[key] = value
        else:
            raise FedEditError(f"message: record {shown(name)} of a parcel has arrays and fields")
    return found


def _array(data: bytes, place: str) -> Array:
    """The array that Flower makes of what numpy.save has written."""
    try:
        shape, _, dtype, _ = read_header(data)
    except ValueError as error:
        raise FedEditError(f"{place}: {error}") from None
    return Array(str(dtype), shape, STYPE, data)
