"""Secrets, names and keys: the vectors, and secrets that are none."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kachery_p2p.channels.channel import (
    SECRET_BYTES,
    Channel,
    check_channel_name,
    generate_secret,
    parse_secret,
)
from kachery_p2p.errors import InvalidNameError, WeakSecretError

VECTORS = json.loads((Path(__file__).parents[1] / "vectors/membership.json").read_text())
RANDOM = bytes(range(20))


@pytest.mark.parametrize("vector", VECTORS["channels"], ids=lambda v: f"{v['name']}-{v['id'][:4]}")
def test_secret_id_and_keys_are_those_of_the_vector(vector: dict[str, Any]) -> None:
    random = bytes.fromhex(vector["random"])
    assert generate_secret(random) == vector["secret"]
    assert parse_secret(vector["secret"]) == random
    channel = Channel.shared(random, vector["name"])
    assert channel == Channel(
        vector["name"],
        vector["id"],
        bytes.fromhex(vector["key"]),
        bytes.fromhex(vector["discovery_key"]),
    )


@pytest.mark.parametrize("vector", VECTORS["weak_secrets"], ids=lambda v: v["why"])
def test_a_secret_that_was_not_generated_is_refused(vector: dict[str, Any]) -> None:
    with pytest.raises(WeakSecretError) as caught:
        parse_secret(vector["secret"])
    assert caught.value.hint


def test_only_a_generated_secret_hints_at_a_typing_mistake() -> None:
    with pytest.raises(WeakSecretError, match="not a generated one") as caught:
        parse_secret("hunter2")
    assert "kachery-p2p channel create NAME --shared" in str(caught.value.hint)
    with pytest.raises(WeakSecretError, match="mistyped"):
        parse_secret(generate_secret(RANDOM)[:-3])


@given(st.binary(min_size=SECRET_BYTES, max_size=SECRET_BYTES))
def test_a_generated_secret_is_read_back_with_white_space_around_it(random: bytes) -> None:
    assert parse_secret(f" {generate_secret(random)}\n") == random


@given(st.data())
def test_one_wrong_letter_is_always_noticed(data: st.DataObject) -> None:
    secret = generate_secret(RANDOM)
    place = data.draw(st.integers(0, len(secret) - 1))
    letter = data.draw(st.characters().filter(lambda c: c != secret[place]))
    with pytest.raises(WeakSecretError):
        parse_secret(secret[:place] + letter + secret[place + 1 :])


@given(st.text(max_size=80))
def test_no_error_repeats_any_of_the_secret(text: str) -> None:
    secret = generate_secret(RANDOM) + "x" + text
    with pytest.raises(WeakSecretError) as caught:
        parse_secret(secret)
    shown = f"{caught.value} {caught.value.hint} {caught.value!r}"
    assert secret.removeprefix("kp2p-secret-1-")[:6] not in shown
    assert caught.value.__cause__ is None


def test_a_channel_shows_neither_key_nor_whole_id() -> None:
    channel = Channel.shared(RANDOM, "lab")
    for shown in (repr(channel), str(channel), f"{channel}", repr([channel]), f"{channel!r}"):
        for key in (channel.key, channel.discovery_key):
            assert key.hex() not in shown
            assert repr(key)[2:-1] not in shown
        assert "lab" in shown


def test_one_secret_gives_unlike_channels_under_unlike_names() -> None:
    lab, other = (Channel.shared(RANDOM, name) for name in ("lab", "Lab"))
    derived = [lab.key.hex(), other.key.hex(), lab.id, other.id]
    derived += [lab.discovery_key.hex(), other.discovery_key.hex()]
    assert len(set(derived)) == 6


@pytest.mark.parametrize("name", ["lab", "A", "0", "a.b", "..a", "_", "-", "x" * 64])
def test_a_name_of_plain_letters_is_accepted(name: str) -> None:
    assert check_channel_name(name) == name


@pytest.mark.parametrize(
    "name",
    ["", ".", "..", "a/b", "a\\b", "a b", "a\n", "lab\0", "läb", "x" * 65, "~", "\u202e", "٣"],
    ids=ascii,
)
def test_a_name_that_could_be_more_than_a_name_is_refused(name: str) -> None:
    with pytest.raises(InvalidNameError) as caught:
        check_channel_name(name)
    assert str(caught.value).isascii()
    assert str(caught.value).isprintable()


def test_looking_at_channels_imports_no_cryptography() -> None:
    code = (
        "import sys; import kachery_p2p.channels.files as f; f.share_list('/nonexistent');"
        "print(sorted({'cryptography', 'msgpack', 'tomllib', 'hashlib', 'trio', 'json',"
        "'dataclasses'} & set(sys.modules)))"
    )
    environ = {"PYTHONPATH": str(Path(__file__).parents[2])}
    ran = subprocess.run(
        [sys.executable, "-S", "-c", code], capture_output=True, text=True, env=environ
    )
    assert ran.stdout == "[]\n", ran.stderr
