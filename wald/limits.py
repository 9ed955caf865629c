"""Every bound and default of wald, with the unit in the name.

Relations between bounds are asserted at import, so that a changed constant that breaks another
one is found by the first test that imports the package.
"""

import re
from typing import Final

KIB: Final = 1024
MIB: Final = 1024 * KIB

# --- what a producer may send -----------------------------------------------------------------
REQUEST_MAX_BYTES: Final = 4 * MIB
REQUEST_MAX_RECORDS: Final = 65_536
RECORD_MAX_BYTES: Final = 1 * MIB
KEY_MAX_BYTES: Final = 1 * KIB
HEADERS_MAX_BYTES: Final = 16 * KIB
HEADERS_MAX_COUNT: Final = 64
URGENT_HEADER_NAME: Final = "wald-urgent"  # whatever its value: the record waits for no others
DEDUP_ID_MAX_BYTES: Final = 256
DEDUP_IDS_COUNT: Final = 100_000  # of a stream that compares them, unless it says otherwise
DEDUP_IDS_MAX: Final = 10_000_000  # about 140 bytes of memory each, beside the id itself
DEDUP_FILE_BYTES: Final = 4 * MIB  # of ids; then another file begins, and the oldest may go
DEDUP_FILES_COUNT: Final = 4  # from so many on they hold at most twice the ids that are remembered
STREAM_NAME_MAX_BYTES: Final = 64
STREAM_NAME: Final = re.compile(rf"[a-z0-9][a-z0-9._-]{{0,{STREAM_NAME_MAX_BYTES - 1}}}")
PRODUCER_NAME_MAX_BYTES: Final = 128
MSGPACK_MAX_DEPTH: Final = 1_024  # of the C codec, both ways

# --- the log ----------------------------------------------------------------------------------
SEGMENT_BYTES: Final = 64 * MIB
ALIGNMENT_MIN_BYTES: Final = 4 * KIB
ALIGNMENT_MAX_BYTES: Final = 64 * KIB
GROUP_MAX_BYTES: Final = 8 * MIB
SNAPSHOT_MAX_BYTES: Final = 4 * MIB
SNAPSHOT_BLOCK_MAX_BYTES: Final = 1 * MIB
SNAPSHOT_EVERY_SECTIONS: Final = 8_192  # a start applies no more of them: about 40 ms
SNAPSHOT_EVERY_BYTES: Final = 16 * MIB
SNAPSHOT_SHARE: Final = 8  # and no more than an eighth of what is written is snapshots
FRESH_ZERO_BYTES: Final = 16 * MIB  # of a fresh segment, at once; the rest beside the log
ZERO_STEP_BYTES: Final = 1 * MIB  # zero-filling ahead is paced: unpaced it doubled the flush p99
LSN_JUMP_UNCLEAN: Final = 1 << 24
LSN_JUMP_MOVED: Final = 1 << 40
LSN_MAX: Final = (1 << 63) - 1  # SQL integers are signed
CATALOGUE_JUMP: Final = 1 << 16  # ids of streams and routes skipped when their table was lost
DISK_RESERVE_BYTES: Final = 64 * MIB  # kept free for ledger and restarts: no new segment below it
DISK_FULL_RETRY_S: Final = 1.0
QUOTA_SOFT_SHARE: Final = 0.8  # of a stream's quota: from here on producers are asked to pause,
QUOTA_PAUSE_MIN_S: Final = 0.01  # for as long as this,
QUOTA_PAUSE_MAX_S: Final = 1.0  # and up to this the nearer the quota is; then they are refused
QUOTA_LOOK_S: Final = 0.1  # how far the drainer is, is read again for quotas
QUOTA_MARKS_COUNT: Final = 128  # points of a stream at which bytes and times are known exactly
POOL_MAX_SEGMENTS: Final = 4
RETAIN_AFTER_DELIVERY_S: Final = 900.0
RETAIN_AFTER_DELIVERY_BYTES: Final = 256 * MIB
LOCK_WAIT_S: Final = 10.0

