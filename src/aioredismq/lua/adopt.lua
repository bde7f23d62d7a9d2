-- adopt: let a consumer have what it holds of a group that was made again: that is pending under
-- nobody's name until its holder, or a recovery, claims it.
local NOBODY = 'nobody'
local function adopt(key, group, consumer, id)
  if #redis.call('XPENDING', key, group, id, id, 1, NOBODY) == 0 then return false end
  redis.call('XCLAIM', key, group, consumer, 0, id, 'JUSTID')
  return true
end
