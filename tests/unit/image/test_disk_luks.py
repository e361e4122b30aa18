"""LUKS headers: those of cryptsetup are read, what contradicts itself is refused, nothing else is raised."""

from __future__ import annotations

import base64
import copy
import json
import subprocess
from pathlib import Path
from typing import Any

import hypothesis.strategies as st
import pytest
from hypothesis import given, settings

from pytest_osgates.image.diff.ranges import BytesContent
from pytest_osgates.image.disk.luks import Header, Kdf, Keyslot, read_luks
from pytest_osgates.image.disk.source import SourceContent, open_disk
from pytest_osgates.vm.errors import ImageError
from tests.disk_builders import DATA, HEADER, KEYSLOTS, flipped, luks2, metadata, slot

PAYLOAD = bytes(1 << 16)
PEM = b"-----BEGIN PUBLIC KEY-----\n" + b"MIIB" * 200 + b"\n-----END PUBLIC KEY-----\n"


def read(raw: bytes) -> Header:
    return read_luks(BytesContent(raw))


def test_a_header() -> None:
    header = read(luks2(payload=PAYLOAD))
    assert (header.version, header.sequence, header.cipher, header.key_size) == (2, 3, "aes-xts-plain64", 512)
    assert header.uuid == "05c0de01-0000-4000-8000-000000000002"
    kdf = Kdf("argon2id", 4, 1048576, 4)
    assert header.keyslots == (Keyslot(0, "luks2", 512, "aes-xts-plain64", 512, kdf, True, True, 32768, 65536),)
    assert [(segment.start, segment.size) for segment in header.segments] == [(DATA, len(PAYLOAD))]
    assert (header.faults, header.spare, header.tokens, header.requirements) == ((), (), (), ())


def test_what_cryptsetup_made(tmp_path: Path) -> None:
    """One slot of each kind, and a token of systemd's."""
    disk, key = tmp_path / "disk", tmp_path / "key"
    key.write_bytes(b"passphrase")
    with disk.open("wb") as file:
        file.truncate(20 << 20)
    cryptsetup = ["/usr/sbin/cryptsetup", "--batch-mode", "--key-file", str(key)]
    cheap = ["--pbkdf-force-iterations", "1000", "--pbkdf", "pbkdf2"]
    argon = ["--pbkdf-force-iterations", "4", "--pbkdf-memory", "64", "--pbkdf-parallel", "1", "--pbkdf", "argon2id"]
    uuid = "05c0de01-0000-4000-8000-00000000000a"
    subprocess.run([*cryptsetup, "luksFormat", "--type", "luks2", "--uuid", uuid, *argon, str(disk)], check=True)
    (tmp_path / "second").write_bytes(b"second")
    subprocess.run([*cryptsetup, "luksAddKey", *cheap, str(disk), str(tmp_path / "second")], check=True)
    token = {
        "type": "systemd-tpm2",
        "keyslots": ["1"],
        "tpm2-blob": "AAAA",
        "tpm2-pcrs": [7, 4],
        "tpm2-pcr-bank": "sha256",
        "tpm2-policy-hash": "ab" * 32,
        "tpm2-pin": True,
        "tpm2_pubkey_pcrs": [11],
        "tpm2_pubkey": base64.b64encode(PEM).decode(),
    }
    (tmp_path / "token").write_text(json.dumps(token))
    subprocess.run([*cryptsetup, "token", "import", "--json-file", str(tmp_path / "token"), str(disk)], check=True)
    with open_disk(disk) as source:
        header = read_luks(SourceContent(source, 0, source.size))
    assert (header.uuid, header.cipher, header.key_size, header.faults) == (uuid, "aes-xts-plain64", 512, ())
    assert [entry.kdf for entry in header.keyslots] == [
        Kdf("argon2id", 4, 64, 1),
        Kdf("pbkdf2", iterations=1000, hash="sha256"),
    ]
    found = header.tokens[0]
    assert (found.type, found.keyslots, found.pcrs, found.signed_pcrs) == ("systemd-tpm2", (1,), (4, 7), (11,))
    assert (found.bank, found.pin, found.pcrlock, found.pubkey) == ("sha256", True, False, PEM)


def test_luks1() -> None:
    raw = bytearray(4096)
    raw[:8] = b"LUKS\xba\xbe\0\1"
    raw[8:11], raw[40:51] = b"aes", b"xts-plain64"
    raw[108:112] = (64).to_bytes(4, "big")
    header = read(bytes(raw))
    assert (header.version, header.cipher, header.key_size) == (1, "aes-xts-plain64", 512)


def test_one_copy_is_enough_and_the_other_is_a_fault() -> None:
    good = luks2(payload=PAYLOAD)
    first = read(flipped(good, [(5000, 0xFF)]))
    assert [fault.split(":")[0] for fault in first.faults] == ["the first copy"]
    second = read(flipped(good, [(HEADER + 5000, 0xFF)]))
    assert second.faults == ("the second copy: its checksum is wrong",)
    with pytest.raises(ImageError, match=r"the first copy.*the second copy"):
        read(flipped(good, [(5000, 0xFF), (HEADER + 5000, 0xFF)]))


