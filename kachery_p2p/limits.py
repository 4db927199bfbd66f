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
# Files and directories in one directory snapshot, at 90 bytes each and their name, 170 with a root.
# Whoever has more stores the directories inside.
DIRECTORY_ENTRIES_MAX = 1 << 20
DIRECTORY_BYTES_MAX = 256 << 20
# Directories below each other: a path of 64 names may already have more than Linux's 4,096 bytes.
DIRECTORY_DEPTH_MAX = 64
# Snapshots that a client process keeps decoded, for loading file by file, and their size: 8 of them
# take 50 MB at most.
KEPT_DIRECTORIES_MAX = 8
KEPT_DIRECTORY_BYTES_MAX = 1 << 20

# --- store ----------------------------------------------------------------------------------

# Kept free on the disk of the store, so that a full store does not take the workstation down with
# it.
DISK_RESERVE_BYTES = 1 << 30
# Stores that a client process keeps open: programs change KACHERY_STORAGE_DIR between calls.
KEPT_STORES_MAX = 4
# Chunks in memory between the thread that copies and the one that hashes: while 8 MiB are copied
# in one call, three of these are hashed. However many files are hashed at once, all but two a file
# are together no more than the spare ones.
HASH_BUFFERS_MAX = 8
HASH_BUFFERS_SPARE_MAX = 48
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
# The first kachery noted a file once more at each hashing, 200 bytes each; the last ones count.
OLD_HINTS_BYTES_MAX = 4 << 20
OLD_HINTS_MAX = 16
# SQLite waits this long for another process's write before it says "locked".
INDEX_BUSY_S_MAX = 30.0
# Small objects of which the index is told in one commit: more would save under 2 us each.
INDEX_WAITING_MAX = 256
# Who stores one value a second tells the index of the one before, so that little is lost by a kill.
INDEX_WAIT_S_MAX = 1.0
# Changes of grants that nobody has looked at yet (10 MB): more of them are worth a look at all.
GRANT_CHANGES_MAX = 1 << 16

# --- client ---------------------------------------------------------------------------------------

# A mutable is a note: what is bigger goes to the store, and its URI into the mutable.
MUTABLE_KEY_BYTES_MAX = 1 << 16
MUTABLE_VALUE_BYTES_MAX = 1 << 20
# 1 MiB blocks that an opened remote file keeps: a format with a table of contents goes back to it.
OPENED_BLOCKS_MAX = 8
# A line of URIs on stdin: a directory's, with the longest path that Linux has, in escapes.
STDIN_LINE_BYTES_MAX = 1 << 14
# What one request for bytes of an opened remote file brings at most.
OPENED_READ_BYTES_MAX = 16 << 20
# How far ahead of a sequential reader of such a file is fetched, and never further than it has
# read: at 100 ms of round trip this keeps 320 MiB/s under way. Of what a daemon sends over HTTP,
# which is kept in memory, less.
OPENED_AHEAD_BLOCKS_MAX = 32
OPENED_AHEAD_SENT_BLOCKS_MAX = 8
# Blocks in one request ahead: who reads waits for no more than these to get the first of them, and
# a request costs as much time as bringing four (measured).
OPENED_AHEAD_REQUEST_BLOCKS = 8
# Small reads of such a file are served from so many bytes at a time, which is never across blocks.
OPENED_BUFFER_BYTES = 64 << 10
# Requests ahead at once: the next is there when one ends, so that its sources need not begin anew.
OPENED_AHEAD_THREADS_MAX = 2
# A thread that reads ahead ends after so long without work.
OPENED_AHEAD_IDLE_S = 1.0

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
# Messages that come so soon after another leave together with those that follow: to encrypt and
# send each by itself takes 30 us.
FRAMES_TOGETHER_S = 0.0002
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
# Dials under way at once, of introducers, and of nodes that are more than hearsay.
DIALS_MAX = 16
# And of nodes that others only told of, which may be nobody: no member waits behind these. As many,
# because a cold start in a channel of 256 meets most members so; it is done in a few seconds.
HEARSAY_DIALS_MAX = 16
# How many of these may be begun at once, which is that cold start, and in each second after it.
# Whoever invents ever new nodes chooses whom we knock at: at 4 x 16 addresses a second at most.
HEARSAY_DIALS_AT_ONCE = PEERS_MAX
HEARSAY_DIALS_PER_S = 4.0
# A load that finds nobody waits this long for such nodes, and for a member to tell whom it knows:
# honest ones are met, and have told, by then. Each node is awaited once: only a member that invents
# ever new ones all day can make a load wait longer, and then as long as it may.
HEARSAY_AWAITED_S = 5.0
# A member that comes again is awaited again after this: one that never tells, and comes back all
# day, costs loads a twelfth of their time, and not all of it.
GREETING_AGAIN_S = 60.0
# Nodes of which that is remembered: twice as many as can be connected.
GREETINGS_MAX = 2 * PEERS_MAX
# All addresses of one node together: a list of dead ones must not hold up the dials behind it.
DIAL_NODE_S_MAX = 30.0
# Redial backoff: doubles from the first to the last.
REDIAL_S_MIN = 1.0
REDIAL_S_MAX = 60.0

# --- announcements --------------------------------------------------------------------------------

# What one member may announce, in all channels together: 10 to 16 MB here (measured). Who has more
# is found by asking.
ANNOUNCED_PER_PEER_MAX = 1_000_000
# What all members together may: 40 to 64 MB. When it is full, whoever announced most gives way.
ANNOUNCED_MAX = 4_000_000
# Prefixes added, and dropped, in one message: 64 KiB keep the stream free for `have?`, and take 10
# ms to note (measured), during which nobody else is served.
ANNOUNCE_PREFIXES_MAX = 8_192
# Changes are collected this long: a program that stores a thousand texts makes a few messages.
ANNOUNCE_BATCH_S = 0.5
# What a peer may announce: 65,536 prefixes at once, then 16,384 a second, which cost us 3 % of a
# core; a million arrive in a minute.
ANNOUNCE_BURST_BYTES = 512 << 10
ANNOUNCE_BYTES_PER_S = 128 << 10
# Each of 64 channels begins with a message of its own, and may change once in each batch time.
ANNOUNCE_BURST_MESSAGES = 128
ANNOUNCE_MESSAGES_PER_S = 8
# All that this node announces to all its peers: 8 Mbit/s, which leaves room on a lab's line.
ANNOUNCE_SENT_BYTES_PER_S = 1 << 20
# Nodes whose use of the allowance is remembered after they left, so that coming back is no new one.
ANNOUNCE_ALLOWANCES_MAX = 2 * PEERS_MAX
# A flooding peer leaves one line in the log in this time.
ANNOUNCE_LOG_S = 60.0
# An announcement that was not taken is made again after this, doubling from the first to the last.
ANNOUNCE_RETRY_S_MIN = 1.0
ANNOUNCE_RETRY_S_MAX = 30.0
# Latest changes of ours that are remembered (8 bytes each): a peer further behind is told all anew.
ANNOUNCE_CHANGES_MAX = 1 << 16
# Grants read in one go: a look-up in the main thread waits 1 ms for that at most.
ANNOUNCE_GRANTS_READ_MAX = 1_024
# In a channel of more members than the first, prefixes are told to index members only, until there
# are no more than the second: between them nothing changes, so that one member who comes and goes
# does not make everybody announce everything again.
INDEX_ABOVE_MEMBERS = 64
INDEX_UNTIL_MEMBERS = 48
# Index members of each prefix: with two of three away or lying, the third still knows.
INDEX_KEEPERS = 3
# Prefixes are dealt out to index members by their first 10 bits: with 256 members each has 12 of
# these slots.
INDEX_SLOT_BITS = 10
# Holders that an index member names, and announcers that are asked at once: more than a transfer
# uses, so that some of them may be away.
INDEX_NAMES_MAX = 16
ANNOUNCED_ASKED_MAX = 16
# Who announced a content is asked before all others for this long: one slow round trip, as for
# HAVE_GRACE_S. It is what a member who announces falsely can cost a load. Asking the index first
# has another such time.
ANNOUNCED_GRACE_S = 0.25

