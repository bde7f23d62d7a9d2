-- settled: which entries no group needs any more: each has been delivered past them and holds none; and
-- which some group needs.
local function field(info, name)
  for i = 1, #info, 2 do
    if info[i] == name then return info[i + 1] end
  end
end

local function parts(id)
  local ms, seq = string.match(id, '^(%d+)-(%d+)$')
  return tonumber(ms), tonumber(seq)
end

-- Names and last delivered ids of all groups but one, and of that one the last delivered id.
local function other_groups(stream, but)
  local others, last = {}, nil
  for _, info in ipairs(redis.call('XINFO', 'GROUPS', stream)) do
    local name = field(info, 'name')
    if name == but then
      last = field(info, 'last-delivered-id')
    else
      others[#others + 1] = {name, parts(field(info, 'last-delivered-id'))}
    end
  end
  return others, last
end

local function settled_by(stream, groups, ids)
  local settled, rest = {}, {}
  for _, id in ipairs(ids) do
    local ms, seq = parts(id)
    local needed = false
    for _, group in ipairs(groups) do
      if group[2] < ms or (group[2] == ms and group[3] < seq)
          or #redis.call('XPENDING', stream, group[1], id, id, 1) > 0 then
        needed = true
        break
      end
    end
    local where = needed and rest or settled
    where[#where + 1] = id
  end
  return settled, rest
end
