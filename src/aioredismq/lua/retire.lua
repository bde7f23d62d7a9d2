-- retire: remove what time has passed over: the names of consumers that are gone (nothing pending in
-- stream or lane, and inactive for long; a live one that merely had nothing to do gets its name back
-- with its next delivery), and dead letters older than they are to be kept.
-- KEYS[1] stream   KEYS[2] lane   KEYS[3] dead letters
-- ARGV[1] group   ARGV[2] own consumer   ARGV[3] inactive for (ms)   ARGV[4] letters are kept (ms), or ''
-- Returns how many names were removed.
local function names(key)
  local reply = redis.pcall('XINFO', 'CONSUMERS', key, ARGV[1])
  if reply.err then return {} end
  local found = {}
  for _, info in ipairs(reply) do
    local entry = {}
    for i = 1, #info, 2 do entry[info[i]] = info[i + 1] end
    if entry.name ~= ARGV[2] then found[entry.name] = entry end
  end
  return found
end

local limit = tonumber(ARGV[3])
local function is_gone(entry)
  return not entry or (entry.pending == 0 and entry.idle >= limit)
end

local in_stream, in_lane = names(KEYS[1]), names(KEYS[2])
local candidates = {}
for name in pairs(in_stream) do candidates[name] = true end
for name in pairs(in_lane) do candidates[name] = true end
local removed = 0
for name in pairs(candidates) do
  if is_gone(in_stream[name]) and is_gone(in_lane[name]) then
    redis.pcall('XGROUP', 'DELCONSUMER', KEYS[1], ARGV[1], name)
    redis.pcall('XGROUP', 'DELCONSUMER', KEYS[2], ARGV[1], name)
    removed = removed + 1
  end
end
if ARGV[4] ~= '' then
  local time = redis.call('TIME')
  local oldest = time[1] * 1000 + math.floor(time[2] / 1000) - tonumber(ARGV[4])
  redis.call('XTRIM', KEYS[3], 'MINID', string.format('%.0f', oldest))
end
return removed
