"""Every bound in one place, with its reason. Units and bound come last in each name."""

# --- content ------------------------------------------------------------------------------

# One chunk is verified, and may be wasted, as a whole: 1 MiB is one disk write, 1/16,384th of a
# page table.
CHUNK_BYTES = 1 << 20
# A page of 1,024 chunk hashes (32 KiB) covers 1 GiB: small enough to fetch for a single byte of a
# file.
PAGE_CHUNKS_MAX = 1024
# 16,384 pages cover 16 TiB, and keep a root object below 525 KiB, so that it fits a control frame.
ROOT_PAGES_MAX = 16_384
# Longest URI we parse. Labels are at most 255 bytes; the rest are hashes.
URI_CHARS_MAX = 2_048
# File names are limited to 255 bytes on Linux file systems, and a label becomes one with `load
# --dest DIR`.
LABEL_BYTES_MAX = 255
# Values are built in memory: a JSON text, pickle or text above this is refused before it is parsed.
VALUE_BYTES_MAX = 1 << 30
# Python's own recursion limit is 1,000; depth this deep is never data.
VALUE_DEPTH_MAX = 200
# Parts of a pickled value, shared ones counted each time: bounds 40-byte pickles that unfold into
# 2^40 parts, and the 100 bytes of memory that one byte of pickle can cost. More belongs in arrays.
VALUE_ITEMS_MAX = 1 << 24
# A chunk list of an older kachery names up to 5 TB in chunks of 20 MB, at 100 bytes a chunk.
LISTED_CHUNKS_MAX = 1 << 18
CHUNK_LIST_BYTES_MAX = 32 << 20
# Files and directories in one directory snapshot, at some 100 bytes each. Whoever has more stores
# the directories inside.
DIRECTORY_ENTRIES_MAX = 1 << 20
DIRECTORY_BYTES_MAX = 128 << 20
# Directories below each other: a path of 64 names may already have more than Linux's 4,096 bytes.
DIRECTORY_DEPTH_MAX = 64

# --- store ----------------------------------------------------------------------------------

# Kept free on the disk of the store, so that a full store does not take the workstation down with
# it.
DISK_RESERVE_BYTES = 1 << 30
# Stores that a client process keeps open: programs change KACHERY_STORAGE_DIR between calls.
KEPT_STORES_MAX = 4
# Copy buffers in flight between the copying and the hashing thread.
COPY_BUFFERS_MAX = 8
# A temporary file without a living owner is swept after this long.
TEMP_AGE_S_MAX = 3_600.0
# A download that no process works on, and nobody went on with for a month, is given up.
PARTIAL_AGE_S_MAX = 30 * 86_400.0
# From this many objects on, two syncs of the whole file system cost less than three of each object.
GROUP_OBJECTS_MIN = 64
# What a kill can cost, and what is remembered of a group until it is durable (1 KB an object).
GROUP_OBJECTS_MAX = 8_192
GROUP_BYTES_MAX = 4 << 30
# The JSON of an older kachery's link is a path and some numbers.
OLD_LINK_BYTES_MAX = 1 << 16
# SQLite waits this long for another process's write before it says "locked".
INDEX_BUSY_S_MAX = 30.0

# --- client ---------------------------------------------------------------------------------------

# A mutable is a note: what is bigger goes to the store, and its URI into the mutable.
MUTABLE_KEY_BYTES_MAX = 1 << 16
MUTABLE_VALUE_BYTES_MAX = 1 << 20
# 1 MiB blocks that an opened remote file keeps: a format with a table of contents goes back to it.
OPENED_BLOCKS_MAX = 8
# What one request for bytes of an opened remote file brings at most.
OPENED_READ_BYTES_MAX = 16 << 20

# --- wire ---------------------------------------------------------------------------------------

# A control frame carries at most one root object or 1,024-hash page, or 1 MiB of answers, plus
# its envelope.
FRAME_BYTES_MAX = (1 << 20) + (1 << 16)
# msgpack nesting that our messages need is 4.
MESSAGE_DEPTH_MAX = 8
# Longest list or map inside one message.
MESSAGE_ITEMS_MAX = 4_096
# Lists and maps together: 256 members with 16 addresses each need 5,400. Each costs us up to 64
# bytes.
MESSAGE_ITEMS_TOTAL_MAX = 16_384
# Longest text inside one message: a path or an error sentence.
TEXT_CHARS_MAX = 4_096
# A name that a node or a program gives itself, and the reason that goes with a failure or a
# goodbye.
LABEL_CHARS_MAX = 64
REASON_CHARS_MAX = 256
# A multiaddr with a long host name and a peer id is 150; 256 members x 16 of these still fit one
# frame.
ADDRESS_CHARS_MAX = 256
# Proofs are padded to a multiple of this, so that their number does not tell how many channels a
# node is in.
PROOFS_GROUP = 16

