"""Owned channels on disk: created, entered, left, their key moved, and gone on with."""

from __future__ import annotations

import json
import os
import stat
from pathlib import Path
from typing import Any

import pytest

from kachery_p2p.channels.changes import Change, MemberRemoved, MemberSet, SuccessorNamed
from kachery_p2p.channels.channel import OWNED, generate_secret
from kachery_p2p.channels.files import (
    join_shared,
    joined,
    leave,
    load_channel,
    rekey,
    resolve,
    share_list,
)
from kachery_p2p.channels.history import History
from kachery_p2p.channels.invite_book import (
    InviteBook,
    add_pending_join,
    drop_pending_join,
    pending_joins,
)
from kachery_p2p.channels.invites import Invite
from kachery_p2p.channels.keeper import Keeper, self_member
from kachery_p2p.channels.owned import (
    create_owned,
    export_key,
    follow_successor,
    import_key,
    join_owned,
    load_channel_key,
    load_entry_secret,
    load_history,
    save_history,
    succeed_owned,
)
from kachery_p2p.channels.permissions import ADMIN, READ
from kachery_p2p.errors import (
    ChannelError,
    ConfigError,
    InviteError,
    InviteExpiredError,
    InviteUsedError,
    KeeperLeavesError,
    KeyFileError,
    PassphraseError,
    SecretMismatchError,
    StateCorruptError,
    StateVersionError,
    SuccessionError,
    UnknownChannelError,
)
from kachery_p2p.identity import backup
from kachery_p2p.identity.keyring import load_or_create
from kachery_p2p.limits import INVITE_MEMORY_S

NOW = 1_760_000_000
DAY = 86_400
SECRET = bytes(range(20))
READER = frozenset({READ})
PASSPHRASE = "four words and more"


@pytest.fixture
def config(tmp_path: Path) -> str:
    return str(tmp_path / "config")


@pytest.fixture
def cwd(tmp_path: Path) -> str:
    (tmp_path / "cwd/channels").mkdir(parents=True, mode=0o755)
    return str(tmp_path / "cwd")


def created(config: str, name: str = "lab") -> Any:
    return create_owned(config, name, load_or_create(config), "chief", NOW)


def keeper_of(config: str, name: str = "lab") -> Keeper:
    history = load_history(config, name)
    key = load_channel_key(config, history.channel_id)
    assert key is not None
    return Keeper(history, key)


# --- creating, entering, leaving --------------------------------------------------------------


def test_a_created_channel_is_private_and_its_maker_its_keeper(config: str) -> None:
    made = created(config)
    assert made.kind == OWNED
    assert joined(config) == [made]
    assert share_list(config) == [made.id]
    history = load_history(config, "lab")
    me = load_or_create(config).node_id
    assert history.roster.keeper == me
    assert ADMIN in history.roster.roles_of(me)
    assert load_channel(config, "lab").id == made.id == history.channel_id
    files = [*Path(config, "channels").iterdir(), *Path(config, "keys").iterdir()]
    assert {stat.S_IMODE(file.stat().st_mode) for file in files} == {0o600}
    assert created(config, "other").shared_list is False


def test_two_that_create_the_same_name_have_nothing_in_common(tmp_path: Path) -> None:
    one, two = (str(tmp_path / name) for name in ("one", "two"))
    assert created(one).id != created(two).id
    assert load_channel(one, "lab").key != load_channel(two, "lab").key


def test_a_name_is_taken_once(config: str, lab: Any) -> None:
    created(config)
    with pytest.raises(ChannelError) as caught:
        created(config)
    assert "--as NAME" in str(caught.value.hint)
    with pytest.raises(ChannelError, match="already"):
        join_owned(config, lab.id, SECRET, "lab", lab.history, now=NOW)


def test_who_was_admitted_joins_and_joining_again_mends_the_secret(config: str, lab: Any) -> None:
    known = join_owned(config, lab.id, SECRET, "lab", now=NOW, bootstrap=["/ip4/192.0.2.1"])
    assert load_history(config, "lab").size == 0
    save_history(config, "lab", lab.history)
    assert load_history(config, "lab").roster == lab.history.roster
    Path(config, "channels/lab.secret").write_text("damaged")
    with pytest.raises(KeyFileError, match="damaged"):
        load_channel(config, "lab")
    assert join_owned(config, lab.id, SECRET, "elsewhere", lab.history, now=NOW) == known
    assert load_entry_secret(config, "lab") == SECRET


