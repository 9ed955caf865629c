"""What runs inside the server: three scripts, and the keys that they work on.

A script is one atomic step of the server: its writes reach the append-only file, replicas and
snapshots together, or not at all. So entries and progress row move as one transaction. Beside the
stream ``S`` lies one hash, in the same slot of a cluster:

    field               value
    log                 the log id (32 hex digits) of the stream's one owner
    route               its route id
    high                the highest LSN that we added
    row:LAYOUT.LANE     the progress row: batch_no rev_id owner hi_lsn anchor_crc anchor_ns dead_rev

Entries have the ids ``LSN-0``. The server takes no id at or below the highest that it ever had,
and keeps that when entries are trimmed: what is in the stream already is passed over, also where
the hash was lost. A higher id of somebody else would let all of ours be passed over: then nothing
is written. A record whose LSN is passed gets ``HIGHEST-n`` instead: a redriven one, and what a
transform made in another order or of one LSN; the next ordinary one stands above it. LSNs are
compared as decimal texts: they have 63 bits, and the numbers of Lua have 53.
"""

from typing import Final

from wald.model import NO_REVISION, Anchor, LaneKey, ProgressRow

OURS: Final = "ours"
_ROW_WORDS: Final = 7

_LAST = """
local function above(a, b)
  return #a > #b or (#a == #b and a > b)
end

local function last_id()
  local info = redis.pcall('XINFO', 'STREAM', KEYS[1])
  if info.err then
    if string.find(info.err, 'no such key', 1, true) then return '0-0' end
    return nil, info
  end
  for i = 1, #info, 2 do
    if info[i] == 'last-generated-id' then return info[i + 1] end
  end
end

-- the log id in the entry of the highest id; '' if it has none, or is not there any more
local function log_of(last)
  local found = redis.call('XREVRANGE', KEYS[1], '+', '-', 'COUNT', 1)
  if #found == 0 or found[1][1] ~= last then return '' end
  local fields = found[1][2]
  for i = 1, #fields, 2 do
    if fields[i] == 'log_id' then return fields[i + 1] end
  end
  return ''
end

local function lsn_of(id)
  return string.match(id, '^(%d+)')
end
"""

# KEYS: stream, hash. ARGV: row field.
# -> last id, log, route, row, whose the newest entry is if it stands above all that we added
READ = f"""{_LAST}
local last, failed = last_id()
if failed then return failed end
local held = redis.call('HMGET', KEYS[2], 'log', 'route', ARGV[1], 'high')
local newest = false
if above(lsn_of(last), held[4] or '0') then newest = log_of(last) end
return {{last, held[1] or '', held[2] or '', held[3] or '', newest or 'ours'}}
"""

# KEYS: stream, hash. ARGV: log, route, row field, beginning of the row before ('' for none), the
# row after, maxlen ('' for none), then for each record: LSN, number of words, field, value, ...
# -> 'done', added, passed over | 'moved', row | 'owned', log, route | 'foreign', last id, log
DELIVER = f"""{_LAST}
local last, failed = last_id()
if failed then return failed end
local held = redis.call('HMGET', KEYS[2], 'log', 'route', ARGV[3], 'high')
if held[1] and (held[1] ~= ARGV[1] or held[2] ~= ARGV[2]) then
  return {{'owned', held[1], held[2] or ''}}
end
if above(lsn_of(last), held[4] or '0') and log_of(last) ~= ARGV[1] then
  return {{'foreign', last, held[1] or ''}}
end
local row = held[3] or ''
if (row == '') ~= (ARGV[4] == '') or string.sub(row, 1, #ARGV[4]) ~= ARGV[4] then
  return {{'moved', row}}
end
local passed = string.match(row, '^%S+ %S+ %S+ (%d+)') or '0'

-- a script is not taken back: what the user may not do fails before an entry is there
redis.call('HSET', KEYS[2], 'log', ARGV[1], 'route', ARGV[2])
if ARGV[6] ~= '' then redis.call('XTRIM', KEYS[1], 'MAXLEN', '~', '9223372036854775807') end

local high, extra = string.match(last, '^(%d+)-(%d+)$')
if above(passed, high) then high, extra = passed, '0' end
local there, added, known, at = high, 0, 0, 7
while at < #ARGV do
  local lsn, words = ARGV[at], tonumber(ARGV[at + 1])
  local redriven = not above(lsn, passed)
  if not redriven and not above(lsn, there) then
    known = known + 1
  elseif above(lsn, high) then
    high, extra = lsn, '0'
    redis.call('XADD', KEYS[1], lsn .. '-0', unpack(ARGV, at + 2, at + 1 + words))
    added = added + 1
  else
    extra = string.format('%d', extra + 1)
    local id, name = high .. '-' .. extra, redriven and 'redrive_of' or 'lsn'
    redis.call('XADD', KEYS[1], id, name, lsn, unpack(ARGV, at + 2, at + 1 + words))
    added = added + 1
  end
  at = at + 2 + words
end
if ARGV[6] ~= '' then redis.call('XTRIM', KEYS[1], 'MAXLEN', '~', ARGV[6]) end
redis.call('HSET', KEYS[2], 'high', high, ARGV[3], ARGV[5])
return {{'done', added, known}}
"""


