-- take: give a consumer what has come back to its group, as far as it has room.
-- First what the lane holds: that read also proves that the lane's group exists, and lets the rest
-- pass under a full memory. Then what is due moves to the lane; then the room that is left.
-- KEYS[1] lane   KEYS[2] delayed set   KEYS[3] delayed fields
-- ARGV[1] group   ARGV[2] consumer   ARGV[3] room (never 0: COUNT 0 would deliver everything)
-- Returns the entries, the milliseconds until the next one is due (-1: none waits), and whether the
-- lane still holds undelivered entries (1, 0).
local room = tonumber(ARGV[3])

local function try(count)
  return redis.pcall(
    'XREADGROUP', 'GROUP', ARGV[1], ARGV[2], 'COUNT', count, 'STREAMS', KEYS[1], '>')
end

local function read(count)
  local reply = try(count)
  if reply and reply.err and string.find(reply.err, 'NOGROUP', 1, true) then
    redis.call('XGROUP', 'CREATE', KEYS[1], ARGV[1], '0', 'MKSTREAM')
    reply = try(count)
  end
  if not reply then return {} end
  if reply.err then error(reply.err) end
  if not reply[1] then return {} end
  return reply[1][2]
end

if redis.call('EXISTS', KEYS[1], KEYS[2]) == 0 then return {{}, -1, 0} end

local entries = read(room)
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local left = room - #entries
if left > 0 then
  local due = redis.call(
    'ZRANGEBYSCORE', KEYS[2], '-inf', string.format('%.0f', now), 'LIMIT', 0, left)
  for _, member in ipairs(due) do
    local packed = redis.call('HGET', KEYS[3], member)
    redis.call('ZREM', KEYS[2], member)
    redis.call('HDEL', KEYS[3], member)
    if packed then redis.call('XADD', KEYS[1], '*', unpack(cmsgpack.unpack(packed))) end
  end
  if #due > 0 then
    for _, entry in ipairs(read(left)) do entries[#entries + 1] = entry end
  end
end

local wait = -1
local first = redis.call('ZRANGE', KEYS[2], 0, 0, 'WITHSCORES')
if first[2] then wait = math.max(0, tonumber(first[2]) - now) end
local more = 0
if #entries >= room then
  for _, info in ipairs(redis.call('XINFO', 'GROUPS', KEYS[1])) do
    local last
    for i = 1, #info, 2 do
      if info[i] == 'last-delivered-id' then last = info[i + 1] end
    end
    if #redis.call('XRANGE', KEYS[1], '(' .. last, '+', 'COUNT', 1) > 0 then more = 1 end
  end
end
return {entries, wait, more}
