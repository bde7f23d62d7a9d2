-- floor: where a group would have to be made again to miss nothing and repeat little: just below its
-- lowest pending entry, else behind the last one delivered to it.
local function floor(stream, group)
  local lowest = redis.call('XPENDING', stream, group, '-', '+', 1)[1]
  if lowest then
    local ms, seq = string.match(lowest[1], '^(%d+)-(%d+)$')
    if seq ~= '0' then return ms .. '-' .. string.format('%.0f', tonumber(seq) - 1) end
    return string.format('%.0f', tonumber(ms) - 1) .. '-18446744073709551615'
  end
  for _, info in ipairs(redis.call('XINFO', 'GROUPS', stream)) do
    local found, last
    for i = 1, #info, 2 do
      if info[i] == 'name' and info[i + 1] == group then found = true end
      if info[i] == 'last-delivered-id' then last = info[i + 1] end
    end
    if found then return last end
  end
  return '0-0'
end
