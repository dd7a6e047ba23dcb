"""Signatures: whose an MKV is."""

import base64
import dataclasses

import pytest
from cryptography.hazmat.primitives.asymmetric import ec

from fedit_app.mkv import mkv_from_bytes, to_bytes
from fedit_app.mkv.authorship import SigningKey, is_signed_by
from fedit_app.mkv.federation_key import FederationKey
from fedit_app.mkv.node_key import load_public_key
from fedit_app.mkv.open_form import decode_open, encode_open
from fedit_app.mkv.record import Authorship
from fedit_app.mkv.sealer import Sealer
from fedit_app.support.errors import FedEditError

KEY = SigningKey(ec.generate_private_key(ec.SECP384R1()))
OTHER = SigningKey(ec.generate_private_key(ec.SECP384R1()))


@pytest.fixture
def signed(make_mkvs):
    return KEY.sign(make_mkvs(1)[0])


def test_a_signature_is_that_of_its_key(signed, make_mkvs):
    assert is_signed_by(signed, {OTHER.public, KEY.public})
    assert not is_signed_by(signed, {OTHER.public})
    assert not is_signed_by(signed, ())
    assert not is_signed_by(make_mkvs(1)[0], {KEY.public})
    assert KEY.sign(signed).author == signed.author


@pytest.mark.parametrize(
    "change",
    [
        {"node": "school"},
        {"slot": 2},
        {"fingerprint": "model-b"},
        {"id": "0" * 32},
        {"author": Authorship(KEY.public, "AAAA")},
        {"author": Authorship(KEY.public, "no base64")},
    ],
)
def test_it_is_of_this_mkv_under_this_name_alone(signed, change):
    assert not is_signed_by(dataclasses.replace(signed, **change), {KEY.public})


def test_it_travels_with_the_mkv(signed, make_mkvs):
    unsigned = make_mkvs(2)[1]
    arrived = decode_open(*encode_open([signed, unsigned]))
    assert [one.author for one in arrived] == [signed.author, None]
    assert mkv_from_bytes(to_bytes(signed)).author == signed.author
    assert "authors" not in encode_open([unsigned])[1]

    sealer = Sealer(FederationKey.new(), "sealed", signed.fingerprint, 32)
    (sealed,) = sealer.seal([signed])
    assert sealer.open(sealed).author == signed.author
    assert KEY.public[-40:].encode() not in sealed.payload
    (again,) = sealer.seal([KEY.sign(signed)])
    assert again.payload == sealed.payload


@pytest.mark.parametrize(
    "author", [["a"], ["a", "b", "c"], ["a", 1], "ab", ["a", "x" * 2000], ["a", "\n"], None]
)
def test_what_is_no_author_is_refused(signed, author):
    arrays, meta = encode_open([signed])
    with pytest.raises(FedEditError, match="author"):
        decode_open(arrays, meta | {"authors": [author]})
    with pytest.raises(FedEditError, match="length"):
        decode_open(arrays, meta | {"authors": []})


def test_a_key_that_cannot_sign(tmp_path):
    file = tmp_path / "node.key"
    file.write_bytes(b"nothing")
    file.chmod(0o600)
    with pytest.raises(FedEditError, match="node.key: not a private key"):
        SigningKey.read(file)


def test_a_key_of_a_short_point_is_no_key(signed):
    """The library raises no ValueError for it; it may stand in an MKV that somebody sends."""
    curve, point = b"nistp384", b"\x02" + bytes(48)
    parts = [b"ecdsa-sha2-nistp384", curve, point]
    packed = b"".join(len(part).to_bytes(4, "big") + part for part in parts)
    short = f"ecdsa-sha2-nistp384 {base64.b64encode(packed).decode()}"
    with pytest.raises(ValueError, match="holds no public key"):
        load_public_key(short)
    author = Authorship(short, signed.author.signature)
    assert not is_signed_by(dataclasses.replace(signed, author=author), {short})