def test_a_wrong_entry_secret_is_noticed(config: str, lab: Any) -> None:
    with pytest.raises(ChannelError, match="wrong entry secret"):
        join_owned(config, lab.id, SECRET[::-1], "lab", lab.history, now=NOW)
    assert joined(config) == []


@pytest.mark.parametrize("damage", ["cut", "other", "empty"])
def test_a_damaged_history_is_named(config: str, lab: Any, damage: str) -> None:
    join_owned(config, lab.id, SECRET, "lab", lab.history, now=NOW)
    path = Path(config, "channels/lab.history")
    whole = path.read_bytes()
    path.write_bytes({"cut": whole[:-1], "other": whole[:10] + bytes(32), "empty": b""}[damage])
    with pytest.raises(StateCorruptError, match=r"lab\.history"):
        load_history(config, "lab")
    path.chmod(0o640)
    with pytest.raises(KeyFileError):
        load_history(config, "lab")


def test_a_history_is_not_saved_for_a_channel_that_was_left(config: str, lab: Any) -> None:
    join_owned(config, lab.id, SECRET, "lab", lab.history, now=NOW)
    with pytest.raises(ChannelError, match="another one"):
        save_history(config, "lab", History.empty("ab" * 32))
    leave(config, "lab")
    with pytest.raises(UnknownChannelError):
        save_history(config, "lab", lab.history)
    assert os.listdir(Path(config, "channels")) == [".lock"]


def test_the_keeper_leaves_only_by_force(config: str) -> None:
    made = created(config)
    with pytest.raises(KeeperLeavesError) as caught:
        leave(config, "lab")
    assert "export-key" in str(caught.value.hint)
    leave(config, "lab", force=True)
    assert load_channel_key(config, made.id) is None
    assert joined(config) == []


def test_an_owned_channel_has_no_secret_to_change(config: str) -> None:
    created(config)
    with pytest.raises(ChannelError, match="owned"):
        rekey(config, "lab", generate_secret(SECRET))


# --- the key -----------------------------------------------------------------------------------


def test_a_channels_key_is_in_the_backup_of_keys_and_can_be_moved_alone(
    tmp_path: Path, config: str
) -> None:
    made = created(config)
    text = export_key(config, "lab", PASSPHRASE)
    other = str(tmp_path / "other")
    join_owned(other, made.id, load_entry_secret(config, "lab"), "theirs", now=NOW)
    assert load_channel_key(other, made.id) is None
    with pytest.raises(KeyFileError, match="not on this node"):
        export_key(other, "theirs", PASSPHRASE)
    with pytest.raises(PassphraseError):
        import_key(other, "theirs", text, "another passphrase")
    import_key(other, "theirs", text, PASSPHRASE)
    assert load_channel_key(other, made.id) is not None
    third = str(tmp_path / "third")
    backup.restore(third, backup.backup(config, PASSPHRASE), PASSPHRASE)
    assert load_channel_key(third, made.id) is not None
    created(third, "lab")
    with pytest.raises(KeyFileError, match="does not hold"):
        import_key(third, "lab", text, PASSPHRASE)


def test_a_damaged_or_open_key_is_refused(config: str) -> None:
    made = created(config)
    path = Path(config, f"keys/channel-{made.id}.key")
    text = path.read_text()
    for wrong in (
        "",
        text[:-2],
        text.replace("channel ", "channel 0"),
        text.replace(" 1\n", " 0\n"),
    ):
        path.write_text(wrong)
        with pytest.raises(KeyFileError) as caught:
            load_channel_key(config, made.id)
        assert text.split()[-1] not in str(caught.value)
    path.write_text(text.replace("key 1\n", "key 2\n"))
    with pytest.raises(StateVersionError):
        load_channel_key(config, made.id)
    path.write_text(text)
    path.chmod(0o644)
    with pytest.raises(KeyFileError, match="other users"):
        load_channel_key(config, made.id)


# --- invites -----------------------------------------------------------------------------------