# --- bulk plane -----------------------------------------------------------------------------------

# One chunk and what is said of it: the same bound as for a control frame, and for the same reason.
BULK_PAYLOAD_BYTES_MAX = CHUNK_BYTES + (1 << 16)
# What one key may carry, after which a new ticket is due. AES-GCM with counted nonces is safe far
# beyond (2^32 frames, NIST SP 800-38D); an hour bounds what a key that leaks later gives away.
BULK_KEY_FRAMES_MAX = 1 << 20
BULK_KEY_BYTES_MAX = 1 << 40
BULK_KEY_S_MAX = 3_600.0
# From the answer that carries a ticket to its use: two dials of BULK_DIAL_S_MAX and a round trip.
BULK_TICKET_S_MAX = 10.0
# A node needs one at a time; after a restart its last ones may still lie there.
BULK_TICKETS_PER_PEER_MAX = 4
# Tickets in all: 256 members that all ask twice within ten seconds. Each costs 1 KB.
BULK_TICKETS_MAX = 512
# All addresses of a node together: it is connected already, so it answers at once or not at all,
# and the ticket must still be good for the dial back.
BULK_DIAL_S_MAX = 3.0
# The next address is dialled this much later (RFC 8305 has 0.25): 16 of them fit into that time.
BULK_DIAL_STAGGER_S = 0.15
# Payload of a hello. With magic, ticket, header and tag it is 116 bytes: what a socket that has
# proved nothing can make us hold is below 128.
BULK_HELLO_BYTES_MAX = 64
# Connections on which one peer asks, and as many on which it is asked: one that is used, and one
# that is about to end.
BULK_CONNECTIONS_PER_PEER_MAX = 2
# Connections in all: each has a thread of its own; idle ones end after a minute.
BULK_CONNECTIONS_MAX = 128
# Requests of one connection that are not answered in full. As their frames are small they always
# fit the kernel's buffers, so who asks never waits for who is asked.
BULK_REQUESTS_MAX = 16
# Chunks in one request: the window that downloads run ahead of their hash.
BULK_REQUEST_CHUNKS_MAX = 64
# A request is 96 bytes; one for 2,048 small blobs would be below this.
BULK_REQUEST_BYTES_MAX = 1 << 16
# Finding the content that a request is for: below the time after which the asker calls it a stall.
BULK_SERVE_S_MAX = 4.0
# Buffers of a chunk that a connection may hold, being received, verified, written or hashed.
BULK_BUFFERS_PER_CONNECTION_MAX = 8
# The same for all connections of a node, which is to need at most 150 MB; and those for what it
# serves, of which every peer that reads slowly keeps one busy.
BULK_BUFFERS_MAX = 32
BULK_SERVED_BUFFERS_MAX = 32
# Free buffers kept for the next chunk: a transfer goes through eight and two again and again.
BULK_BUFFERS_KEPT_MAX = 8
BULK_SERVED_BUFFERS_KEPT_MAX = 4
# Waiting for a buffer is waiting for our own disk; after this the peer has given us up anyway.
BULK_BUFFER_S_MAX = 10.0

# --- transfer -------------------------------------------------------------------------------------

# One range request over a libp2p stream: a reader that pauses 5 s is reset (measured), so ranges
# are small.
RANGE_CHUNKS_MAX = 4
# Chunks asked for ahead of the first missing one: SHA-1 follows in order from the page cache.
WINDOW_CHUNKS_MAX = 64
# Chunks asked of one source and not received yet: two ranges, so that the pipe never runs dry.
OUTSTANDING_CHUNKS_MAX = 2 * RANGE_CHUNKS_MAX
# Of many sources each owes as much as it delivers in this time: several round trips of any line,
# and a reader of a few bytes waits behind no more.
SOURCE_AHEAD_S = 1.0
# Of the window, what all sources together are asked for: with some of it free, a chunk that
# comes makes room for a range and not for a single chunk.
SHARED_CHUNKS_MAX = 3 * WINDOW_CHUNKS_MAX // 4
# The rate of a source is that of about this time: longer than the pauses of a busy node.
RATE_MEMORY_S = 2.0
# What people are shown is the rate of about this time: it does not jump from chunk to chunk.
PROGRESS_RATE_S = 5.0
# A source from which nothing has come for this long is shown as late: a person begins to wonder.
PROGRESS_LATE_S = 2.0
# Sources of one transfer that are told of; of those beyond, who left first is in the sums only.
PROGRESS_SOURCES_MAX = 32
# Whoever waits for a transfer is told no more often than this, and all who wait for it together no
# more than so many times a second: to tell one takes 0.11 ms (measured), so that a thousand
# clients cost 2 % of a core.
PROGRESS_TOLD_S = 0.2
PROGRESS_TOLD_PER_S_MAX = 160
# What is served is counted this often, and who got nothing for so long is not told of any more.
GIVEN_LOOK_S = 2.0
GIVEN_TOLD_S = 60.0
# A longer time left is told as unknown: ten years, the most that the doors' operations carry.
PROGRESS_ETA_S_MAX = 315_360_000.0
# A chunk is asked for a second time only when that brings it this much sooner: not for the
# differences between sources that are equally fast, nor for one that has come and is told of later
# (ARRIVALS_TOLD_S).
END_GAME_GAIN_S_MIN = 0.1
# Who finds nothing to ask a source for looks again after this: by then a chunk may be late.
END_GAME_LOOK_S = 0.02
# A source so slow that it would only hold up the window is tried again after this.
SOURCE_PROBE_S = 10.0
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
STALL_S_MAX = 4.5
STALL_BYTES_MIN = 64 << 10
# A source that failed is left alone this long: one which fails at once is not asked in a loop.
SOURCE_REST_S = 0.5
# Who vouched for wrong bytes of what, remembered in all: 100 bytes each.
LIARS_MAX = 4_096
# Full-size attempts on roots that only peers claim, before we give up.
CLAIM_ATTEMPTS_MAX = 3
# Roots of one content that one load tries in all, full-size or not: whoever reads a bucket for us
# could name ever new ones.
ROOTS_TRIED_MAX = 8
# A data stream on which nothing is asked for this long is closed: its transfer is over or paused.
STREAM_IDLE_S_MAX = 60.0
# Data streams one peer may keep open at our side.
SERVED_STREAMS_PER_PEER_MAX = 16