# --- streams, routes, sessions ----------------------------------------------------------------
STREAMS_MAX: Final = 1_024
ROUTES_MAX: Final = 1_024
SESSIONS_MAX: Final = 4_096
WINDOW_REQUESTS: Final = 256
WINDOW_ENTRIES_MAX: Final = 65_536
REFUSALS_PER_SESSION_MAX: Final = 4_096  # kept to be told again, as long as the window has them
REFUSALS_MAX: Final = 16_384  # of all sessions: beyond, their requests are outside the window
SESSION_IDLE_S: Final = 24 * 3600.0
ONCE_PREFIX_NAME: Final = "once:"
SESSION_ONCE_IDLE_S: Final = 7 * 24 * 3600.0
REFUSALS_KEPT_PER_REQUEST: Final = 1_024

# --- the socket -------------------------------------------------------------------------------
SOCKET_PATH_MAX_BYTES: Final = 107  # sun_path less its NUL
ALIKE_MIN_COUNT: Final = 8  # appends of one length in a read; for fewer a look at each costs less
RECEIVE_BUFFER_BYTES: Final = 256 * KIB
LARGE_FRAMES_MAX_BYTES: Final = 64 * MIB  # all frames larger than the shared buffer together
CONNECTIONS_MAX: Final = 1_024  # producers
CONNECTIONS_SPARE_COUNT: Final = 64  # beside them: who has not said HELLO yet, and subscribers
SUBSCRIBERS_MAX: Final = 16
MENTIONS_MAX_COUNT: Final = 256  # statements that wait for a group; so many are one
SEND_BUFFER_MAX_BYTES: Final = 8 * MIB  # of a client that does not read its answers,
SEND_BUFFERS_MAX_BYTES: Final = 32 * MIB  # and of all such clients together
CLOGGED_BYTES: Final = 64 * KIB  # who leaves more of its answers unread is not read from meanwhile
TURN_MAX_BYTES: Final = 1 * MIB  # of a connection in one group, and what the read at work brought
EVENTS_PER_TURN_COUNT: Final = 64  # frames beside the hot path, of a connection in a turn
ACCEPTS_PER_TURN_COUNT: Final = 64
ACCEPT_PAUSE_S: Final = 0.1  # when no descriptor is left
FILES_BESIDE_COUNT: Final = 64  # descriptors that connections leave to the log and its pages
TOLD_EVERY_S: Final = 10.0  # what clients do wrong is logged so often, however often they do it
STREAM_FRAME_MAX_BYTES: Final = 1_024  # longer than a name, so that a long name gets an answer
PING_MAX_BYTES: Final = 64
ERROR_FRAME_MAX_BYTES: Final = 4 * KIB
REFUSED_FRAME_MAX_BYTES: Final = 1 * MIB
DUPLICATES_FRAME_MAX_BYTES: Final = 1 * MIB
SMALL_REST_BYTES: Final = 16 * KIB  # an unfinished frame above this is charged to the budget
RETRY_AFTER_MS: Final = 200
HELLO_TIMEOUT_S: Final = 5.0
FRAME_TIMEOUT_S: Final = 30.0
CONNECTION_IDLE_S: Final = 24 * 3600.0  # as a session without one: the client comes back unharmed
CONTROL_LINE_MAX_BYTES: Final = 1 * MIB