def invite(lab: Any, name: str = "lab", number: int = 0, **more: Any) -> Invite:
    fields = {"expires": NOW + DAY, "admitters": ((lab.chief.node_id, ()),), **more}
    return Invite(lab.id, name, bytes([number]) * 16, **fields)


def test_an_invite_lets_in_one_node_and_that_one_again(config: str, lab: Any) -> None:
    book, made = InviteBook(config, "lab"), invite(lab)
    issued = book.issue(made, READER, NOW, since=7)
    again = InviteBook(config, "lab")
    assert again.find(made.invite_id) == issued
    assert again.find(bytes(16)) is None
    node, other = lab.node().node_id, lab.node().node_id
    assert book.use(made.invite_id, node, NOW).used_by == node
    assert again.use(made.invite_id, node, NOW + 2 * DAY).used_by == node
    with pytest.raises(InviteUsedError):
        again.use(made.invite_id, other, NOW)
    assert again.pending(NOW) == []
    assert stat.S_IMODE(Path(config, "channels/lab.invites").stat().st_mode) == 0o600


def test_an_expired_unknown_or_foreign_invite_is_not_used(config: str, lab: Any) -> None:
    book, node = InviteBook(config, "lab"), lab.node().node_id
    open_, bound = invite(lab), invite(lab, number=1, for_node=lab.chief.node_id)
    for one in (open_, bound):
        book.issue(one, READER, NOW)
    assert len(book.pending(NOW)) == 2
    with pytest.raises(InviteExpiredError):
        book.use(open_.invite_id, node, NOW + DAY + 1)
    for wrong in (bytes(16), bound.invite_id):
        with pytest.raises(InviteError):
            book.use(wrong, node, NOW)
    assert book.pending(NOW + DAY + 1) == []


