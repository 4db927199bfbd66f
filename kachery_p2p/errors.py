"""Every exception a user of kachery_p2p can meet.

Each says whose fault it is and what to do next. `str(error)` is one line, lower
case, without a full stop, as the command line prints it after `error:`; `hint`
is the line after `hint:`. `exit_code` is the documented exit code of the command
line (README, "Exit codes"). The docstrings are written for the person who meets
the error, not for the programmer who raises it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

EXIT_FAILURE = 1
EXIT_USAGE = 2
EXIT_NOT_FOUND = 3
EXIT_DAEMON_DOWN = 4
EXIT_REFUSED = 5
EXIT_STORAGE = 6
EXIT_CORRUPT = 7
EXIT_TIMEOUT = 8
EXIT_IN_USE = 9
EXIT_CONFIG = 10


class KacheryError(Exception):
    """Something kachery_p2p could not do. Every other error here is a kind of this one."""

    exit_code = EXIT_FAILURE

    def __init__(self, message: str, *, hint: str | None = None) -> None:
        super().__init__(message)
        self.hint = hint


# --- what you asked for ---------------------------------------------------------------


class UriError(KacheryError, ValueError):
    """The URI is not one that kachery_p2p can read: look for a missing or extra character."""

    exit_code = EXIT_USAGE


class UnknownSchemeError(UriError):
    """The URI starts with a scheme that this version does not read."""


class InvalidNameError(KacheryError, ValueError):
    """A label, channel name or file name holds characters that are not allowed there."""

    exit_code = EXIT_USAGE


class InvalidRangeError(KacheryError, ValueError):
    """The byte range asked for does not lie inside the file."""

    exit_code = EXIT_USAGE


class DataFormatError(KacheryError, ValueError):
    """The bytes are what was stored, but they are not of the format you asked to load."""

    exit_code = EXIT_CORRUPT


class UnsafePickleError(DataFormatError):
    """The pickle could run code when loaded, so it was not. Ask its author for JSON or npy."""


class UnsupportedValueError(KacheryError, TypeError):
    """The value cannot be stored in this format: the message says which part of it."""

    exit_code = EXIT_USAGE


# --- loading --------------------------------------------------------------------------


class LoadFileError(KacheryError):
    """The content of a URI could not be had; the kinds of this error say why."""

    exit_code = EXIT_NOT_FOUND


class LoadFilesError(LoadFileError):
    """Some of the files of one call could not be loaded: `failed` says which, and why each."""

    def __init__(
        self,
        message: str,
        *,
        hint: str | None = None,
        failed: Mapping[str, KacheryError] | None = None,
    ) -> None:
        super().__init__(message, hint=hint)
        self.failed = dict(failed or {})
        self.exit_code = next((error.exit_code for error in self.failed.values()), EXIT_NOT_FOUND)


class NotFoundError(LoadFileError):
    """Neither this computer nor any node that answered has the content."""


class PathNotFoundError(LoadFileError):
    """The directory has nothing, or something of another kind, at the path inside it."""


class LinkChangedError(NotFoundError):
    """The file was linked, not copied, and now has other bytes: the link was removed."""


class AmbiguousNodeError(LoadFileError):
    """More than one connected node has a label that begins like the name given: give its id."""

    exit_code = EXIT_USAGE


class AllProvidersFailedError(LoadFileError):
    """Nodes said they have the content, but none delivered it; the message says each one's why."""


class LoadTimeoutError(LoadFileError):
    """The content did not arrive within the time allowed; what did is kept for the next try."""

    exit_code = EXIT_TIMEOUT


class VerificationError(LoadFileError):
    """The bytes do not match their hash, and were not returned."""

    exit_code = EXIT_CORRUPT


class SealError(VerificationError):
    """An encrypted file is damaged, was changed by somebody, or is encrypted for somebody else."""


class CorruptObjectError(VerificationError):
    """A file in your store no longer has the bytes its name promises; it was put in quarantine."""


class UriInconsistentError(VerificationError):
    """The URI's two hashes name different contents: whoever made it made a mistake, or lied."""


class RootMismatchError(VerificationError):
    """The URI's root is not that of the bytes this node itself has hashed under that name."""


class HashCollisionError(VerificationError):
    """Two different contents have one SHA-1: someone forged one. The stored one was kept."""


# --- storing --------------------------------------------------------------------------


class StoreError(KacheryError):
    """The file could not be stored. Nothing half-written is left under a content name."""

    exit_code = EXIT_STORAGE