# --- the client -------------------------------------------------------------------------------
CONNECT_TIMEOUT_S: Final = 5.0
APPEND_TIMEOUT_S: Final = 30.0
CLOSE_TIMEOUT_S: Final = 10.0
EXIT_TIMEOUT_S: Final = 2.0  # what all producers together wait for when the interpreter ends
LOGGING_BUDGET_S: Final = 0.05  # that a log record may hold up the thread that logs it
LOGGING_PAUSE_S: Final = 1.0  # after a failure nothing is tried for so long: it is dropped
LOGGING_UNDER_WAY_RECORDS: Final = 4_096  # whose refusals are counted
LOGGING_TEXT_MAX_CHARS: Final = 64 * KIB  # of a message, an exception, an extra field
SUBMIT_AT_ONCE_REQUESTS: Final = 32  # unanswered; beyond, what is submitted goes out together
SUBMIT_TOGETHER_RECORDS: Final = 128
SUBMIT_TOGETHER_BYTES: Final = 64 * KIB
SUBMIT_LOOK_S: Final = 0.001  # so often a flood of submits looks for answers
SUBMIT_FLOOD_S: Final = 0.000_025  # more than one record in so long, for a while, is a flood

# --- delivery ---------------------------------------------------------------------------------
BATCH_MAX_RECORDS: Final = 2_000
BATCH_MAX_BYTES: Final = 1 * MIB
BATCH_MAX_AGE_S: Final = 1.0
LANES_MAX: Final = 64  # of a route
ATTEMPT_TIMEOUT_S: Final = 60.0  # the longest that an attempt may take; behind it its target hangs
FALLBACK_AFTER_S: Final = 600.0
FALLBACK_BACK_S: Final = 10.0  # a target that is well for so long takes over from its fallback
RETRY_BASE_S: Final = 0.1
RETRY_CAP_S: Final = 30.0
SEAL_WAIT_S: Final = 1.0  # that a target's transaction stays open for a flush of the ledger
HISTORY_BATCHES_PER_LANE: Final = 1_024
LEDGER_MAP_BYTES: Final = 1 << 30
LEDGER_WALK_S: Final = 60.0  # of a processor, for each part: a damaged ledger may be endless
LEDGER_WALK_PART_BYTES: Final = 256 * MIB
LEDGERS_ASIDE_MAX: Final = 4  # damaged ones that are kept; the oldest goes
STOP_DELIVER_S: Final = 5.0
FILES_PER_BATCH_MAX: Final = 256  # partitions of one batch; with more it is halved
PARKED_REREAD_S: Final = 5.0  # a parked lane asks again whether its row fits
REREAD_S: Final = 10.0  # an idle lane looks whether its target went back in time
REWIND_PAUSE_S: Final = 2.0  # until ingest has heard that delivered records are wanted again
TAKE_OVER_MAX_RECORDS: Final = 10_000  # that may or may not be at the target: set aside,
TAKE_OVER_MAX_BYTES: Final = 64 * MIB  # and so many bytes of them
ADVANCE_EVERY_S: Final = 5.0  # an idle lane's checkpoint moves over foreign LSNs (T6)
PROGRESS_EVERY_S: Final = 0.5
SEALED_AHEAD_LSN: Final = 20_000  # so far ahead is told how far batches that may double are sealed
STANDS_TOLD_MAX_COUNT: Final = 2_900  # lanes at targets without a row, told beside the ledger
HINT_EVERY_S: Final = 0.25  # the frontier by way of ``ingest.page``, while ingest does not tell it
GUARDED_AFTER_CRASHES_COUNT: Final = 2  # in a row: then the batch gets a process of its own
GUARDED_MEMORY_BYTES: Final = 1024 * MIB  # of address space
GUARDED_PROBE_TIMEOUT_S: Final = 10.0
GUARDED_START_S: Final = 60.0  # until that process is ready, which counts against no record
HUNG_ATTEMPT_FACTOR_COUNT: Final = 2  # an attempt of so many times its timeout ends the drainer
DRAIN_STALL_S: Final = 300.0  # a main thread that stands still for so long ends it too
FAULT_MAX_S: Final = 3600.0  # a game day ends by itself
START_READ_TRIES_COUNT: Final = 6  # of a start, before what the disk does not give is lost
START_READ_AGAIN_S: Final = 1.0
UNREAD_TRIES_COUNT: Final = 10  # of a lane, some 40 s, before a page that cannot be read is lost
UNREAD_FILES_COUNT: Final = 256  # of which that is counted at a time
REJECT_GUARD_RECORDS: Final = 100  # the guard looks at the last so many records, or more
REJECT_GUARD_SHARE: Final = 0.5  # a larger share of refused ones is an outage, not bad records
DEAD_LETTERS_MAX: Final = 100_000  # of a route; then it is parked as ``dead-letter-quota``
DEAD_LETTERS_ALARM_RECORDS: Final = 1_000  # from so many on status says so
PRODUCER_TEXT_MAX_CHARS: Final = 100  # in a dead letter
TRACE_TEXT_MAX_CHARS: Final = 256
TRACES_PER_BATCH_MAX: Final = 16  # of sampled records, in a manifest and the history
WHERE_LSNS_MAX: Final = 1_000  # records asked for at a time, whether they are delivered
WHERE_REMEMBERED_MAX: Final = 4_096  # whose records are, so that asking again reads no log
REPLAYS_MAX: Final = 64  # of past ranges, interrupted and to be resumed
REPLAY_REFUSALS_SHOWN_MAX: Final = 20
AUDIT_NAMED_MAX: Final = 100  # differences of each kind that are named; counts are exact
AUDIT_STEP_RECORDS: Final = 2_000  # compared with a target at a time
AUDIT_FIGURES_S: Final = 10.0  # until ingest's figures have reached what is audited
DELIVERED_POLL_S: Final = 0.005  # who waits for a delivery asks again after this,
DELIVERED_POLL_CAP_S: Final = 0.25  # and ever more seldom up to this
TAIL_PAGE_RECORDS: Final = 500  # of an answer to ``drain.tail``,
TAIL_ANSWER_BYTES: Final = 384 * KIB  # which ends behind so many bytes of JSON,
TAIL_LOOKED_AT_RECORDS: Final = 4_000  # or so many records that were looked at for it,
TAIL_LOST_MAX: Final = 100  # or so many gaps
TAIL_VALUE_MAX_BYTES: Final = 320 * KIB  # a longer value is cut, and says how long it is
HALTED_LISTED_MAX: Final = 1_000  # refused records at which a lane stops, named at a time
REDRIVE_BATCH_MAX_RECORDS: Final = 500  # so that what is refused again is found within a moment
DEAD_LOG_FILE_BYTES: Final = 64 * MIB
PACKED_CHUNK_BYTES: Final = 256 * KIB  # before compression; what one flipped bit may cost
PACKED_CHUNK_RAW_MAX_BYTES: Final = 2 * GROUP_MAX_BYTES  # a chunk of one block, with its tables
PACKED_CHUNKS_MAX: Final = 65_536  # of a file
PACKED_MERGED_MAX_BYTES: Final = 256 * MIB  # before compression: no merged file gets larger
PACK_STEP_BYTES: Final = 1 * MIB  # written at once, between two looks at everything else
PACK_BYTES_PER_S: Final = 32 * MIB  # read for packing at most, before compression
PACK_SPARE_BYTES: Final = 16 * MIB  # of free room that packing leaves to ledger and dead log
PACK_EVERY_S: Final = 2.0  # so often it is asked whether there is something to pack
PACK_POOR_SHARE: Final = 0.5  # below such a share of payload a segment is packed early,
PACK_POOR_AFTER_S: Final = 30.0  # when it was needed for so long
SCRUB_BYTES_PER_S: Final = 64 * MIB  # read at most, so that who works beside it is not harmed
SCRUB_AHEAD_S: Final = 0.02  # shorter pauses are not made, but added up
PINNING_ROUTES_MAX: Final = 16  # so many are named with what they keep on disk
REPACK_AFTER_S: Final = 600.0
REPACK_AFTER_BYTES: Final = 1024 * MIB
DEAD_LOG_WASTE_BYTES: Final = 64 * MIB  # of bodies that are gone; and no more than the others
DEAD_LOG_PART_BYTES: Final = 8 * MIB  # of an entry that is written anew
DEAD_LOOK_EVERY_S: Final = 60.0  # at the age of dead letters, and at the dead log's size
CLOCK_JUMP_S: Final = 10.0  # between two looks, against the clock since boot
CLOCK_HELD_S: Final = 3600.0  # so long without a jump before dead letters go by their age
DEAD_LOG_ENTRY_MAX_BYTES: Final = 256 * MIB
ERROR_TEXT_MAX_CHARS: Final = 500
NOTES_MAX_COUNT: Final = 16  # reasons that a lane's sink counts; beyond, they are "other"
NOTE_MAX_CHARS: Final = 40
SHOWN_VALUE_MAX_CHARS: Final = 80  # of a wrong setting
TAIL_WINDOW_BYTES: Final = 256 * KIB
ASKS_CONNECTIONS_MAX: Final = 16
LAYOUTS_TOLD_MAX: Final = 3  # of a route, in ``progress``: for a ledger that went back
DROPS_KEPT_MAX: Final = 2_048  # routes that were given up, as the ledger remembers them
FORMER_LAYOUTS_KEPT_COUNT: Final = (
    4  # of a route; older ones are folded once nothing is left of them
)
LANE_IDLE_S: Final = 60.0  # how long a lane with nothing to do rests at most
FORMER_LANE_IDLE_S: Final = 30.0  # a lane of a former layout with nothing to do leaves
HEALING_TOGETHER_S: Final = (
    60.0  # lanes that find their target set back within this met one restore
)
PROBES_MAX: Final = 8  # targets that people ask at a time; a hung one holds its place
DEAD_LETTERS_PER_ANSWER: Final = 1_000
DEAD_LETTERS_SCANNED_PER_ANSWER: Final = 5_000