# --- doors ----------------------------------------------------------------------------------------

# Clients connected at once to one door: each costs a task and a descriptor.
DOOR_CONNECTIONS_MAX = 256
# Descriptors of the daemon: the clients of both doors, those that wait, 256 peers with their
# connections, 128 bulk connections, and the files of what is loaded and served.
OPEN_FILES_WANTED = 4_096
# Clients that wait for a place at the Unix door: a cluster job starts hundreds of them at once.
DOOR_WAITING_MAX = 768
# Connections of all guests (`auth_group`) together: a quarter, so that they never shut the owner
# out.
DOOR_GUESTS_MAX = DOOR_CONNECTIONS_MAX // 4
# Asking which groups a user is in may hang on a directory server: no longer than this.
DOOR_GROUPS_S_MAX = 5.0
# Grants in one page of `shared`: at most 400 bytes each in a frame of 1 MiB, and 2 ms of SQLite.
SHARED_PAGE_MAX = 1_024
# A client waits this much longer for the answer than the daemon has for the work.
ANSWER_GRACE_S = 1.0
# A client's request body: operations are small, files travel as descriptors or by PUT. The largest
# are messages of a feed, 1 MiB of them, of which JSON can make three.
DOOR_REQUEST_BYTES_MAX = 4 << 20
# A started request must be complete within this.
DOOR_REQUEST_S_MAX = 10.0
# An idle kept-alive connection is closed after this.
DOOR_IDLE_S_MAX = 600.0
# A call that is answered sooner is not watched for a client that goes away meanwhile.
DOOR_QUICK_S = 0.02
# While it works on a long call, the daemon says at least this often that it is alive, and how far.
DOOR_HEARTBEAT_S = 2.0
# Progress is sent no more often than this: a person reads no more than five updates a second.
DOOR_PROGRESS_S = PROGRESS_TOLD_S
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
# Files that are kept for days need not go to the minute.
SCRATCH_SWEEP_S = 3_600.0
# A sweep keeps those out who store there: for so many files, each a few ms for its link, and then
# lets them in; who waits longer than this waits for somebody who hangs.
SCRATCH_SWEPT_AT_ONCE = 64
SCRATCH_LOCK_S_MAX = 10.0

# After a member could not be reached for bulk transfer, data streams are used for this long.
BULK_AGAIN_S = 60.0
# How often it is looked which bulk connections have lost their session, and which lines are busy.
BULK_WATCH_S = 2.0
# With claims only of members that are loading a content themselves, how long one that has the whole
# may still answer: as long as a slow disk takes to find it.
PART_GRACE_S = 1.0
# A source that is loading the content itself is asked again what it has, from the first to the
# second of these: sooner while each answer brings news. A question takes 1 ms of both (measured).
PART_LOOK_S_MIN = 0.1
PART_LOOK_S_MAX = 2.0
# One that has had nothing that is missing here for this long makes room for another source.
PART_IDLE_S = 5.0
# One that so often in a row did not have what it said it had is left alone for a while.
NOT_YET_MAX = 8
# A node that lied is not used in that channel for this long: nobody does so by accident but a disk
# that rots, which its owner should hear of, and may have mended by then.
LIAR_DROPPED_S = 600.0
# Chunks that those who load the same content at once each ask of its holder in turn, so that they
# have different ones to pass on: as many as one range request on a data stream has.
DEALT_CHUNKS = 4
# Sources of one download at once: with more, deciding who brings what takes longer than it saves.
SOURCES_MAX = 8
# One source that brings this much may be all that this node can take in (SHA-1 takes 500 MB a
# second): whether all together bring more by this factor is tried, for so long, after a while, and
# again after a longer one. Less is noticed this soon, and then all are asked, and one alone is
# tried again after a rest that doubles. Those that are only being reached are waited for so long.
CREW_ENOUGH_BYTES_PER_S = 128 << 20
CREW_GAIN_MIN = 1.15
CREW_LOOK_S = 0.1
CREW_MEASURED_S = 0.5
CREW_TRY_S = 4.0
CREW_AGAIN_S = 30.0
CREW_REST_S_MIN = 1.0
CREW_JOIN_S_MAX = 3.0
# Who else has a content that is being downloaded is asked again after the first of these, doubling
# to the second: of those who began at the same time nobody has heard at first. When a member comes
# or goes it is asked at once, though no sooner than after the first.
SOURCES_LOOK_S_MIN = 1.0
SOURCES_LOOK_S = 10.0
# Chunks that come fast are told to whoever decides, and shows, no more often than this: four times
# what a person can follow.
ARRIVALS_TOLD_S = 0.05
# Verified chunks that wait to be hashed: who brings more waits, so that memory stays bounded.
ASSEMBLY_CHUNKS_MAX = 8
# The disk is told to begin writing after so many chunks: large writes, and the last sync is short.
WRITE_BACK_CHUNKS = 16
# Chunks asked for in one request, and requests under way to one source: with 8 in a request, twice
# as many had to be judged, and the line was idle for a tenth of the time (measured). What a source
# owes is within SHARED_CHUNKS_MAX anyway: 48 MiB keep a line of 480 MB/s and 100 ms full.
BULK_RANGE_CHUNKS = 16
BULK_PIPELINED = 4
# Requests for readers of a few bytes that pass those: none of them waits for a place among the
# others, and with them all there are fewer than BULK_REQUESTS_MAX.
BULK_PASSING = 4

# --- pace: limits and fairness --------------------------------------------------------------

