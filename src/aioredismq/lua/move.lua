-- move: take entries off this consumer and store them elsewhere, atomically: in the group's lane
-- (again at once, or handed back), in its delayed set (again later), or with the dead letters.
-- Owner-checked: an entry this consumer does not hold any more is left alone.
-- The first write is XACK, so that it also works under a full memory.
-- with: settled
-- with: place
-- with: remove
-- with: birth
-- KEYS[1] source (stream or lane)   KEYS[2] lane   KEYS[3] delayed set   KEYS[4] delayed fields
-- KEYS[5] dead letters; from the stream also: KEYS[6] what all users agree on (hash)
-- KEYS[7] what the group has settled since its place was written down
-- ARGV[1] group   ARGV[2] consumer   ARGV[3] bell channel
-- ARGV[4..] for each entry: its id, where (`lane`, `later`, `dead`; `keep` acknowledges it and leaves
-- it in its stream), delay (ms, for `later`), how many field elements, then name, value, name, value, …
-- Returns for each entry 1, or 0 when it is not held (any more: the stream or group may be gone); or
-- the error of the first that could not be stored: it and those behind it are held as before.
local answers, taken, kept = {}, {}, {}
local ring, failure = false, nil
local now

-- Asks what storing it depends on. Before it is acknowledged, as the answer may be refused: what is
-- raised behind that would leave it nowhere.
local function ask(where, id)
  if where == 'keep' then return end
  if where == 'later' then
    local time = redis.call('TIME')
    now = time[1] * 1000 + math.floor(time[2] / 1000)
    return
  end
  -- A dead letter that is handed back is one letter: not two because another group needs the old
  -- one, and none when it was redriven or discarded meanwhile.
  local again = where == 'dead' and KEYS[1] == KEYS[5]
  if again and #redis.call('XRANGE', KEYS[1], id, id) == 0 then return end
  local stream = where == 'lane' and KEYS[2] or KEYS[5]
  return stream, new_id(stream), again
end

local function delayed(id, delay, fields)
  local due = now + tonumber(delay)
  local member = KEYS[1] .. ' ' .. id
  local first = redis.pcall('ZRANGE', KEYS[3], 0, 0, 'WITHSCORES')
  if first.err then return first end
  local stored = redis.pcall('HSET', KEYS[4], member, cmsgpack.pack(fields))
  if type(stored) == 'table' and stored.err then return stored end
  local added = redis.pcall('ZADD', KEYS[3], string.format('%.0f', due), member)
  if type(added) == 'table' and added.err then
    redis.pcall('HDEL', KEYS[4], member)
    return added
  end
  if not first[2] or due < tonumber(first[2]) then ring = true end
end

-- Stores an entry where it goes; what is refused is returned, and nothing is stored.
local function store(where, id, delay, fields, stream, new, again)
  if where == 'later' then return delayed(id, delay, fields) end
  if not stream then return end
  local stored = redis.pcall('XADD', stream, new, unpack(fields))
  if type(stored) == 'table' and stored.err then return stored end
  if again then redis.call('XDEL', KEYS[1], id) end
  if where == 'lane' then ring = true end
end

local at, last = 4, #ARGV
while at <= last and not failure do
  local id, where, delay, elements = ARGV[at], ARGV[at + 1], ARGV[at + 2], tonumber(ARGV[at + 3])
  local from, to = at + 4, at + 3 + elements
  at = to + 1
  local pending = redis.pcall('XPENDING', KEYS[1], ARGV[1], id, id, 1, ARGV[2])
  if pending.err and not string.find(pending.err, 'NOGROUP', 1, true) then
    failure = pending
  elseif pending.err or #pending == 0 then
    answers[#answers + 1] = 0
  else
    local stream, new, again = ask(where, id)
    redis.call('XACK', KEYS[1], ARGV[1], id)
    failure = store(where, id, delay, {unpack(ARGV, from, to)}, stream, new, again)
    if failure then
      -- Redis takes no write back by itself: acknowledged and stored nowhere, it would be lost.
      redis.call('XCLAIM', KEYS[1], ARGV[1], ARGV[2], 0, id, 'IDLE', pending[1][3],
        'RETRYCOUNT', pending[1][4], 'FORCE', 'JUSTID')
    else
      local settled = where == 'keep' and kept or taken
      settled[#settled + 1] = id
      answers[#answers + 1] = 1
    end
  end
end
if #taken + #kept > 0 then remove(KEYS[1], KEYS[6], KEYS[7], ARGV[1], taken, kept) end
if ring then redis.pcall('PUBLISH', ARGV[3], '') end
return failure or answers
