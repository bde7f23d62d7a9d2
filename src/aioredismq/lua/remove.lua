-- remove: take settled entries off their stream once no group needs them any more.
-- Decided here, in the step that acknowledges: a client that remembers "one group only" would
-- delete what a group made meanwhile has not seen.
local function remove(stream, group, ids)
  local others, found = other_groups(stream, group)
  if not found then return end
  local settled = ids
  if #others > 0 then settled = settled_by(stream, others, ids) end
  if #settled > 0 then redis.call('XDEL', stream, unpack(settled)) end
end