# The lowest limit there can be: below, some of the sources or readers that share it (8 of them)
# would get less than STALL_BYTES_MIN in STALL_S_MAX, and be taken for dead.
RATE_LIMIT_MIN = 128 << 10
# A limit written larger than this is a mistake: no line carries a terabyte a second.
RATE_LIMIT_MAX = 1 << 40
# What may go at once after a pause, in seconds of the limit: less than one notices, more than a
# thread comes late.
RATE_BURST_S = 0.1
# Under a limit bytes go in pieces of so many seconds of it, that peers may take turns; none is
# smaller than the second, whatever the limit, and none larger than what is sent at once without.
RATE_PIECE_S = 0.05
RATE_PIECE_BYTES_MIN = 16 << 10
# A peer has one chunk in hand at a time, on whatever connection. If it is still being sent after
# this its line is slow (below 4 MiB/s), and starves nobody: another connection may go on.
TURN_S_MAX = 0.25
# How far a peer's urgent requests may run ahead of its fair share: a few reads of a few chunks.
URGENT_AHEAD_BYTES = 4 << 20
# Who waits for a turn looks again after this at the latest.
TURN_LOOK_S = 1.0
# The rates in `status` are those of about this time.
PACE_RATE_S = 2.0

# --- batches of small blobs -----------------------------------------------------------------------

# Contents in one question for small blobs: 20 KiB, so that sixteen of them fit the kernel's buffers
# like all bulk requests; their 8 bytes of answer each are one frame even if all are refused.
BATCH_CONTENTS_MAX = 1_024
# Bytes that the answer to one such question may bring; who asks may want fewer, but never less than
# one blob. What does not fit is asked for again.
BATCH_ANSWER_BYTES_MAX = 16 << 20
# Pieces in one frame, on bulk connections and data streams: one blob of a chunk, or many smaller.
BATCH_PIECES_BYTES_MAX = CHUNK_BYTES + (1 << 15)
# What we ask for in one question, and in all whose answers are on their way or wait for the disk.
BATCH_ASKED_BYTES = 4 << 20
BATCH_HELD_BYTES_MAX = 32 << 20
# Contents asked of one source at once, in two questions, so that its line never runs dry; and the
# fewest, however many sources share the work: below, a round trip costs more than the blobs.
BATCH_SHARE_MAX = 256
BATCH_SHARE_MIN = 32
BATCH_PIPELINED = 2
# With so many blobs a group is begun that is made durable together: the waits for the disk are then
# a small part of the work. While it is being written the next one grows.
BATCH_GROUP_OBJECTS = 512
BATCH_GROUP_BYTES = 8 << 20
# Fewer are made durable each by itself: a sync of the file system waits for what others write, too.
VERIFIED_GROUP_MIN = 8
# Blobs do not wait longer than this for others to be written with.
BATCH_GROUP_S = 0.25
# Groups that one load writes at once, and all loads: a second thread of one load would share its
# interpreter lock and its disk.
BATCH_GROUPS_MAX = 2
BATCH_WRITERS_MAX = 2
# A frame of pieces is sent after this, full or not: below it lies the time that counts as a stall,
# for blobs that the serving node has to hash first.
BATCH_FILL_S = 1.0
# Contents whose grants and files are looked up with one question: a large blob fills a frame alone,
# of small ones hundreds do.
BATCH_LOOKED_UP_MIN = 8
BATCH_LOOKED_UP_MAX = 512
# What one source was asked for this long ago is also asked of another that has nothing to do.
BATCH_LATE_S = 1.0
# Members asked in batches for what nobody announced; the others are asked for each content.
BATCH_ASKED_MAX = 8
# Questions to the index of a large channel, who holds what, at once.
BATCH_INDEX_QUESTIONS_MAX = 32
# Contents looked for in our own store before the first ones are asked for.
BATCH_LOOK_MAX = 256
# Contents of a batch that are fetched one by one at the same time: large ones, and what nobody has.
BATCH_SINGLES_MAX = 8
# Contents in one call at the daemon's door: 850 KB with their roots.
LOAD_MANY_MAX = 8_192
# Failures told in one answer, with texts so long (in bytes): they fit one frame. What comes after
# them is left unanswered, and asked for again.
LOAD_MANY_FAILED_MAX = 1_024
LOAD_MANY_TEXT_BYTES_MAX = 480

# --- cloud buckets --------------------------------------------------------------------------------

