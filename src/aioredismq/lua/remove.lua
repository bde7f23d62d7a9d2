-- remove: take settled entries off their stream once no group needs them any more.
-- Decided here, in the step that acknowledges: a client that remembers "one group only" would
-- delete what a group made meanwhile has not seen. An id goes when every other group has been
-- delivered past it and does not hold it.
local function field(info, name)
  for i = 1, #info, 2 do
    if info[i] == name then return info[i + 1] end
  end
end

local function parts(id)
  local ms, seq = string.match(id, '^(%d+)-(%d+)$')
  return tonumber(ms), tonumber(seq)
end

local function remove(stream, group, ids)
  local others = {}
  local found = false
  for _, info in ipairs(redis.call('XINFO', 'GROUPS', stream)) do
    local name = field(info, 'name')
    if name == group then
      found = true
    else
      others[#others + 1] = {name, parts(field(info, 'last-delivered-id'))}
    end
  end
  if not found then return end
  if #others == 0 then
    redis.call('XDEL', stream, unpack(ids))
    return
  end
  local settled = {}
  for _, id in ipairs(ids) do
    local ms, seq = parts(id)
    local needed = false
    for _, other in ipairs(others) do
      if other[2] < ms or (other[2] == ms and other[3] < seq)
          or #redis.call('XPENDING', stream, other[1], id, id, 1) > 0 then
        needed = true
        break
      end
    end
    if not needed then settled[#settled + 1] = id end
  end
  if #settled > 0 then redis.call('XDEL', stream, unpack(settled)) end
end