def test_old_invites_are_forgotten_and_many_refused(
    config: str, lab: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("kachery_p2p.channels.invite_book.INVITES_PENDING_MAX", 2)
    book = InviteBook(config, "lab")
    for number in range(2):
        book.issue(invite(lab, number=number), READER, NOW)
    with pytest.raises(ChannelError, match="remembered"):
        book.issue(invite(lab, number=2), READER, NOW)
    later = NOW + DAY + INVITE_MEMORY_S + 1
    book.issue(invite(lab, number=2), READER, later)
    assert book.find(invite(lab).invite_id) is None


@pytest.mark.parametrize(
    ("field", "value"),
    [("secret", "00"), ("roles", ["root"]), ("roles", []), ("expires", "1"), ("used_by", "x")],
)
def test_a_damaged_invite_file_is_named(config: str, lab: Any, field: str, value: Any) -> None:
    InviteBook(config, "lab").issue(invite(lab), READER, NOW)
    path = Path(config, "channels/lab.invites")
    table = json.loads(path.read_text())
    table["invites"][0][field] = value
    for text in (json.dumps(table), "[]", "{", '{"version": 0, "invites": []}'):
        path.write_text(text)
        with pytest.raises(StateCorruptError, match=r"lab\.invites"):
            InviteBook(config, "lab").find(bytes(16))
    path.write_text('{"version": 2}')
    with pytest.raises(StateVersionError):
        InviteBook(config, "lab").find(bytes(16))


def test_a_node_waits_with_an_invite_until_it_was_let_in(config: str, lab: Any) -> None:
    made = invite(lab)
    assert pending_joins(config) == []
    add_pending_join(config, "lab", made)
    add_pending_join(config, "lab", invite(lab, number=1))
    assert pending_joins(config) == [("lab", invite(lab, number=1))]
    assert joined(config) == []
    with pytest.raises(ChannelError) as caught:
        add_pending_join(config, "lab", made._replace(channel_id=lab.node().node_id))
    assert "--as NAME" in str(caught.value.hint)
    drop_pending_join(config, "lab")
    join_owned(config, lab.id, SECRET, "lab", now=NOW)
    add_pending_join(config, "lab", made)
    assert pending_joins(config) == []
    add_pending_join(config, "other", made._replace(channel_id=lab.node().node_id))
    leave(config, "other")
    assert pending_joins(config) == []
    Path(config, "channels/bad.join").write_text("kp2p-invite-1-AAAA")
    Path(config, "channels/bad.join").chmod(0o600)
    with pytest.raises(StateCorruptError):
        pending_joins(config)


# --- what --channel means ---------------------------------------------------------------------


def test_with_nothing_else_a_private_channel_is_made_and_told(config: str, cwd: str) -> None:
    told = list[str]()
    channel = resolve("lab", config, cwd, {}, told.append)
    assert channel is not None
    assert channel.kind == OWNED
    assert told == [
        "created channel lab (private, owned by this node); "
        "invite others with `kachery-p2p channel invite lab`"
    ]
    assert resolve("lab", config, cwd, {}, told.append) == channel
    assert len(told) == 1


def test_an_invite_is_remembered_and_nothing_to_a_member(config: str, cwd: str, lab: Any) -> None:
    made = invite(lab, "theirs", expires=2**40)
    assert resolve(f" {made.text}\n", config, cwd, {}) is None
    assert pending_joins(config) == [("theirs", made)]
    join_owned(config, lab.id, SECRET, "alias", now=NOW)
    again = resolve(made.text, config, cwd, {})
    assert again is not None
    assert again.name == "alias"


def test_an_invite_that_cannot_work_is_not_remembered(config: str, cwd: str, lab: Any) -> None:
    bound = invite(lab, expires=2**40, for_node=lab.node().node_id)
    for text, error in (
        (invite(lab).text, InviteExpiredError),
        (bound.text, InviteError),
        (bound.text[:-1], InviteError),
    ):
        with pytest.raises(error):
            resolve(text, config, cwd, {})
    assert pending_joins(config) == []


def test_a_channel_file_of_an_owned_channel_needs_an_invite_and_checks_the_id(
    config: str, cwd: str, lab: Any
) -> None:
    path = Path(cwd, "channels/lab.toml")
    text = f'kind = "owned"\nname = "lab"\nid = "{lab.id}"\nbootstrap = ["/ip4/192.0.2.1"]\n'
    path.write_text(text)
    path.chmod(0o644)
    environ = {"KACHERY_CHANNEL_SECRET": generate_secret(SECRET)}
    with pytest.raises(InviteError) as caught:
        resolve("lab", config, cwd, environ)
    assert "channel join" in str(caught.value.hint)
    join_owned(config, lab.id, SECRET, "lab", now=NOW)
    resolve(str(path), config, cwd, {})
    assert joined(config)[0].bootstrap == ("/ip4/192.0.2.1",)
    path.write_text(text.replace(lab.id, "ab" * 32))
    with pytest.raises(ChannelError, match="another channel"):
        resolve(str(path), config, cwd, {})
    for wrong in ('secret_env = "A"\n', 'secret_file = "a"\n', 'id = "x"\n'):
        path.write_text('kind = "owned"\nname = "lab"\n' + wrong)
        with pytest.raises(ConfigError):
            resolve(str(path), config, cwd, {})


def test_a_secret_for_a_channel_that_is_owned_here_is_a_mistake(config: str, cwd: str) -> None:
    resolve("lab", config, cwd, {})
    with pytest.raises(SecretMismatchError) as caught:
        resolve("lab", config, cwd, {"KACHERY_CHANNEL_SECRET": generate_secret(SECRET)})
    assert "unset" in str(caught.value.hint)
    join_shared(config, "open", generate_secret(SECRET))
    assert [known.kind for known in joined(config)].count(OWNED) == 1


# --- succession --------------------------------------------------------------------------------


class House:
    """A keeper, its named successor and a member, each with a disk."""

    def __init__(self, tmp_path: Path, *, named: bool = True) -> None:
        self.keeper, self.heir, self.member = (str(tmp_path / n) for n in ("k", "h", "m"))
        made = created(self.keeper)
        heir, member = load_or_create(self.heir), load_or_create(self.member)
        keeper, me = keeper_of(self.keeper), load_or_create(self.keeper).node_id
        changes: list[Change] = [MemberSet(self_member(heir, "h", READER))]
        changes.append(MemberSet(self_member(member, "m", READER)))
        if named:
            changes.append(SuccessorNamed(heir.node_id))
        asked = [(change, me, os.urandom(16)) for change in changes]
        self.history = keeper.recorded(asked, NOW * 1000)
        save_history(self.keeper, "lab", self.history)
        secret = load_entry_secret(self.keeper, "lab")
        for config in (self.heir, self.member):
            join_owned(config, made.id, secret, "lab", self.history, now=NOW)

    def succeed(self, config: str, now: float) -> Any:
        return succeed_owned(config, "lab", load_or_create(config), "heir", now)


def test_a_named_successor_goes_on_when_the_keeper_is_silent(tmp_path: Path) -> None:
    house = House(tmp_path)
    now = NOW + 8 * DAY
    old_id, after = house.succeed(house.heir, now)
    assert old_id == house.history.channel_id != after.id
    assert after.name == "lab"
    new = load_history(house.heir, "lab")
    assert set(new.roster.members) == set(house.history.roster.members)
    assert follow_successor(house.member, "lab", new, now) == (old_id, joined(house.member)[0])
    assert joined(house.member)[0].id == after.id
    assert load_channel(house.member, "lab") == load_channel(house.heir, "lab")
    # The old one stays for those who have not heard, and gets no new files.
    assert {(k.name, k.id) for k in joined(house.heir)} == {("lab", after.id), ("lab.old", old_id)}
    assert share_list(house.heir) == [after.id]


def test_a_successor_waits_for_seven_days_of_silence_and_must_be_named(tmp_path: Path) -> None:
    house = House(tmp_path)
    with pytest.raises(SuccessionError, match="within"):
        house.succeed(house.heir, NOW + 7 * DAY - 1)
    with pytest.raises(SuccessionError, match="name"):
        house.succeed(house.member, NOW + 8 * DAY)
    assert len(joined(house.heir)) == len(joined(house.member)) == 1


def test_members_do_not_follow_who_may_not_succeed(tmp_path: Path) -> None:
    house = House(tmp_path)
    now = NOW + 8 * DAY
    house.succeed(house.heir, now)
    new = load_history(house.heir, "lab")
    early = NOW + 7 * DAY - 601
    for config, history, when in (
        (house.member, new, early),
        (house.member, house.history, now),
        (house.member, History.empty(new.channel_id), now),
    ):
        with pytest.raises(SuccessionError):
            follow_successor(config, "lab", history, when)
    # The keeper was only asleep: a newer head, then a removal that the heir does not know of.
    keeper = keeper_of(house.keeper)
    save_history(house.member, "lab", keeper.renewed(now * 1000))
    with pytest.raises(SuccessionError, match="alive"):
        follow_successor(house.member, "lab", new, now)
    me = load_or_create(house.keeper).node_id
    heir = load_or_create(house.heir).node_id
    known = keeper.recorded([(MemberRemoved(heir), me, os.urandom(16))], now * 1000)
    save_history(house.member, "lab", known)
    with pytest.raises(SuccessionError, match="another history"):
        follow_successor(house.member, "lab", new, now + 30 * DAY)


def test_a_successor_named_by_nobody_is_not_followed(tmp_path: Path, lab: Any) -> None:
    named, other = House(tmp_path / "a"), House(tmp_path / "b", named=False)
    named.succeed(named.heir, NOW + 8 * DAY)
    new = load_history(named.heir, "lab")
    with pytest.raises(SuccessionError):
        follow_successor(other.member, "lab", new, NOW + 8 * DAY)
    with pytest.raises(SuccessionError):
        follow_successor(other.member, "lab", lab.history, NOW + 8 * DAY)


def test_a_keeper_hands_over_at_once_and_can_finish_after_a_power_cut(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    house = House(tmp_path, named=False)
    with monkeypatch.context() as patched:
        patched.setattr("kachery_p2p.channels.owned._end", lambda *args: None)
        old_id, after = house.succeed(house.keeper, NOW + 5)
    assert load_history(house.keeper, "lab.old").roster.handed_over is None
    assert house.succeed(house.keeper, NOW + 9) == (old_id, after)
    old = load_history(house.keeper, "lab.old")
    assert old.roster.handed_over == after.id
    new = load_history(house.keeper, "lab")
    with pytest.raises(SuccessionError):
        follow_successor(house.member, "lab", new, NOW + 10)
    save_history(house.member, "lab", old)
    follow_successor(house.member, "lab", new, NOW + 10)
    assert joined(house.member)[0].id == after.id