# A server that takes no connection in this time is not there; the next source is asked meanwhile.
BUCKET_CONNECT_S_MAX = 3.0
# A request for one range (8 or 16 MiB) may take so long on a slow line, and what came of it counts;
# of a frozen server's, a thread is held so long at most.
BUCKET_READ_S_MAX = 120.0
# A part of an upload (8 MiB, four at once) on a line of 1 Mbit/s.
BUCKET_WRITE_S_MAX = 600.0
# Failed requests are repeated this often inside one call: whoever calls has other sources, or a
# queue.
BUCKET_READ_RETRIES_MAX = 1
BUCKET_WRITE_RETRIES_MAX = 3
BUCKET_RETRY_S_MAX = 30.0
# Ranges of one blob that are read at once, and their chunks: 64 MiB on their way keep a server far
# away busy, and what a request costs a server is divided by 8. Each has two chunks in memory.
BUCKET_READS_MAX = 8
BUCKET_RANGE_CHUNKS = 8
# A server that answers in this time, and then brings about as much as a node can take in, is near:
# its ranges are read one after the other, and are larger, as nothing comes between two of them.
# Object stores that give 100 MB/s a stream are not: eight streams bring more. After so many ranges
# (1 GiB) from one that is not, this is tried again: it may have been busy.
BUCKET_NEAR_S = 0.05
BUCKET_NEAR_BYTES_PER_S = 256 << 20
BUCKET_NEAR_RANGE_CHUNKS = 16
BUCKET_FAR_RANGES = 128
# What comes faster than this is taken in larger pieces, which then come within a quarter of a
# second: a server that stalls is noticed as soon. They still fit a processor's cache.
BUCKET_FAST_BYTES_PER_S = 1 << 20
BUCKET_FAST_PIECE_BYTES = 256 << 10
# Threads that all buckets of a node may hold: 64 small reads at once saturate a server.
BUCKET_THREADS_MAX = 64
# Larger objects go up in parts of this size, four at a time: 32 MiB in memory. S3 takes 10,000
# parts, so larger parts are taken for what is larger than 78 GiB.
BUCKET_PART_BYTES = 8 << 20
BUCKET_PARTS_MAX = 9_000
BUCKET_PARTS_AT_ONCE = 4
# Keys of one page of a listing, as S3 gives them.
BUCKET_LIST_KEYS = 1_000
# What a server may send before its answer begins, and as the reason why it refuses.
BUCKET_HEADERS_MAX = 100
BUCKET_HEADERS_S_MAX = 10.0
BUCKET_REASON_BYTES_MAX = 1 << 14
BUCKET_REDIRECTS_MAX = 3
# Mirrors that one channel may have, and connections to one of them that are kept open.
BUCKET_MIRRORS_MAX = 8
BUCKET_IDLE_CONNECTIONS_MAX = 8
# What a bucket said of an object is believed so long: that it is there, and that it is not.
BUCKET_FOUND_S = 60.0
BUCKET_NOT_FOUND_S = 2.0
BUCKET_KNOWN_MAX = 4_096
# A bucket that fails is asked again after this long, twice as long each time.
BUCKET_REST_S_MIN = 1.0
BUCKET_REST_S_MAX = 60.0
# What uploads could not open is tried again after this.
BUCKET_OPEN_AGAIN_S = 5.0
# With a bucket that has the whole, members that are being dialled are waited for no longer.
BUCKET_WHOLE_PATIENCE_S = 1.0
# A whole object whose line breaks is gone on with, so often without anything having come.
BUCKET_WHOLE_TRIES_MAX = 3
# Retry-After says how long to stay away; an hour is the most that is believed.
BUCKET_RETRY_AFTER_S_MAX = 3_600.0
# A failed upload is tried again after this long, twice as long each time.
UPLOAD_RETRY_S_MIN = 2.0
UPLOAD_RETRY_S_MAX = 3_600.0
# Uploads of one node at the same time.
UPLOADS_AT_ONCE = 4
# How many of the queue are looked at together, and how often it is looked for what commands put
# in: 50 us each time.
UPLOADS_LISTED = 256
UPLOADS_LOOK_S = 0.5
# The keys of an encrypted bucket: 128 bytes for each of MEMBERS_MAX readers, and 144 beside them.
BUCKET_KEYS_BYTES_MAX = 1 << 20
# Beginnings of sealed objects that are remembered for the reads that follow: 2 KB each.
BUCKET_SEALED_KNOWN_MAX = 1_024
# The names of so many sealed objects are read at once while they are listed.
BUCKET_SEALED_LIST_AT_ONCE = 16
# A segment of a log in a bucket: one request moves it within seconds on a slow line. Its tree takes
# 300 bytes an entry, so entries count too. While a log is read two are held, 13 MB at most; and
# as many logs are read at once as are caught up with.
BUCKET_LOG_SEGMENT_BYTES_MAX = 4 << 20
BUCKET_LOG_SEGMENT_ENTRIES_MAX = 1 << 13
BUCKET_LOG_SEGMENTS_READ_MAX = 2
BUCKET_LOG_TREES_MAX = 8
# What names them, rewritten with each change: some 10,000 segments, 100 million messages.
BUCKET_LOG_HEAD_BYTES_MAX = 1 << 20
# A log that grows is put there this often, so that a busy feed costs 30 requests a minute.
BUCKET_LOG_EVERY_S = 2.0
# Who only has a copy waits: usually its owner puts it there meanwhile.
BUCKET_LOG_COPY_S = 20.0
# All logs that may go there are looked through, and those that are there looked at again, whether
# another member, or an operator, has put something else in their place.
BUCKET_LOG_LIST_S = 30.0
BUCKET_LOG_CHECK_S = 600.0
# Segments that bigger ones replaced stay for readers who know the old head, and for other nodes
# that are just about to name them; whoever has read a head writes the next one well within that.
BUCKET_LOG_OLD_S = 900.0
# Segments of a head that could not be written are kept for the next tries.
BUCKET_LOG_UNNAMED_S = 86_400.0
BUCKET_LOG_WRITE_S_MAX = 60.0
# Nodes that replace one head at the same time: each try but one has another's success as reason.
BUCKET_LOG_TRIES_MAX = 8
# A reader looks for news in the bucket this often, while its author is not connected.
BUCKET_LOG_POLL_S = 5.0
# ... of so many logs at once, and no more of them a second: providers count requests.
BUCKET_LOG_POLLS_MAX = 8
BUCKET_LOG_POLLS_PER_S = 20.0
# Answers from a bucket to what a member would be asked: a segment of 4 MiB on a line of 1 Mbit/s.
BUCKET_LOG_ANSWER_S_MAX = 40.0
# Connected members are waited for this long before the bucket is asked about a feed.
BUCKET_LOG_MEMBERS_S = 1.0
# The history of a channel is looked up in the bucket this often: while no member is connected, and
# otherwise.
BUCKET_HISTORY_ALONE_S = 60.0
BUCKET_HISTORY_S = 3_600.0
# The clock of a node and of a server that refuses old signatures (15 minutes is what S3 allows).
BUCKET_CLOCK_S_MAX = 300.0

# Members that ask one who has a bucket's credentials. A URL signed for them is good for this
# long: who is removed from the channel can read one object for no longer.
BUCKET_SIGNED_S = 300.0
# It is not used in its last seconds, nor for a range that would begin then.
BUCKET_SIGNED_MARGIN_S = 30.0
# The longest query seen is Google's, 950 characters; a session token of Amazon's adds 1,500.
BUCKET_QUERY_CHARS_MAX = 4_096
BUCKET_KEY_CHARS_MAX = 512
# A name is kept percent-encoded with its object, which may take three characters for each byte.
BUCKET_TOLD_CHARS_MAX = 1_024
BUCKET_TOLD_ATTRIBUTES_MAX = 8
# One piece of an object that a provider hands on itself: it shares the control stream with
# questions that should not wait for it.
BUCKET_RELAY_BYTES_MAX = 256 << 10
# Pieces that a provider reads for others at once, and for one member: 4 MiB in memory.
BUCKET_RELAYS_MAX = 16
BUCKET_RELAYS_PER_PEER_MAX = 4
# Objects that one member may ask about at once and in each second: a directory of 10,000 small
# files takes a minute and a half, and costs its provider some cents.
BUCKET_LOOKS_BURST = 1_024
BUCKET_LOOKS_PER_S = 100.0
# What a member does for others with the bucket is asked anew after this long.
BUCKET_PROVIDER_S = 30.0
# How long members that are being met are waited for before an upload is put off.
BUCKET_PROVIDER_WAIT_S = 5.0
# A provider answers a wish after this long at the latest; it is asked again then.
BUCKET_WISH_WAIT_S_MAX = 5.0
# Of what a member says it has put there so many bytes, the last ones, are read again, and so many
# other members are asked at most for a look at it.
BUCKET_SEEN_BYTES = 64 << 10
BUCKET_WITNESSES_MAX = 3
# Wishes that one member may have open with a provider, and all together; those fetched at once.
BUCKET_WISHES_PER_PEER_MAX = 64
BUCKET_WISHES_MAX = 512
BUCKET_WISHES_AT_ONCE = 4
BUCKET_WISHES_AT_ONCE_PER_PEER = 2
# What one member can make a provider fetch: 1 TiB at once, and about as much each day. The
# reserve of its disk stops it before, if that is smaller.
BUCKET_WISH_BYTES_BURST = 1 << 40
BUCKET_WISH_BYTES_PER_S = 12 << 20
# A fetch has this long for each MiB, and a minute: who only drips holds no place for a year.
BUCKET_WISH_S_PER_MIB = 4.0
BUCKET_WISH_S_MIN = 60.0

