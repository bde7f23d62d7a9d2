-- open_group: make the stream and a group of it, unless they are there, and agree on the queue's rules.
-- KEYS[1] stream   KEYS[2] what all users agree on (hash)
-- ARGV[1] group, or '' for none   ARGV[2] where a new group starts (`0` or `$`)
-- ARGV[3] a new generation's name
-- ARGV[4] `new`; `again`: the group was there and is gone, so begin at its floor; `first`: make it only
-- where there is no group at all
-- ARGV[5..] rules: name, value, name, value, …
-- Returns {generation of the queue, generation of the group}, or {'mismatch', name, value in force}.
for i = 5, #ARGV, 2 do
  local value = redis.call('HGET', KEYS[2], ARGV[i])
  if value and value ~= ARGV[i + 1] then return {'mismatch', ARGV[i], value} end
end
local function parts(id)
  local ms, seq = string.match(id, '^(%d+)-(%d+)$')
  return tonumber(ms), tonumber(seq)
end

-- At the floor, unless the stream has gone back behind it (a failover, a restored copy): then all of it
-- is to be seen. What is settled was deleted, so that repeats little.
local function again(stream, group)
  local floor = redis.call('HGET', KEYS[2], 'floor:' .. group)
  if redis.call('EXISTS', stream) == 0 then return '0' end
  if not floor then return ARGV[2] end
  local info, last = redis.call('XINFO', 'STREAM', stream), '0-0'
  for i = 1, #info, 2 do
    if info[i] == 'last-generated-id' then last = info[i + 1] end
  end
  local ms, seq = parts(floor)
  local last_ms, last_seq = parts(last)
  if last_ms < ms or (last_ms == ms and last_seq < seq) then return '0' end
  return floor
end

redis.call('XLEN', KEYS[1])  -- refuses a key that is no stream before anything is written
-- XACK passes under a full memory, and what follows a first write does: the consumers that would make
-- room must be able to start.
redis.pcall('XACK', KEYS[1], ARGV[1], '0-0')
local made, wanted = false, ARGV[1] ~= ''
if ARGV[4] == 'first' and redis.call('EXISTS', KEYS[1]) == 1 then
  wanted = #redis.call('XINFO', 'GROUPS', KEYS[1]) == 0
end
if wanted then
  local start = ARGV[2]
  if ARGV[4] == 'again' then start = again(KEYS[1], ARGV[1]) end
  local reply = redis.pcall('XGROUP', 'CREATE', KEYS[1], ARGV[1], start, 'MKSTREAM')
  if not reply.err then
    made = true
  elseif not string.find(reply.err, 'BUSYGROUP', 1, true) then
    return reply
  end
end
for i = 5, #ARGV, 2 do redis.call('HSETNX', KEYS[2], ARGV[i], ARGV[i + 1]) end
redis.call('HSETNX', KEYS[2], 'generation', ARGV[3])
local group = ''
if wanted then
  local name = 'group:' .. ARGV[1]
  if made then
    redis.call('HSET', KEYS[2], name, ARGV[3])
  else
    redis.call('HSETNX', KEYS[2], name, ARGV[3])
  end
  group = redis.call('HGET', KEYS[2], name)
end
return {redis.call('HGET', KEYS[2], 'generation'), group}