class StoreFilesError(StoreError):
    """Some of the files of one call could not be stored: `failed` says which, and why each.

    `uris` are those of all files of the call, in their order; None for one that was not stored.
    """

    def __init__(
        self,
        message: str,
        *,
        hint: str | None = None,
        failed: Mapping[str, KacheryError] | None = None,
        uris: Sequence[str | None] = (),
    ) -> None:
        super().__init__(message, hint=hint)
        self.failed = dict(failed or {})
        self.uris = list(uris)
        self.exit_code = next((error.exit_code for error in self.failed.values()), EXIT_STORAGE)


class SourceFileError(StoreError):
    """The file to be stored is missing, is a directory, or may not be read."""

    exit_code = EXIT_USAGE


class SourceChangedError(StoreError):
    """The file was being written to while it was stored: store it again when it is finished."""


class StorageFullError(StoreError):
    """The disk of the store is full, or would go below the reserve that is kept free."""


class StorePermissionError(StoreError):
    """The store directory may not be written by you."""

    exit_code = EXIT_REFUSED


class StorageFailedError(StoreError):
    """The disk failed while writing (an I/O error): the file was not stored."""


class PartialInUseError(StoreError):
    """Another process of this node is already downloading the same content into the same store."""

    exit_code = EXIT_IN_USE


class ResolutionError(KacheryError):
    """The destination exists, or its directory does not."""

    exit_code = EXIT_USAGE


# --- cloud buckets ------------------------------------------------------------------------


class BucketError(KacheryError):
    """A cloud bucket or mirror did not do what was asked; work on this computer goes on."""


class BucketUrlError(BucketError, ValueError):
    """The address of a bucket is not one that kachery_p2p can read."""

    exit_code = EXIT_USAGE


class BucketSupportMissingError(BucketError):
    """Cloud buckets need a package that is not installed here; the hint says how to get it."""

    exit_code = EXIT_CONFIG


class BucketUnreachableError(BucketError):
    """The server of the bucket does not answer: it is down, or no route leads there."""

    exit_code = EXIT_TIMEOUT


class BucketBusyError(BucketError):
    """The server of the bucket asks to come back later (429, 503)."""

    exit_code = EXIT_TIMEOUT
    # After how many seconds, if it said so.
    retry_after_s = 0.0


class BucketRefusedError(BucketError):
    """The bucket refused: the credentials are missing, wrong, expired, or allow too little."""

    exit_code = EXIT_REFUSED


class BucketMissingError(BucketError):
    """There is no bucket of that name at that address, or its directory is not there."""

    exit_code = EXIT_CONFIG


class BucketAnswerError(BucketError):
    """What came from the bucket is not what was asked for: cut off, too long, or another page."""

    exit_code = EXIT_CORRUPT


class BucketReadOnlyError(BucketError):
    """Nothing can be put into this bucket from here: it is a mirror on the web, or is set so."""

    exit_code = EXIT_REFUSED


class BucketProviderError(BucketError):
    """No member that can use the bucket is there, or would: this node has no credentials itself."""

    exit_code = EXIT_NOT_FOUND


class BucketTakenError(BucketError):
    """Another channel keeps its files under this prefix of the bucket: choose another prefix."""

    exit_code = EXIT_IN_USE


class BucketEncryptionError(BucketError):
    """The files under this prefix are encrypted, and this node is told they are not; or so."""

    exit_code = EXIT_CONFIG


class BucketKeysError(BucketError):
    """This node has no keys of an encrypted bucket, or older ones than it needs to put things."""

    exit_code = EXIT_REFUSED


# --- keys, configuration, channels ------------------------------------------------------


class ConfigError(KacheryError):
    """A setting, option or configuration file is wrong; the message names it."""

    exit_code = EXIT_CONFIG


class StateVersionError(ConfigError):
    """State on disk was written by a newer kachery_p2p: upgrade this one."""


class StateCorruptError(ConfigError):
    """A state file is damaged; the message names it and what can be rebuilt."""


class KeyFileError(ConfigError):
    """A key file is missing, damaged, or readable by other users of this computer."""


class PassphraseError(ConfigError):
    """The passphrase is not the one that the backup was made with, or is too short."""


class AccessGroupError(KacheryError):
    """Something about an access group is not right; the message says what."""

    exit_code = EXIT_CONFIG


class NotInAccessGroupError(AccessGroupError, LoadFileError):
    """What you want to read is encrypted for an access group whose key this node does not hold."""

    exit_code = EXIT_REFUSED


class GroupInviteError(AccessGroupError):
    """The invitation to an access group is damaged, forged, old, or not for this node."""

    exit_code = EXIT_REFUSED


class ChannelError(KacheryError):
    """Something about a channel is not right; the message says what."""

    exit_code = EXIT_CONFIG


class UnknownChannelError(ChannelError):
    """This node has not joined a channel of that name."""


class UnknownZoneError(ChannelError):
    """A program of an older package stores into a zone, or on a server, that means nothing here."""


class ChannelSecretMissingError(ChannelError):
    """The channel is entered with a shared secret, and none was given."""