# --- delivery policy --------------------------------------------------------------------------
LATENCY_GOAL_S: Final = 0.5  # of an attempt: what the adaptive batch size steers to
ADAPTIVE_START_RECORDS: Final = 256  # the first batch at a target whose speed is not known
SLOW_START_RECORDS: Final = 32  # the first batch behind an outage; it doubles up to the former size
ADAPTIVE_GROW_SHARE: Final = 0.8  # of the goal; between the two the size rests
ADAPTIVE_CONTRACT_SHARE: Final = 1.25
ADAPTIVE_STEP_SHARE: Final = 8  # it grows by an eighth of the size that is known to be right
ADAPTIVE_LEFT_MIN_SHARE: Final = 0.25  # one contraction leaves no less than this share ...
ADAPTIVE_LEFT_MAX_SHARE: Final = 0.75  # ... and no more
ADAPTIVE_BELIEF_SHARE: Final = (
    0.995  # of what was found of a target's fixed time, after each attempt
)
ADAPTIVE_DOUBT_SHARE: Final = 1 / 128  # what was too large is tried again, after about 40 attempts
ATTEMPT_TIMEOUT_FLOOR_S: Final = 10.0
ATTEMPT_TIMES_COUNT: Final = 4.0  # times what nearly every attempt took
ATTEMPT_TIMES_MAX: Final = 64.0  # it doubles with each attempt without an answer
ATTEMPT_DEVIATIONS_COUNT: Final = 4.0  # mean and so many mean deviations: nearly every attempt
RETRY_AFTER_MAX_S: Final = 300.0  # a target that asks for a longer pause is asked again earlier
BATCHES_PER_ANSWER: Final = 1_000
FROZEN_MAX_BYTES: Final = 256 * MIB  # of what one revision sends, as it is kept
TRANSFORM_OUTPUT_MAX_RECORDS: Final = 1_000_000  # of one batch
SHAPING_PROBES_MAX: Final = 4_096  # calls of a transform in search of the records it fails at
WINDOW_MARGIN_SHARE: Final = 0.05  # of a window: the target's clock may run faster than ours
RECORD_ATTEMPTS_MAX: Final = 10  # of a record that the target refuses for now; then a dead letter
BREAKER_BASE_S: Final = 0.5
BREAKER_FLOOR_S: Final = 0.02
BREAKER_CAP_S: Final = 30.0
BREAKER_FAILURES_COUNT: Final = 3  # in a row, of the kinds that may be over at once
BREAKER_LOOK_S: Final = 1.0  # a lane looks again whether a probe under way has ended
BREAKER_SPREAD_S: Final = 0.5  # lanes begin again within this time behind a probe that worked
RATE_BURST_S: Final = 1.0  # a bucket holds what its rate gives in this time
RATE_MEMORY_S: Final = 10.0  # rates in status are means over about so long
RATE_LEAST_PER_S: Final = 0.01  # less than so is none
ETA_MAX_S: Final = 366 * 24 * 3600.0  # later is never
LIVE_AGE_S: Final = 5.0  # a route whose oldest record is younger is live, without a goal_age
LIVE_PAUSE_MAX_S: Final = 5.0  # of a route with a backlog, for the live ones beside it
SCHEDULE_LOOK_S: Final = 30.0  # a closed window is looked at again: clocks and offsets change
WORKERS_GROW_LAG_S: Final = 2.0  # a backlog of more seconds of work wants another worker
WORKERS_SHRINK_LAG_S: Final = 0.25
WORKERS_GROW_AFTER_S: Final = 1.0  # behind the last change
WORKERS_SHRINK_AFTER_S: Final = 10.0