def test_the_newer_copy_counts_and_a_stale_one_is_a_fault() -> None:
    """A removed keyslot may still stand in the older one."""
    newer = metadata(keyslots={"0": slot(), "1": slot(1)})
    raw = luks2(second=json.dumps(newer).encode(), second_sequence=4, payload=PAYLOAD)
    header = read(raw)
    assert [entry.number for entry in header.keyslots] == [0, 1]
    assert header.faults == ("the copies have the sequence ids 3 and 4",)
    raw = luks2(second=json.dumps(newer).encode(), payload=PAYLOAD)
    assert read(raw).faults == ("the copies have one sequence id and differ",)


def segments(*places: tuple[int, int | str], **changes: Any) -> dict[str, Any]:
    """Segments by start and size."""
    plain = metadata()["segments"]["0"]
    return {
        str(number): {**plain, "offset": str(start), "size": str(size), **changes}
        for number, (start, size) in enumerate(places)
    }


def covering(*names: str) -> dict[str, Any]:
    return {"0": {"type": "pbkdf2", "keyslots": ["0"], "segments": list(names)}}


def test_what_no_segment_covers_is_named() -> None:
    data = metadata(segments=segments((DATA + 4096, 4096), (DATA + 12288, 8192)), digests=covering("0", "1"))
    assert read(luks2(data, PAYLOAD)).spare == (
        (DATA, 4096),
        (DATA + 8192, 4096),
        (DATA + 20480, len(PAYLOAD) - 20480),
    )


def test_an_unfinished_reencryption_is_seen() -> None:
    data = metadata(
        segments={**segments((DATA, "dynamic")), "1": {"type": "linear", "offset": "0", "size": "dynamic",
                                                       "flags": ["backup-previous"]}},
        config={**metadata()["config"], "requirements": {"mandatory": ["online-reencrypt-v2"]}},
    )  # fmt: skip
    header = read(luks2(data, PAYLOAD))
    assert header.requirements == ("online-reencrypt-v2",)
    assert [(segment.type, segment.in_use) for segment in header.segments] == [("crypt", True), ("linear", False)]


def test_a_slot_that_opens_nothing() -> None:
    data = metadata(
        keyslots={"0": slot(), "1": slot(1)},
        digests={**covering("0"), "1": {"type": "pbkdf2", "keyslots": ["1"], "segments": []}},
    )
    assert [entry.volume for entry in read(luks2(data, PAYLOAD)).keyslots] == [True, False]


def test_a_slot_that_is_only_tried_where_its_number_is_said() -> None:
    slots = {str(number): {**slot(number), "priority": number} for number in range(3)}
    found = read(luks2(metadata(keyslots=slots, digests=covering("0")), PAYLOAD)).keyslots
    assert [entry.tried for entry in found] == [False, True, True]
    assert [entry.start - found[0].start for entry in found] == [0, 65536, 131072]


def test_a_signed_policy_without_a_key_binds_nothing() -> None:
    """systemd asks for a signature only where the token has the key."""
    for key, bound in ((None, ()), ("", ()), (base64.b64encode(PEM).decode(), (11,))):
        more = {} if key is None else {"tpm2_pubkey": key}
        token = {**TPM2, "tpm2-pcrs": [], "tpm2_pubkey_pcrs": [11], "tpm2-policy-hash": "ab" * 32, **more}
        assert read(luks2(metadata(tokens={"0": token}), PAYLOAD)).tokens[0].signed_pcrs == bound


TPM2 = {"type": "systemd-tpm2", "keyslots": ["0"], "tpm2-pcrs": [7]}