# --- discovery ------------------------------------------------------------------------------------

# What one introducer keeps. Members of one channel tell each other of the rest, so some are enough.
RENDEZVOUS_ENTRIES_PER_TAG_MAX = 64
# All 64 channels of a node, each under two tags around midnight.
RENDEZVOUS_ENTRIES_PER_NODE_MAX = 128
# Each has 1 KiB and costs 2.5 at most (measured): 21 MB. Bounds the tags too: each has an entry.
RENDEZVOUS_ENTRIES_MAX = 8_192
# How long an introducer is asked to keep an entry: five registrations may fail. What it accepts.
RENDEZVOUS_TTL_S = 1_800
RENDEZVOUS_TTL_S_MIN = 1
RENDEZVOUS_TTL_S_MAX = 7_200
# This close to midnight the neighbouring day's tag is used too: more than TTL and clock slack.
RENDEZVOUS_MIDNIGHT_S = 3_600
# Expired entries are swept this often.
RENDEZVOUS_SWEEP_S = 60.0
# Requests on one stream: to register and look up 64 channels under two tags each.
RENDEZVOUS_REQUESTS_MAX = 256
# Such a stream is over after this; who is no member loses its connection after HELLO_S_MAX anyway.
RENDEZVOUS_STREAM_S_MAX = 15.0
# A try that broke off is made again at once this often: a dial for a session may have ended it.
RENDEZVOUS_TRIES_MAX = 3
# Introducers are asked this often, and from the first to the second while a channel has no peer.
RENDEZVOUS_REFRESH_S = 300.0
RENDEZVOUS_LONELY_S_MIN = 4.0
RENDEZVOUS_LONELY_S_MAX = 60.0
# A channel that lost its last peer is noticed within this.
RENDEZVOUS_LOOK_S = 10.0
# A node that introduces and said that it is no member is dialled as one this rarely.
STRANGER_REDIAL_S = 600.0
# Bootstrap addresses without an id: a person writes a few, and each is asked by itself.
PLACES_MAX = 64
# That many host names, each with the id that was met there, fit several times over.
PLACES_BYTES_MAX = 1 << 17

# Nodes on the local network that are remembered: 1 KB each.
NEIGHBOURS_MAX = 256
# Packets of neighbours taken in per second, and at once: a lab that is switched on has 64 nodes.
NEIGHBOURS_PER_S_MAX = 16.0
NEIGHBOURS_AT_ONCE_MAX = 64
# Blinded tags of one neighbour: 64 channels, padded; 1 KiB of the 9,000 bytes a packet may have.
NEIGHBOUR_TAGS_MAX = 64
# Tags are padded to a multiple of this, so that their number does not tell that of the channels.
NEIGHBOUR_TAGS_GROUP = 4
# Pointers to names that zeroconf may hear before it is set up anew: for each it plans a question,
# which it cannot be made to forget. A lab of 64 says so many in days.
NEIGHBOUR_POINTERS_MAX = 4_096
# Neighbours whose packet was incomplete and who are asked for the rest, at once and how long.
NEIGHBOUR_QUESTIONS_MAX = 8
NEIGHBOUR_ANSWER_S_MAX = 2.0
# What we tell neighbours is brought up to date this often: channels, the day, network interfaces.
NEIGHBOURS_REFRESH_S = 30.0
# And those heard are told to the address book anew this often, should it have forgotten them: as
# often as hearsay is forgotten.
NEIGHBOURS_NOTED_S = 600.0
# No multicast, or no network yet: looked for again after this.
NEIGHBOURS_RETRY_S = 300.0
# Goodbye to the neighbours: three packets, 125 ms apart.
NEIGHBOURS_LEAVE_S_MAX = 1.0

# --- channels -------------------------------------------------------------------------------------

CHANNELS_MAX = 64
CHANNEL_NAME_CHARS_MAX = 64
# A generated secret carries this many random bits; 128 is the floor below which guessing is
# thinkable.
SECRET_BITS = 160
# Entries of an owned channel's history: ten changes a day for eighteen years.
CHANNEL_ENTRIES_MAX = 1 << 16
# One answer with entries of a history: well within a control frame, and within the buffer that a
# connection has before it proved membership.
ENTRIES_ANSWER_BYTES = 1 << 18
ENTRIES_ANSWER_MAX = 4_096
# An admin's request: one change, at most a settings entry with its 64 addresses.
CHANGE_BYTES_MAX = 1 << 15
# A proof of removal: a head, an entry, and a path of at most 63 hashes.
NOTICE_BYTES_MAX = 1 << 13
# A history is asked for in pieces; all of it must have come by then.
HISTORY_S_MAX = 20.0
# Who was removed has this long to take note of the proof, before the connection is cut: within the
# 5 s in which a removal must be effective.
REMOVAL_TOLD_S = 2.0
# Talks with nodes that want to enter, at once: each takes a moment, and they are strangers.
ADMISSIONS_MAX = 16
# One such talk, in which the admitting node may have to ask the keeper.
ADMISSION_S_MAX = 15.0
# A node that waits to be let in asks again after the first of these, doubling to the second.
JOIN_RETRY_S_MIN = 1.0
JOIN_RETRY_S_MAX = 60.0
# Bootstrap addresses of one channel: tried one after the other at start.
BOOTSTRAP_ADDRESSES_MAX = 64
# A channel file is a page of TOML.
CHANNEL_FILE_BYTES_MAX = 1 << 16

# Members of an owned channel. Everybody keeps the whole history: 4,096 members cost 1.2 MB of it.
MEMBERS_MAX = 4_096
# All entries of a history together: as many members are set 70,000 times, at 240 bytes each.
HISTORY_BYTES_MAX = 16 << 20
BUCKET_CHARS_MAX = 1_024
# Clocks of members may differ by this much.
CLOCK_SLACK_S = 600
# An admin's signed request waits at most this long for a keeper that is asleep.
ADMIN_REQUEST_S_MAX = 86_400
# The keeper signs its channel's history again this often, so that silence can be told from peace;
# after three times as long people are told, and then the named successor may take over.
HISTORY_RENEWAL_S = 86_400
HISTORY_FRESH_S = 3 * 86_400
SUCCESSION_AFTER_S = 7 * 86_400
# A new owned channel admits nobody new after a year, unless its keeper says so again.
CHANNEL_LIFE_S = 365 * 86_400
# Invites are pasted: a terminal cuts a line off after 4,095 characters.
INVITE_CHARS_MAX = 3_900
INVITE_ADMITTERS_MAX = 8
INVITE_LIFE_S = 86_400
# Who issues more invites than this in a week should see what runs it.
INVITES_PENDING_MAX = 1_024
# A used or expired invite is remembered this long, to tell its bearer what is wrong with it.
INVITE_MEMORY_S = 7 * 86_400
# The file of issued invites: 300 bytes each.
INVITES_BYTES_MAX = 1 << 20

