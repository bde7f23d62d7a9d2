-- remove: take settled entries off their stream once no group needs them any more.
-- Decided here, in the step that acknowledges: a client that remembers "one group only" would
-- delete what a group made meanwhile has not seen.
-- What stays, for others or because it is kept (`!`), is noted: a group that has to be made again must
-- not bring it again. That goes for what is settled while the group is gone, too; after destroy_group
-- it is not known any more, and nothing is noted. `agreed` and `noted` are nil for a lane, which only
-- one group reads.
local function remove(stream, agreed, noted, group, ids, kept)
  local others, last = other_groups(stream, group)
  local settled, rest = ids, {}
  if not last then
    if not agreed or not redis.call('HGET', agreed, 'group:' .. group) then return end
    settled, rest = {}, ids
  elseif #others > 0 then
    settled, rest = settled_by(stream, others, ids)
  end
  if #settled > 0 then redis.call('XDEL', stream, unpack(settled)) end
  if not agreed then return end
  for _, id in ipairs(kept or {}) do rest[#rest + 1] = id .. '!' end
  if #rest > 0 then note(stream, agreed, noted, group, rest) end
end