# --- network --------------------------------------------------------------------------------------

# A node that has not proven membership within this time is disconnected: an honest one needs 50 ms.
HELLO_S_MAX = 5.0
# Unproven connections in all, and from one IP: each costs 33 to 63 KB here (measured) and a
# handshake.
UNPROVEN_CONNECTIONS_MAX = 64
UNPROVEN_CONNECTIONS_PER_IP_MAX = 16
# yamux lets a peer open 256 streams and the 257th waits for ever (measured); ours need 1 +
# transfers.
STREAMS_PER_PEER_MAX = 64
# yamux does not enforce its receive window (300 MiB buffered, measured), so the adapter does.
STREAM_BUFFER_BYTES_MAX = 16 << 20
CONNECTION_BUFFER_BYTES_MAX = 32 << 20
# The same two for a peer that has not proven membership: its hello is a few KB, but the protocol
# lets it fill 256 KiB on a stream, and an admitted peer may already talk before its own hello was
# checked.
UNPROVEN_STREAMS_MAX = 8
UNPROVEN_BUFFER_BYTES_MAX = 512 << 10
# A window that is emptied within this time doubles: 256 KiB in flight fill 2.5 MB/s at 100 ms.
WINDOW_GROWTH_S = 1.0
# Frames of all streams of a connection that wait for the socket; enough to keep it busy while we
# encrypt.
OUTBOX_BYTES_MAX = 256 << 10
# Answers (resets, pongs) that a peer may leave unread before it is cut off: 12 bytes each.
OUTBOX_FRAMES_MAX = 4_096
# Both sides may dial at once, and a restarted peer is back before its old connection is known to
# be dead.
CONNECTIONS_PER_PEER_MAX = 2
# Goodbye to a peer that does not read is cut short after this.
LEAVE_S_MAX = 1.0
# The kernel drops a connection whose other side has vanished for this long; our keep-alive is
# faster.
TCP_SILENCE_S_MAX = 30
# A protocol negotiation (multistream) carries names of some 25 bytes.
NEGOTIATION_BYTES_MAX = 1 << 10
# Channel members connected at once; also bounds the member list a peer may send.
PEERS_MAX = 256
# Addresses kept and told per node: an honest one has a handful of interfaces.
ADDRESSES_PER_NODE_MAX = 16
# A dial fails after this: libp2p itself waits 250 ms at least (measured).
DIAL_S_MAX = 10.0
# A request to a peer is answered within this, or the peer is not there.
REQUEST_S_MAX = 10.0
# `have?` is one index look-up: who does not answer in this time is not worth waiting for.
HAVE_S_MAX = 5.0
# Silence on a control stream that makes us ask whether the peer is alive, and how long it has to
# answer.
KEEPALIVE_IDLE_S = 15.0
KEEPALIVE_S_MAX = 5.0
# Requests one peer may have waiting at our side.
PENDING_REQUESTS_MAX = 128
# Answers to one peer that wait to be sent; behind them its next requests wait too.
OUTBOX_ANSWERS_MAX = 16
# Members are asked whom they know this often: one of them each time, in turn.
MEMBERS_REFRESH_S = 30.0
# Dials under way at once: a cold start in a channel of 256 is done in a few seconds.
DIALS_MAX = 16
# All addresses of one node together: a list of dead ones must not hold up the dials behind it.
DIAL_NODE_S_MAX = 30.0
# Redial backoff: doubles from the first to the last.
REDIAL_S_MIN = 1.0
REDIAL_S_MAX = 60.0

# --- transfer -------------------------------------------------------------------------------------