# --- log ------------------------------------------------------------------------------------------

# Far beyond any log; with it every proof is within the next bound and every number in a database's.
LOG_ENTRIES_MAX = 1 << 62
# The longest proof there can be: one hash a level, and one more in a proof of consistency.
PROOF_HASHES_MAX = 63
# An entry travels in one control frame. What is bigger goes to the store, and its URI into the log.
ENTRY_PAYLOAD_BYTES_MAX = 1 << 20
# Times are milliseconds since 1970; this keeps them within what a database can hold.
LOG_TIME_MS_MAX = (1 << 63) - 1

# --- feeds between nodes --------------------------------------------------------------------------

# Entries of a feed in one answer: 1,200 messages of 200 bytes, which take 3 ms to verify and leave
# the control stream free for others in between. A larger entry comes alone.
FEED_ANSWER_BYTES = 1 << 18
# As many entries as the smallest fit into one answer.
FEED_ANSWER_ENTRIES_MAX = 1 << 14
# Entries that travel with the news of them, so that a reader who waits need not ask: a message of
# the usual kind, and not so much that a hundred readers fill a line.
FEED_NEWS_BYTES_MAX = 1 << 15
# What of them is verified in the event loop, so that a reader has it at once: 0.1 ms of hashing.
FEED_FORESEEN_BYTES_MAX = 1 << 13
FEED_FORESEEN_ENTRIES_MAX = 32
# Stored hashes in one answer: a fork is found with 4 log2(size) of them.
FEED_HASHES_MAX = 256
# Finding where two histories part: some 200 round trips at most, each below REQUEST_S_MAX.
FEED_FORK_S_MAX = 60.0
# Answers with entries that are awaited or wait to be kept, of one subfeed: 4 MiB, or 16 MiB if the
# entries are as large as can be.
FEED_AHEAD_MAX = 16
# Of these, what one member is asked for at once: the line stays full while entries are kept.
FEED_ASKED_PER_SOURCE_MAX = 4
# Entries kept in one durable write while catching up: a sync costs as much as writing 1 MiB.
FEED_KEPT_BYTES = 1 << 20
# Subfeeds whose missing entries are fetched at once: 32 MiB with the bound above; others wait.
FEED_CATCH_UPS_MAX = 8
# Who was asked for entries and has not answered for this long is asked no more for now; and after
# the second somebody else is asked for the same.
FEED_ENTRIES_S_MAX = 5.0
FEED_LATE_S = 1.0
# A member that broke a rule is not asked again about that subfeed for this long.
FEED_BLAME_S = 600.0
# A member that failed is asked again after this.
FEED_REST_S = 5.0
# What one member may follow here, and all of them: 300 bytes each, of subfeeds that need not exist.
FEED_FOLLOWERS_PER_PEER_MAX = 8_192
FEED_FOLLOWERS_MAX = 1 << 16
# Subfeeds whose state is kept in memory while nobody uses them.
FEED_IDLE_MAX = 256
# Members told at once by a reader of what it heard, and how often; the others hear it after a
# while, unless they have told us the same. So n readers cause 3 n messages, not n squared.
FEED_RELAYED_AT_ONCE = 3
FEED_RELAY_S = 0.05
FEED_RELAY_REST_S = 2.0
# Followers of an own subfeed that are told before whoever appended goes on, 0.1 ms each; the others
# right behind that.
FEED_TOLD_NOW = 4
# News from one member: at once, and a second. More wait, so it cannot make us verify all day: 5 %
# of a core. An owner tells the next news when the last were taken in: it keeps to that by itself.
FEED_NEWS_BURST = 1_024
FEED_NEWS_PER_S = 512
# Subfeeds that one member is asked about at once: a node that starts follows thousands.
FEED_ASKED_AT_ONCE_MAX = 8
# From this many entries ahead of what is here, a reader is given single entries, with proof,
# before the copy has grown so far.
FEED_SPARSE_ENTRIES = 10_000
# Looking for somebody who has a feed, before its reader is told that nobody does.
FEED_FIND_S_MAX = 10.0
# Meanwhile it is looked this often whether everybody has been found.
FEED_LOOK_S = 0.25
# Subfeeds that one call watches.
FEED_WATCHED_MAX = 1_024
# An own feed that was restored waits this long for members to tell where it ends, before it says
# that it cannot be appended to: they are asked when they connect, so usually they have said it.
FEED_CONFIRM_S_MAX = 3.0
# Messages in one submission: as many ids.
SUBMITTED_MAX = 1_024
# The owner of a feed signs and writes a submission within this, or the submitter tries again.
SUBMIT_S_MAX = 20.0
# What one member may submit: messages, at once and a second; 4 MiB a second of payload.
SUBMITTED_BURST = 8_192
SUBMITTED_PER_S = 1_024

# --- keys -----------------------------------------------------------------------------------------

# Our key files have a few hundred bytes, those of access groups 137 more for each member; what is
# larger was not written by us.
KEY_FILE_BYTES_MAX = 20_000
# Key files in one backup: of a node, its channels and its feeds.
KEY_FILES_MAX = 4_096
# The text of such a backup: as many key files of ours need 1.5 MiB, full ones of all groups 6.
BACKUP_CHARS_MAX = 12 << 20
# What a backup may make scrypt use (128 bytes x 2^cost x 8): a backup can come from anybody, and a
# cost of 40 would ask for a petabyte. Ours use 17: 128 MiB and 0.4 s (measured).
BACKUP_COST_MIN = 10
BACKUP_COST_MAX = 18
# A passphrase is typed by a person; whoever finds the backup may try millions of shorter ones.
PASSPHRASE_CHARS_MIN = 8
PASSPHRASE_CHARS_MAX = 1_024
# Access groups that a node holds, and members of one besides its owner: each gets a wrapped key of
# 80 bytes in the group's invitation, which is a text that people hand over.
GROUPS_MAX = 256
GROUP_MEMBERS_MAX = 128
# Each removal begins an epoch, and older keys are made of the newest by so many steps (1 ms).
GROUP_EPOCHS_MAX = 1_024
# The invitation of a group with all its members, as text.
GROUP_INVITE_CHARS_MAX = 16_384
# A decrypted file that was not loaded for so long is removed: who wants it again decrypts again.
OPENED_KEPT_S = 30 * 86_400.0
# The content of a sealed file: as many pages of chunks as a blob may have, of which its frames and
# its header take less than one in a thousand.
SEALED_CONTENT_BYTES_MAX = (1 << 44) - (1 << 34)
# Frames of 64 KiB that are sealed or opened between two reads: a MiB each of both forms is held.
SEALED_STREAM_FRAMES = 16

