-- own_pending: look at what this consumer holds, without a delivery: reading with id 0 would raise
-- the delivery counts.
-- KEYS[1] stream or lane   ARGV[1] group   ARGV[2] consumer   ARGV[3] first id   ARGV[4] limit
-- Returns {entries, ids of which the entry is gone, last id looked at or ''}. What is gone is
-- acknowledged: 6.2 would keep it pending for ever.
local pending = redis.call('XPENDING', KEYS[1], ARGV[1], ARGV[3], '+', ARGV[4], ARGV[2])
local entries, gone, last = {}, {}, ''
for _, held in ipairs(pending) do
  last = held[1]
  local entry = redis.call('XRANGE', KEYS[1], last, last)[1]
  if entry then
    entries[#entries + 1] = entry
  else
    redis.call('XACK', KEYS[1], ARGV[1], last)
    gone[#gone + 1] = last
  end
end
return {entries, gone, last}