# One range request over a libp2p stream: a reader that pauses 5 s is reset (measured), so ranges
# are small.
RANGE_CHUNKS_MAX = 4
# Chunks asked for ahead of the first missing one: SHA-1 follows in order from the page cache.
WINDOW_CHUNKS_MAX = 64
# Chunks asked of one source and not received yet: two ranges, so that the pipe never runs dry.
OUTSTANDING_CHUNKS_MAX = 2 * RANGE_CHUNKS_MAX
# After the first positive answer to `have?`, how long the others may still answer: one slow round
# trip.
HAVE_GRACE_S = 0.25
# A fetch whose readers have theirs stays open this long for the next range, its partial verified.
FETCH_LINGER_S = 10.0
# With every source gone, how long a started load waits for one to come back before it gives up.
SOURCE_RETURN_S_MAX = 10.0
# A holder that has never hashed an object asks us to come again: hashing runs at 1.3 GiB/s
# (measured).
HASH_WAIT_S_MAX = 3.0
# Objects hashed for the first time at once: they come from one disk, and leave threads to others.
HASHED_AT_ONCE_MAX = 2
# A source that sends less than this for this long is stalled: it is left for another one. Whoever
# takes less than a piece for as long is not served. The slowest line of use carries 13 KB/s.
STALL_S_MAX = 5.0
STALL_BYTES_MIN = 64 << 10
# A source that failed is left alone this long: one which fails at once is not asked in a loop.
SOURCE_REST_S = 0.5
# Who vouched for wrong bytes of what, remembered in all: 100 bytes each.
LIARS_MAX = 4_096
# Full-size attempts on roots that only peers claim, before we give up.
CLAIM_ATTEMPTS_MAX = 3
# A data stream on which nothing is asked for this long is closed: its transfer is over or paused.
STREAM_IDLE_S_MAX = 60.0
# Data streams one peer may keep open at our side.
SERVED_STREAMS_PER_PEER_MAX = 16

# --- doors ----------------------------------------------------------------------------------------

# Clients connected at once to one door: each costs a task and a descriptor.
DOOR_CONNECTIONS_MAX = 256
# Clients that wait for a place at the Unix door: a cluster job starts hundreds of them at once.
DOOR_WAITING_MAX = 768
# A client's request body: operations are small, files travel as descriptors or by PUT.
DOOR_REQUEST_BYTES_MAX = 1 << 20
# A started request must be complete within this.
DOOR_REQUEST_S_MAX = 10.0
# An idle kept-alive connection is closed after this.
DOOR_IDLE_S_MAX = 600.0
# While it works on a long call, the daemon says at least this often that it is alive.
DOOR_HEARTBEAT_S = 5.0
# Progress is told no more often than this: a person reads ten updates a second at most.
DOOR_PROGRESS_S = 0.1
# Bodies and blobs move through a door in pieces of this size, so that a client costs no more
# memory.
DOOR_PIECE_BYTES = 1 << 18
# Default deadline of a client's call that moves no content.
CALL_S_MAX = 30.0
# A load waits this long for the first source before it says that nobody has it.
FIND_S_MAX = 10.0
# Graceful stop: what is not finished by then is cut; verified chunks are kept.
STOP_S_MAX = 5.0

# A part of the node that fails is started again after 1, 2, 4 ... 30 s, this often; then the node
# stops.
RESTART_S_MIN = 0.5
RESTART_S_MAX = 30.0
RESTARTS_MAX = 5
# shares.log is looked at this often: it is written only by clients that could not reach the daemon.
SHARES_LOG_S = 5.0

# --- channels -------------------------------------------------------------------------------------

CHANNELS_MAX = 64
CHANNEL_NAME_CHARS_MAX = 64
# A generated secret carries this many random bits; 128 is the floor below which guessing is
# thinkable.
SECRET_BITS = 160
# Bootstrap addresses of one channel: tried one after the other at start.
BOOTSTRAP_ADDRESSES_MAX = 64
# A channel file is a page of TOML.
CHANNEL_FILE_BYTES_MAX = 1 << 16

# --- log ------------------------------------------------------------------------------------------

# Far beyond any log; with it every proof is within the next bound and every number in a database's.
LOG_ENTRIES_MAX = 1 << 62
# The longest proof there can be: one hash a level, and one more in a proof of consistency.
PROOF_HASHES_MAX = 63
# An entry travels in one control frame. What is bigger goes to the store, and its URI into the log.
ENTRY_PAYLOAD_BYTES_MAX = 1 << 20
# Times are milliseconds since 1970; this keeps them within what a database can hold.
LOG_TIME_MS_MAX = (1 << 63) - 1

# --- keys -----------------------------------------------------------------------------------------

# Our key files have a few hundred bytes; what is far larger was not written by us.
KEY_FILE_BYTES_MAX = 4_096
# Key files in one backup: of a node, its channels and its feeds.
KEY_FILES_MAX = 4_096
# The text of such a backup: as many key files of ours need 1.5 MiB.
BACKUP_CHARS_MAX = 4 << 20
# What a backup may make scrypt use (128 bytes x 2^cost x 8): a backup can come from anybody, and a
# cost of 40 would ask for a petabyte. Ours use 17: 128 MiB and 0.4 s (measured).
BACKUP_COST_MIN = 10
BACKUP_COST_MAX = 18
# A passphrase is typed by a person; whoever finds the backup may try millions of shorter ones.
PASSPHRASE_CHARS_MIN = 8
PASSPHRASE_CHARS_MAX = 1_024