def contradictions() -> dict[str, dict[str, Any] | bytes]:
    config = metadata()["config"]
    area = slot()["area"]
    return {
        "no JSON": b"{",
        "a key is there twice": b'{"keyslots": {}, "keyslots": {}}',
        "a key with a NUL": b'{"keyslots": {}, "keyslots\\u0000": {}}',
        "NaN is no number": b'{"keyslots": NaN}',
        "no 'config'": {key: value for key, value in metadata().items() if key != "config"},
        "the sizes of its areas": metadata(config={**config, "json_size": "4096"}),
        "beyond the partition": metadata(config={**config, "keyslots_size": str(4096 * 30000)}),
        "not a number in quotes": metadata(config={**config, "keyslots_size": KEYSLOTS}),
        "outside the area of the keyslots": metadata(keyslots={"0": {**slot(), "area": {**area, "offset": "4096"}}}),
        "too small for": metadata(keyslots={"0": {**slot(), "area": {**area, "size": "4096"}}}),
        "overlap": metadata(keyslots={"0": slot(), "1": {**slot(), "area": {**area, "size": "65536"}}}),
        "unknown type 'scrypt'": metadata(keyslots={"0": slot(type="scrypt")}),
        "no number up to 31": metadata(keyslots={"32": slot()}),
        "keyslots that are not there": metadata(digests={"0": {"keyslots": ["4"], "segments": ["0"]}}),
        "a segment that is not there": metadata(digests=covering("3")),
        "none of a segment": metadata(digests={}),
        "none of segment 1": metadata(segments=segments((DATA, 4096), (DATA + 4096, 4096)), digests=covering("0")),
        "outside the partition": metadata(segments=segments((DATA, 1 << 40))),
        "in the metadata": metadata(segments=segments((4096, "dynamic"))),
        "0 and 1 overlap": metadata(segments=segments((DATA, 8192), (DATA + 4096, 512))),
        "none that is in use": metadata(segments=segments((DATA, "dynamic"), flags=["backup-final"])),
        "a keyslot that is not there": metadata(tokens={"0": {"type": "x", "keyslots": ["9"]}}),
        "PCRs 0 to 23": metadata(tokens={"0": {"type": "systemd-tpm2", "keyslots": ["0"], "tpm2-pcrs": [24]}}),
        "its policy demands nothing": metadata(tokens={"0": {**TPM2, "tpm2-policy-hash": "00" * 32}}),
        "0: it names PCRs": metadata(tokens={"0": {**TPM2, "tpm2-policy-hash": ["ab" * 32, "00" * 32]}}),
        # Of what is only signed, as well.
        "tokens.0: it names PCRs": metadata(
            tokens={"0": {**TPM2, "tpm2-pcrs": [], "tpm2_pubkey_pcrs": [11], "tpm2-policy-hash": "00" * 32}}
        ),
        "no base64": metadata(tokens={"0": {**TPM2, "tpm2_pubkey": "PEM!"}}),
        "no text, or a long one": metadata(tokens={"0": {**TPM2, "tpm2_pubkey": 1}}),
        "no 'tpm2-pcrs'": metadata(tokens={"0": {"type": "systemd-tpm2", "keyslots": ["0"]}}),
    }


@pytest.mark.parametrize("said", contradictions())
def test_metadata_that_contradict_themselves(said: str) -> None:
    with pytest.raises(ImageError, match=said.replace("(", "\\(")):
        read(luks2(contradictions()[said], PAYLOAD))


def test_bytes_after_the_json_are_refused() -> None:
    text = json.dumps(metadata()).encode() + b"\0hidden"
    with pytest.raises(ImageError, match="after the end of its JSON"):
        read(luks2(text, PAYLOAD))


def test_deep_json_is_refused() -> None:
    with pytest.raises(ImageError):
        read(luks2(b"[" * 12000, PAYLOAD))


LEAVES = st.none() | st.booleans() | st.integers() | st.text(max_size=6) | st.floats() | st.just("4096")
TREES = st.recursive(LEAVES, lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=4), inner))


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_whatever_stands_in_the_metadata(data: st.DataObject) -> None:
    """Any value in any place, with right checksums: a header or an error, and a header only with sane areas."""
    tree = copy.deepcopy(metadata(tokens={"0": {"type": "systemd-tpm2", "keyslots": ["0"], "tpm2-pcrs": [7]}}))
    here: Any = tree
    while True:
        keys = sorted(here) if isinstance(here, dict) else range(len(here))
        key = data.draw(st.sampled_from(list(keys)))
        inner = here[key]
        if isinstance(inner, dict | list) and inner and data.draw(st.booleans()):
            here = inner
            continue
        here[key] = data.draw(TREES)
        break
    try:
        header = read(luks2(json.dumps(tree).encode(), PAYLOAD))
    except ImageError:
        return
    for segment in header.segments:
        assert segment.size > 0
        assert segment.start + segment.size <= DATA + len(PAYLOAD)
        assert not segment.in_use or segment.start >= DATA


@settings(max_examples=60, deadline=None)
@given(flips=st.lists(st.tuples(st.integers(0, 2 * HEADER - 1), st.integers(0, 255)), min_size=1, max_size=4))
def test_mutations_are_noticed(flips: list[tuple[int, int]]) -> None:
    """What a flipped byte leaves is the same header, with a fault for the copy that it was in; or an error."""
    good = luks2(payload=PAYLOAD)
    raw = flipped(good, flips)
    try:
        header = read(raw)
    except ImageError:
        return
    assert header.keyslots == read(good).keyslots
    # SHA-256 leaves half of the room for a checksum, which nothing covers.
    rooms = (slice(480, 512), slice(HEADER + 480, HEADER + 512))
    assert header.faults or raw == good or any(raw[room] != good[room] for room in rooms)


@pytest.mark.parametrize("digest", ["ab" * 32, ["ab" * 32, "00" * 31 + "01"]])
def test_a_policy_that_demands_something(digest: object) -> None:
    data = metadata(tokens={"0": {**TPM2, "tpm2-policy-hash": digest}})
    assert read(luks2(data, PAYLOAD)).tokens[0].pcrs == (7,)