# --- feeds ----------------------------------------------------------------------------------------

# A message is one entry, in front of which a submitted one names its submitter (48 bytes).
MESSAGE_BYTES_MAX = ENTRY_PAYLOAD_BYTES_MAX - 48
# What is written, synced and signed at once: it is in memory meanwhile, and read back whole.
RECORD_ENTRIES_MAX = 1 << 16
RECORD_BYTES_MAX = 8 << 20
# What is read back of a feed at once, with the heads between the entries.
FEED_READ_ENTRIES_MAX = 1 << 16
FEED_READ_BYTES_MAX = 8 << 20
# Hashes and offsets are synced after as much: what is looked through at opening takes 0.5 s.
FEED_CHECKPOINT_ENTRIES = 1 << 16
FEED_CHECKPOINT_BYTES = 64 << 20
# Subfeeds whose files (three, of an own one four) are open at once: all that are looked after,
# because closing one that is used takes syncs; where the daemon may have few descriptors, a quarter
# of them. Threads that append.
FEED_FILES_OPEN_MAX = 256
FEED_DESCRIPTORS_PART = 4
FEED_THREADS_MAX = 16
# A thread that appends waits this long for more before it goes: starting one takes 0.15 ms.
FEED_THREAD_LINGER_S = 0.05
# Messages that wait to be appended: what comes beyond waits outside.
FEED_APPEND_BYTES_MAX = 64 << 20
FEED_APPENDS_MAX = 65_536
# Who appends holds the lock of a subfeed for 20 us, if it need not wait for the processor: where
# many want it, looking sooner whether it is free costs them more than it brings. Who cannot have it
# for so many seconds is told.
FEED_LOCK_PAUSE_S = 0.0005
FEED_LOCK_S_MAX = 10.0
# What nobody vouches for a program writes once more at its first append: so much at a time, that
# others get their turn, and so much is left behind for the next one.
FEED_REWRITTEN_BYTES = 4 << 20
# A program that appends looks this often whether the file is still where it was: to look each time
# would make each sync a third slower. Who puts a backup in its place takes longer than that.
FEED_PLACE_S = 0.01
# Zeros that are written ahead of short records, so that their syncs need no journal: half as much
# as is there already, up to so much (a millisecond of a disk, every 4,000 messages); less is not
# worth it. Who appends more than so much at once waits for the disk much longer than for the
# journal.
FEED_ROOM_BYTES_MAX = 1 << 20
FEED_ROOM_BYTES_MIN = 1 << 12
FEED_ROOM_RECORD_BYTES = 1 << 14
# What of others' appending the node takes in at once: 20 ms of work.
FEED_TAKEN_BYTES = 1 << 20
# And so much, while those wait who append faster than the node takes it in, and the node is to
# append as well: 80 ms.
FEED_TAKEN_ALONE_BYTES = 4 << 20
# Who asks for a subfeed that grows waits so long for what programs have appended; more comes later.
FEED_TAKEN_S_MAX = 0.2
# After programs have appended the node looks again this soon, so they need not say so each time;
# and this soon if nobody waits for the messages.
FEED_LOOK_AGAIN_S = 0.002
FEED_LOOK_AGAIN_IDLE_S = 0.05
# What nobody said (the node was not there, or had too much to hear) is found this soon.
FEED_NOTICED_S = 1.0
# Subfeeds that the node looks after at once because programs append; more wait for their turn.
FEED_LOOKED_AFTER_MAX = 256
# Subfeeds that one program keeps open to append to: three descriptors each.
FEED_APPENDED_OPEN_MAX = 16
# Such words that are read before others get their turn: 0.2 ms.
FEED_POKES_AT_ONCE = 64
# A program that cannot reach the node tries again after this long.
FEED_POKE_REST_S = 0.2
# Bytes of a feed that one crash can leave half written: those of all who wrote at that moment.
FEED_IN_FLIGHT_BYTES_MAX = 256 << 20
# Damaged entries of one subfeed that are remembered; more are found when these are mended.
FEED_DAMAGED_MAX = 4_096
# The name of a feed or subfeed, as JSON text.
FEED_NAME_CHARS_MAX = 4_096
# What is taken over of the mutables of an older kachery: each is a commit of its own.
LEGACY_MUTABLES_MAX = 16_384
# Feeds of this node: a key file and a row each.
FEEDS_MAX = 16_384
# What one call of the register lists.
FEED_ROWS_MAX = 4_096
# Messages in one call at a door: 2 MiB and 10 ms of work for the daemon, so that it stays ready for
# others. The largest message has a few bytes of its own in front, in a frame of the door.
FEED_CALL_MESSAGES_MAX = 4_096
FEED_CALL_BYTES_MAX = ENTRY_PAYLOAD_BYTES_MAX + 64
# Positions in a subfeed: what a signed 64-bit number takes, with room to count on.
FEED_POSITION_MAX = (1 << 62) - 1
# A message stream asks the daemon again after waiting this long.
FEED_STREAM_WAIT_S = 60.0
# A line of JSON on stdin that is one message: escapes can make it six times as long.
FEED_LINE_BYTES_MAX = 6 * ENTRY_PAYLOAD_BYTES_MAX
# Of a database of an older kachery, which anybody may have made: bytes of a row, and seconds until
# the next row.
LEGACY_ROW_BYTES_MAX = 4 << 20
LEGACY_LOOK_S_MAX = 30.0
# At the HTTP door an answer is JSON, in which a text can become three times as long.
FEED_HTTP_BYTES_MAX = 1 << 18
# Feeds, or subfeeds of one, in one answer; fewer if their names are long.
FEED_PAGE_MAX = 256
FEED_PAGE_BYTES_MAX = 1 << 19
# Reading at the doors waits for messages no longer than this in one call: whoever waits longer asks
# again, so that a client that is gone costs nothing for ever.
FEED_WAIT_S_MAX = 3_600.0

# --- the older packages ---------------------------------------------------------------------------

# zones.toml: a line or two for each zone that somebody has a name for.
ZONES_BYTES_MAX = 1 << 20
# How long a file of the zone `scratch` stays unless zones.toml says otherwise.
SCRATCH_DAYS = 14.0
# A web server that says nothing for so long is given up.
WEB_TIMEOUT_S = 60.0
# What Zenodo says of a record: a kilobyte for each of its files, of which it allows a hundred.
WEB_RECORD_BYTES_MAX = 4 << 20
# A local mutable of kachery-cloud, which had no bound there: it is in memory whole, and no file.
TEXT_MUTABLE_CHARS_MAX = 16 << 20
# Files in directories of the older packages that were read to see what they are: 200 bytes each.
OLD_FILES_KNOWN_MAX = 1_024
