-- move: take entries off this consumer and store them elsewhere, atomically: in the group's lane
-- (again at once, or handed back), in its delayed set (again later), or with the dead letters.
-- Owner-checked: an entry this consumer does not hold any more is left alone.
-- The first write is XACK, so that it also works under a full memory.
-- with: settled
-- with: remove
-- KEYS[1] source (stream or lane)   KEYS[2] lane   KEYS[3] delayed set   KEYS[4] delayed fields
-- KEYS[5] dead letters
-- ARGV[1] group   ARGV[2] consumer   ARGV[3] bell channel
-- ARGV[4..] for each entry: its id, where (`lane`, `later`, `dead`; `keep` acknowledges it and leaves
-- it in its stream), delay (ms, for `later`), how many field elements, then name, value, name, value, …
-- Returns for each entry 1, or 0 when it is not held (any more: the stream or group may be gone).
local answers, taken = {}, {}
local ring = false
local now
local at, last = 4, #ARGV
while at <= last do
  local id, where, delay, elements = ARGV[at], ARGV[at + 1], ARGV[at + 2], tonumber(ARGV[at + 3])
  local from, to = at + 4, at + 3 + elements
  at = to + 1
  local pending = redis.pcall('XPENDING', KEYS[1], ARGV[1], id, id, 1, ARGV[2])
  if pending.err and not string.find(pending.err, 'NOGROUP', 1, true) then return pending end
  if pending.err or #pending == 0 then
    answers[#answers + 1] = 0
  else
    redis.call('XACK', KEYS[1], ARGV[1], id)
    if where == 'lane' then
      redis.call('XADD', KEYS[2], '*', unpack(ARGV, from, to))
      ring = true
    elseif where == 'dead' then
      redis.call('XADD', KEYS[5], '*', unpack(ARGV, from, to))
    elseif where == 'later' then
      if not now then
        local time = redis.call('TIME')
        now = time[1] * 1000 + math.floor(time[2] / 1000)
      end
      local due = now + tonumber(delay)
      local first = redis.call('ZRANGE', KEYS[3], 0, 0, 'WITHSCORES')
      local member = KEYS[1] .. ' ' .. id
      redis.call('ZADD', KEYS[3], string.format('%.0f', due), member)
      redis.call('HSET', KEYS[4], member, cmsgpack.pack({unpack(ARGV, from, to)}))
      if not first[2] or due < tonumber(first[2]) then ring = true end
    end
    if where ~= 'keep' then taken[#taken + 1] = id end
    answers[#answers + 1] = 1
  end
end
if #taken > 0 then remove(KEYS[1], ARGV[1], taken) end
if ring then redis.pcall('PUBLISH', ARGV[3], '') end
return answers
