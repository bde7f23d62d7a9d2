-- sweep: take off a page of the stream what every group has settled: what a group that is gone has held
-- back. Without any group everything stays: it is for those to come.
-- with: settled
-- KEYS[1] stream   KEYS[2] what all users agree on (hash)
-- ARGV[1] id to begin with   ARGV[2] entries a page   ARGV[3] ms since the beginning of the last sweep,
-- whoever made it, within which none begins; 0: whenever it was
-- Returns {id to go on with, or '' at the end, how many were taken off}.
if redis.call('EXISTS', KEYS[1]) == 0 then return {'', 0} end
if ARGV[1] == '-' and ARGV[3] ~= '0' then
  local time = redis.call('TIME')
  local now = time[1] * 1000 + math.floor(time[2] / 1000)
  local since = now - (tonumber(redis.call('HGET', KEYS[2], 'swept') or '') or 0)
  if since >= 0 and since < tonumber(ARGV[3]) then return {'', 0} end
  redis.pcall('HSET', KEYS[2], 'swept', string.format('%.0f', now))
end
local groups = other_groups(KEYS[1], false)
if #groups == 0 then return {'', 0} end
local ids, last = {}, ''
local page = redis.call('XRANGE', KEYS[1], ARGV[1], '+', 'COUNT', ARGV[2])
for _, entry in ipairs(page) do
  local ms, seq = parts(entry[1])
  for _, group in ipairs(groups) do
    -- Behind the slowest group nothing can be settled by all.
    if group[2] < ms or (group[2] == ms and group[3] < seq) then page = {} end
  end
  if #page == 0 then break end
  ids[#ids + 1] = entry[1]
end
local settled = settled_by(KEYS[1], groups, ids)
if #settled > 0 then redis.call('XDEL', KEYS[1], unpack(settled)) end
if #page == tonumber(ARGV[2]) then last = '(' .. ids[#ids] end
return {last, #settled}