# KEYS: stream. ARGV: log, id from, id to, '' for the entries whose id is their LSN or '1' for the
# others, at most so many entries and bytes a page
# -> '1' if there are more, the last id that was looked at, LSNs
HELD = """
local found, seen, bytes, from, last, page = {}, 0, 0, ARGV[2], '', nil
repeat
  page = redis.call('XRANGE', KEYS[1], from, ARGV[3], 'COUNT', 16)
  for _, entry in ipairs(page) do
    local own, lsn = false, nil
    for at = 1, #entry[2], 2 do
      local name, value = entry[2][at], entry[2][at + 1]
      bytes = bytes + #value
      if name == 'log_id' then own = value == ARGV[1] end
      if name == 'lsn' or name == 'redrive_of' then lsn = value end
    end
    last = entry[1]
    from = '(' .. last
    if own and (lsn ~= nil) == (ARGV[4] ~= '') then
      found[#found + 1] = lsn or string.match(last, '^(%d+)')
    end
  end
  seen = seen + #page
until #page < 16 or seen >= tonumber(ARGV[5]) or bytes >= tonumber(ARGV[6])
return {#page < 16 and '' or '1', last, unpack(found)}
"""


def row_field(key: LaneKey) -> str:
    """Return the field of the hash that holds a lane's row."""
    return f"row:{key.layout}.{key.lane}"


def row_text(row: ProgressRow) -> str:
    """Return a row as the text that the hash holds."""
    stands = standing(row.batch_no, row.rev_id, row.owner)
    crc, time_ns = row.anchor
    return f"{stands}{row.hi_lsn} {crc} {time_ns} {row.dead_rev.hex()}"


def standing(batch_no: int, rev_id: bytes, owner: int) -> str:
    """Return how the text of a row begins that an attempt stands on; empty if there is none."""
    return f"{batch_no} {rev_id.hex()} {owner} " if batch_no else ""


def parse_row(text: str) -> ProgressRow | None:
    """Return the row that a text of the hash says; None for an empty one.

    Raises:
        ValueError: it is no row of ours.
    """
    if not text:
        return None
    words = text.split(" ")
    if len(words) != _ROW_WORDS:
        msg = "the progress row beside the stream cannot be read"
        raise ValueError(msg)
    batch_no, rev_id, owner, hi_lsn, crc, time_ns, dead_rev = words
    rev, dead = bytes.fromhex(rev_id), bytes.fromhex(dead_rev)
    if len(rev) != len(NO_REVISION) or len(dead) != len(NO_REVISION):
        msg = "the progress row beside the stream cannot be read"
        raise ValueError(msg)
    anchor = Anchor(int(crc), int(time_ns))
    return ProgressRow(int(batch_no), rev, int(hi_lsn), anchor, int(owner), dead)


def key_beside(stream_key: str) -> str | None:
    """Return the name of the hash beside a stream, in the same slot; None if there cannot be one.

    A cluster hashes what stands between the first ``{`` and the next ``}``, if that is not empty,
    else the whole name.
    """
    opened = stream_key.find("{")
    closed = stream_key.find("}", opened + 1)
    if opened >= 0 and closed > opened + 1:
        return f"{stream_key}:wald"
    if "}" in stream_key or "{" in stream_key:
        return None
    return f"{{{stream_key}}}:wald"
