-- append: store a numbered batch of messages, all or nothing, and only once however often it is sent.
-- with: birth
-- KEYS[1] stream   KEYS[2] what this producer has sent (hash: batch number -> ids, and `low`)
-- with delayed messages also: KEYS[3] delayed set   KEYS[4] delayed fields
-- ARGV[1] batch number   ARGV[2] no number below this one will be sent again
-- ARGV[3] memory of the hash (ms)   ARGV[4] 1: renew it, 0: it was renewed lately   ARGV[5] bell
-- ARGV[6..] for each message: how many field elements, then name, value, name, value, …
-- In place of the number, `elements:delay:at:life` (ms, each may be empty): store it for later, and let
-- it expire.
-- Returns the ids, joined by blanks; the remembered ones when the batch is known.
-- Fails with STALE when the number is below `low`: its sender has given it up, so a late original
-- must not write.
local known = redis.call('HMGET', KEYS[2], 'low', ARGV[1])
if known[2] then return known[2] end
local low = tonumber(known[1] or ARGV[2])
if tonumber(ARGV[1]) < low then
  return redis.error_reply('STALE batch ' .. ARGV[1] .. ' was given up by its producer')
end

if known[1] == ARGV[2] and ARGV[4] == '0' and tonumber(ARGV[6]) == #ARGV - 6 then
  -- A lone message, as of who waits for each: what follows would do the same in a fifth more time.
  local id = redis.call('XADD', KEYS[1], 'NOMKSTREAM', '*', unpack(ARGV, 7))
  if id then
    redis.call('HSET', KEYS[2], ARGV[1], id)
    return id
  end
end

if KEYS[3] then
  -- What the delayed ones may be refused by is found out before anything is stored; this changes nothing.
  redis.call('HMGET', KEYS[4], '')
  redis.call('ZADD', KEYS[3], 'XX', 0, '')
end

local ids = {}
local new = new_id(KEYS[1])

local function keep(descriptor, from)
  local elements, delay, at, life = string.match(descriptor, '^(%d+):(%d*):(%d*):(%d*)$')
  local time = redis.call('TIME')
  local now = time[1] * 1000 + math.floor(time[2] / 1000)
  local to = from + tonumber(elements) - 1
  local fields = {unpack(ARGV, from, to)}
  if life ~= '' then
    fields[#fields + 1] = 'mq-expires'
    fields[#fields + 1] = string.format('%.0f', now + tonumber(life))
  end
  local due = at ~= '' and tonumber(at) or now + tonumber(delay ~= '' and delay or '0')
  if due <= now then
    ids[#ids + 1] = redis.call('XADD', KEYS[1], new, unpack(fields))
    new = '*'
    return to
  end
  local id = string.match(KEYS[2], ':sent:(.*)$') .. '-' .. ARGV[1] .. '-' .. #ids
  ids[#ids + 1] = id
  fields[#fields + 1] = 'mq-id'
  fields[#fields + 1] = id
  fields[#fields + 1] = 'mq-produced'
  fields[#fields + 1] = string.format('%.0f', now)
  local first = redis.call('ZRANGE', KEYS[3], 0, 0, 'WITHSCORES')
  redis.call('ZADD', KEYS[3], string.format('%.0f', due), id)
  redis.call('HSET', KEYS[4], id, cmsgpack.pack(fields))
  if not first[2] or due < tonumber(first[2]) then redis.pcall('PUBLISH', ARGV[5], '') end
  return to
end

local at, last = 6, #ARGV
while at <= last do
  local elements = tonumber(ARGV[at])
  if elements then
    ids[#ids + 1] = redis.call('XADD', KEYS[1], new, unpack(ARGV, at + 1, at + elements))
    new = '*'
    at = at + elements + 1
  else
    at = keep(ARGV[at], at + 1) + 1
  end
end

local answer = table.concat(ids, ' ')
local following = math.max(low, tonumber(ARGV[2]))  -- a late original says an old one
if known[1] and following == low then
  redis.call('HSET', KEYS[2], ARGV[1], answer)
else
  redis.call('HSET', KEYS[2], ARGV[1], answer, 'low', following)
end
while low < following do
  local forgotten = {}
  while low < following and #forgotten < 1000 do
    forgotten[#forgotten + 1] = low
    low = low + 1
  end
  redis.call('HDEL', KEYS[2], unpack(forgotten))
end
if ARGV[4] == '1' or not known[1] then redis.call('PEXPIRE', KEYS[2], ARGV[3]) end
return answer