# --- the HTTP sink ----------------------------------------------------------------------------
HTTP_RECORDS_PER_REQUEST_MAX: Final = 10_000  # by default
HTTP_BYTES_PER_REQUEST: Final = 10 * MIB  # of a body as it is sent, by default
HTTP_BYTES_PER_REQUEST_MAX: Final = 128 * MIB  # the highest that can be set
HTTP_CONNECT_TIMEOUT_S: Final = 5.0
HTTP_KEEP_ALIVE_S: Final = 4.0  # of an unused connection: servers close theirs after 5 s or later
HTTP_WINDOW_MAX_S: Final = 366 * 24 * 3600.0
HTTP_ANSWER_MAX_BYTES: Final = 16 * MIB  # more of it is not read
HTTP_READ_BYTES: Final = 64 * KIB  # at a time, between two looks at the clock
HTTP_SEND_BYTES: Final = 256 * KIB
SECRET_MAX_BYTES: Final = 64 * KIB

# --- pages and processes ----------------------------------------------------------------------
PAGE_SLOT_BYTES: Final = 4 * KIB
FIGURES_OFFSET_BYTES: Final = 2 * PAGE_SLOT_BYTES  # in ingest.page: behind the slots of the hint
FIGURES_SLOT_BYTES: Final = 2048 * KIB
PROGRESS_SLOT_BYTES: Final = 32 * PAGE_SLOT_BYTES
PAGE_ERRORS_MAX_BYTES: Final = 64 * KIB  # of all routes together, in ``drain.page``
PAGE_NOTES_MAX_BYTES: Final = 128 * KIB  # of what sinks note, of all routes, in ``drain.page``
PAGE_LANES_MAX_BYTES: Final = 256 * KIB  # of all routes' lanes together, in ``drain.page``
PAGE_MARKS_MAX_COUNT: Final = 2_048  # of all quotas together, in ``ingest.page``
RECOVERY_LISTED_MAX: Final = 100  # losses and notes in the figures; the loss report has all
FIGURES_EVERY_S: Final = 0.1
CHILD_BACKOFF_BASE_S: Final = 0.1
CHILD_BACKOFF_CAP_S: Final = 10.0
CHILD_SETTLED_PAUSES_COUNT: Final = 10  # served as long as so many pauses: start anew
CHILD_STOP_S: Final = 15.0
CLOCK_NS_PER_S: Final = 1_000_000_000

