-- take: give a consumer what has come back to its group, as far as it has room.
-- First what the lane holds: that read also proves that the lane's group exists, and lets the rest
-- pass under a full memory. Then what is due moves to the lane; then the room that is left.
-- Delayed messages of the stream itself move to the stream, for every group.
-- What somebody has put among the delayed fields that is none of ours becomes a body as it is: it is
-- put aside as what cannot be decoded, and holds up nobody.
-- with: birth
-- with: words
-- KEYS[1] lane   KEYS[2] delayed set of the group   KEYS[3] its fields
-- KEYS[4] stream   KEYS[5] delayed set of the stream   KEYS[6] its fields
-- ARGV[1] group   ARGV[2] consumer   ARGV[3] room (never 0: COUNT 0 would deliver everything)
-- Returns the entries, the milliseconds until the next one is due (-1: none waits), whether the lane
-- still holds undelivered entries (1, 0), and the server's time (ms).
local room = tonumber(ARGV[3])

local function try(count)
  return redis.pcall(
    'XREADGROUP', 'GROUP', ARGV[1], ARGV[2], 'COUNT', count, 'STREAMS', KEYS[1], '>')
end

local function read(count)
  local reply = try(count)
  if reply and reply.err and string.find(reply.err, 'NOGROUP', 1, true) then
    begin(KEYS[1])
    redis.call('XGROUP', 'CREATE', KEYS[1], ARGV[1], '0', 'MKSTREAM')
    reply = try(count)
  end
  if not reply then return {} end
  if reply.err then error(reply.err) end
  if not reply[1] then return {} end
  return reply[1][2]
end

local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)

-- Stores packed fields in a stream; what is refused is returned.
local function store(stream, packed)
  local is_packed, fields = pcall(cmsgpack.unpack, packed)
  local stored
  if is_packed and type(fields) == 'table' and #fields <= MOST_WORDS then
    stored = redis.pcall('XADD', stream, new_id(stream), unpack(fields))
  end
  if not stored or type(stored) == 'table' and stored.err then
    stored = redis.pcall('XADD', stream, new_id(stream), 'body', packed)
  end
  if type(stored) == 'table' and stored.err then return stored end
end

-- Moves what is due to a stream, some at a time, and says how many.
local function promote(set, fields, stream, limit)
  local due = redis.call(
    'ZRANGEBYSCORE', set, '-inf', string.format('%.0f', now), 'LIMIT', 0, limit)
  for _, member in ipairs(due) do
    local packed = redis.call('HGET', fields, member)
    local when = redis.call('ZSCORE', set, member)
    redis.call('ZREM', set, member)
    if packed then
      local failure = store(stream, packed)
      if failure then
        redis.call('ZADD', set, when, member)  -- Redis takes no write back by itself
        error(failure.err)
      end
    end
    redis.call('HDEL', fields, member)
  end
  return #due
end

local wait = -1
local function look_ahead(set)
  local first = redis.call('ZRANGE', set, 0, 0, 'WITHSCORES')
  if first[2] then
    local left = math.max(0, tonumber(first[2]) - now)
    if wait < 0 or left < wait then wait = left end
  end
end

local entries, more = {}, 0
if redis.call('EXISTS', KEYS[1], KEYS[2]) > 0 then
  entries = read(room)
  local left = room - #entries
  if left > 0 and promote(KEYS[2], KEYS[3], KEYS[1], left) > 0 then
    for _, entry in ipairs(read(left)) do entries[#entries + 1] = entry end
  end
  look_ahead(KEYS[2])
  if #entries >= room then
    for _, info in ipairs(redis.call('XINFO', 'GROUPS', KEYS[1])) do
      local last
      for i = 1, #info, 2 do
        if info[i] == 'last-delivered-id' then last = info[i + 1] end
      end
      if #redis.call('XRANGE', KEYS[1], '(' .. last, '+', 'COUNT', 1) > 0 then more = 1 end
    end
  end
end
if redis.call('EXISTS', KEYS[5]) == 1 then
  promote(KEYS[5], KEYS[6], KEYS[4], 100)
  look_ahead(KEYS[5])
end
return {entries, wait, more, string.format('%.0f', now)}