class WeakSecretError(ChannelError):
    """The secret is not one that kachery_p2p generated, so it may be guessable, or was mistyped."""


class SecretMismatchError(ChannelError):
    """The secret given is not the one that this node joined the channel with."""


class UnsafeFileError(ChannelError):
    """A file that decides who may enter could be changed by other users of this computer."""


class NotAllowedError(ChannelError):
    """Only an admin of the channel, or only its keeper, may do this."""

    exit_code = EXIT_REFUSED


class NodeRemovedError(ChannelError):
    """This node was removed from the channel: an admin would have to invite it again."""

    exit_code = EXIT_REFUSED


class InviteError(ChannelError):
    """The invite cannot be used: it was mistyped, cut off, or made for another node."""


class InviteExpiredError(InviteError):
    """The invite has expired: ask for a new one."""


class InviteUsedError(InviteError):
    """Another node has entered with this invite: ask for one of your own."""


class InviteRefusedError(InviteError):
    """The node that was to let us in does not know the invite, or is not allowed to invite."""

    exit_code = EXIT_REFUSED


class ChannelClosedError(ChannelError):
    """Nobody new may enter: the channel is past the end its keeper set, or is full."""

    exit_code = EXIT_REFUSED


class KeeperAsleepError(ChannelError):
    """The channel's keeper, which alone can change who is a member, cannot be reached just now."""

    exit_code = EXIT_TIMEOUT


class KeeperLeavesError(ChannelError):
    """This node holds the channel's key: if it left, nobody could be let in or removed any more."""


class SuccessionError(ChannelError):
    """Another channel says that it continues this one, and nothing shows that it may."""

    exit_code = EXIT_REFUSED


# --- feeds and the history of channels ---------------------------------------------------


class LogError(KacheryError):
    """Something about a feed, or about a channel's history, is not right; the message says what."""


class LogFormatError(LogError):
    """The bytes are not an entry, a head or a proof of a feed: they are damaged or were made up."""

    exit_code = EXIT_CORRUPT


class HeadError(LogError):
    """The word that a feed ends here is not signed by the feed's owner, or is about another."""

    exit_code = EXIT_CORRUPT


class ProofError(LogError):
    """What another node said of a feed does not follow from what the owner signed."""

    exit_code = EXIT_CORRUPT


class LogForkedError(LogError):
    """The owner's key has signed two histories of one feed. What is common to both stays readable.

    Either the owner cheats, or runs two copies of one key: ask them. `evidence`, when there is
    some, is a fork proof: it convinces anybody who knows the feed's id.
    """

    exit_code = EXIT_CORRUPT

    def __init__(self, message: str, *, hint: str | None = None, evidence: bytes = b"") -> None:
        super().__init__(message, hint=hint)
        self.evidence = evidence


class ChannelForkedError(LogForkedError):
    """The channel's key has signed two histories of who is a member.

    Those stay members whom both histories name. The key was copied, or the keeper lies: ask them
    which is right, and let the channel go on under a new key.
    """


class LogBehindError(LogError):
    """A longer copy of this feed exists, signed with its key: nothing may be appended to this one
    before it has caught up.
    """

    exit_code = EXIT_IN_USE


class LogStoppedError(LogError):
    """Appending to this feed stopped when its disk failed: mend the disk, restart the node."""

    exit_code = EXIT_STORAGE


class FeedForkedError(LogForkedError):
    """The feed's key has signed two histories: what is common to both stays readable.

    The key was copied, or its owner cheats: ask them which is right, and for the feed that goes on.
    """


class FeedBehindError(LogBehindError):
    """A longer copy of this feed exists: nothing may be appended before this one has caught up."""


class FeedStoppedError(LogStoppedError):
    """Appending to this feed stopped when its disk failed: mend the disk, restart the node."""


class FeedRestoredError(LogError):
    """This copy of the feed was restored from a backup, or its disk was cloned.

    If another copy went on, appending here would split the feed for ever. So nothing is appended
    until another node confirms where the feed ends, or you say that this is the only copy.
    """

    exit_code = EXIT_IN_USE


class FeedInUseError(LogError):
    """Another process of this computer has the feed open: a feed is written by one at a time."""

    exit_code = EXIT_IN_USE


class FeedBusyError(LogError):
    """Other programs held the feed for so long that these messages did not get their turn.

    Nothing was appended: it is safe to append them again.
    """

    exit_code = EXIT_IN_USE


class UnknownFeedError(LogError):
    """This node has no feed of that name or id, or it was deleted."""

    exit_code = EXIT_NOT_FOUND


class FeedReadOnlyError(LogError):
    """The feed is somebody else's: only the node with its key appends; others submit messages."""

    exit_code = EXIT_REFUSED