assert (  # a route's names and figures
    ROUTES_MAX * 1_200 + PAGE_ERRORS_MAX_BYTES + PAGE_LANES_MAX_BYTES + PAGE_NOTES_MAX_BYTES
    < FIGURES_SLOT_BYTES
)
assert (  # quotas beside them, in ``ingest.page``
    ROUTES_MAX * 1_200 + STREAMS_MAX * 512 + PAGE_MARKS_MAX_COUNT * 40 < FIGURES_SLOT_BYTES
)
assert (  # ids of six digits; of each layout the mark of a fallback
    ROUTES_MAX * (3 * 16 + 7 + 22 * LAYOUTS_TOLD_MAX) < PROGRESS_SLOT_BYTES - 1024
)
assert (  # an answer is one line, in base64
    TAIL_ANSWER_BYTES + TAIL_VALUE_MAX_BYTES * 4 // 3 + 6 * (HEADERS_MAX_BYTES + 2 * KEY_MAX_BYTES)
    < CONTROL_LINE_MAX_BYTES - 16 * KIB
)
assert ROUTES_MAX * (20 + 11 + 20) + STANDS_TOLD_MAX_COUNT * 26 < PROGRESS_SLOT_BYTES - 1024
assert RECORD_MAX_BYTES < REQUEST_MAX_BYTES < GROUP_MAX_BYTES
assert SUBMIT_AT_ONCE_REQUESTS < WINDOW_REQUESTS
assert SUBMIT_TOGETHER_RECORDS <= REFUSALS_KEPT_PER_REQUEST
assert REWIND_PAUSE_S >= PROGRESS_EVERY_S + 1.5  # the drainer tells, and ingest looks each second
assert SNAPSHOT_MAX_BYTES + GROUP_MAX_BYTES + 4 * ALIGNMENT_MAX_BYTES < SEGMENT_BYTES
assert SNAPSHOT_BLOCK_MAX_BYTES <= SNAPSHOT_MAX_BYTES
assert FRESH_ZERO_BYTES > GROUP_MAX_BYTES + 2 * ALIGNMENT_MAX_BYTES  # the steps end that far above
assert SEGMENT_BYTES % ALIGNMENT_MAX_BYTES == 0
assert ALIGNMENT_MIN_BYTES <= ALIGNMENT_MAX_BYTES
assert WINDOW_ENTRIES_MAX * 16 + SESSIONS_MAX * 256 + REFUSALS_MAX * 32 < SNAPSHOT_MAX_BYTES
assert REFUSALS_KEPT_PER_REQUEST <= REFUSALS_PER_SESSION_MAX <= REFUSALS_MAX
assert SUBSCRIBERS_MAX < CONNECTIONS_SPARE_COUNT
assert ADAPTIVE_GROW_SHARE * (1 + 1 / ADAPTIVE_STEP_SHARE) < ADAPTIVE_CONTRACT_SHARE
assert 0 < ADAPTIVE_LEFT_MIN_SHARE < ADAPTIVE_LEFT_MAX_SHARE < 1
assert SLOW_START_RECORDS <= ADAPTIVE_START_RECORDS <= BATCH_MAX_RECORDS
assert WORKERS_SHRINK_LAG_S < WORKERS_GROW_LAG_S
assert WORKERS_GROW_AFTER_S < WORKERS_SHRINK_AFTER_S  # quick to help, slow to leave
assert ATTEMPT_TIMEOUT_FLOOR_S < ATTEMPT_TIMEOUT_S
assert HTTP_BYTES_PER_REQUEST < HTTP_BYTES_PER_REQUEST_MAX < FROZEN_MAX_BYTES