class WriteRefusedError(LogError):
    """The feed's owner has not granted this node to write to it, or not in a common channel."""

    exit_code = EXIT_REFUSED


class FeedEndedError(LogError):
    """The feed's owner has ended it for good; the hint names the feed that goes on, if one does."""

    exit_code = EXIT_REFUSED


class MessageTooLargeError(LogError, ValueError):
    """A message, or all those of one call, is larger than a feed takes: store it as a file, and
    append its URI.
    """

    exit_code = EXIT_USAGE


class MessageFormatError(LogError, ValueError):
    """The message is not JSON text, or was written by a newer kachery_p2p."""

    exit_code = EXIT_CORRUPT


class FeedUnavailableError(LogError):
    """No connected node has the messages: the feed's owner is offline, and nobody mirrors it."""

    exit_code = EXIT_NOT_FOUND


class EntryDamagedError(LogError):
    """Messages on this disk are not those that the feed's owner signed; `positions` says which.

    They are fetched anew as soon as another node has them.
    """

    exit_code = EXIT_CORRUPT

    def __init__(
        self, message: str, *, hint: str | None = None, positions: Sequence[int] = ()
    ) -> None:
        super().__init__(message, hint=hint)
        self.positions = tuple(positions)


# --- the older packages --------------------------------------------------------------------


class ServiceGoneError(KacheryError):
    """An older package did this with a server of its authors; the hint says what to use instead."""


class WebLoadError(LoadFileError):
    """The page on the web, or the file on GitHub or Zenodo, could not be loaded."""


# --- the daemon ----------------------------------------------------------------------------


class DaemonError(KacheryError):
    """The local daemon could not do what was asked."""


class DaemonDownError(DaemonError):
    """No daemon is running for this configuration: start one with `kachery-p2p start`."""

    exit_code = EXIT_DAEMON_DOWN


class DaemonLeftError(DaemonDownError):
    """The daemon went away during the call: nobody knows whether it did what was asked."""


class DaemonAuthError(DaemonError):
    """The daemon refused: it belongs to another user, or the token is missing or wrong."""

    exit_code = EXIT_REFUSED


class DaemonTimeoutError(DaemonError):
    """The daemon did not answer in time."""

    exit_code = EXIT_TIMEOUT


class DaemonBusyError(DaemonTimeoutError):
    """The daemon did not even take the connection: nothing was asked of it."""


class DaemonRunningError(DaemonError):
    """A daemon is already running on this configuration directory."""

    exit_code = EXIT_IN_USE


class AddressInUseError(DaemonError):
    """Another program already listens on the address."""

    exit_code = EXIT_IN_USE


class DaemonProtocolError(DaemonError):
    """The daemon and this program do not speak the same version, or one sent nonsense."""


# --- other nodes ---------------------------------------------------------------------------


class PeerError(KacheryError):
    """Another node broke the protocol, failed, or went away. Never the fault of your data."""


class ProtocolError(PeerError):
    """A peer sent bytes that PROTOCOL.md does not allow; the connection was ended."""


class ProtocolVersionError(PeerError):
    """A peer speaks another version of the protocol; the message says which side to upgrade."""


class PeerTimeoutError(PeerError):
    """A peer did not answer within its deadline."""

    exit_code = EXIT_TIMEOUT


class PeerGoneError(PeerError):
    """The connection to a peer ended before it had answered."""


class PeerRefusedError(PeerError):
    """A peer answered that it does not have the content or may not give it to us: it does not say
    which.
    """

    exit_code = EXIT_REFUSED


class PeerBusyError(PeerError):
    """A peer cannot answer just now (it is hashing the content for the first time): ask again."""


class NotYetError(PeerError):
    """A peer that is loading the content itself does not have that part of it yet."""


class PeerUnreachableError(PeerError):
    """No connection could be made to a peer at any of its addresses."""

    exit_code = EXIT_NOT_FOUND


class NotAMemberError(PeerError):
    """The node on the other side could not prove that it belongs to a channel we are in."""

    exit_code = EXIT_REFUSED


def by_name(name: str) -> type[KacheryError]:
    """The error class called `name`, or `KacheryError`: errors travel between daemon and client by
    name.
    """
    found = globals().get(name)
    if isinstance(found, type) and issubclass(found, KacheryError):
        return found
    return KacheryError


def sole_error(group: BaseExceptionGroup[BaseException]) -> KacheryError | None:
    """The first error of a group of nothing but ours: tasks that fail together fail for one reason.

    None if anything else is among them, which must not be hidden.
    """
    ours, others = group.split(KacheryError)
    if ours is None or others is not None:
        return None
    found: BaseException = ours
    while isinstance(found, BaseExceptionGroup):
        found = found.exceptions[0]
    assert isinstance(found, KacheryError)
    return found
