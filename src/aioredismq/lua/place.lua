-- place: where a group stands, written down beside it: should the group be lost, it is made again there.
-- Up to where it has read, what of that is pending, and the delivery counts that are marks. What is
-- settled later and stays in the stream is noted in a string, until the place is written down anew.
local LISTED = 1000    -- pending entries: some 0.3 ms of the server's time to list
local NOTED = 65536    -- bytes, some 4000 ids, between two such lists
local MARKED = 500     -- see recover.lua

-- What was written down; nil when it was not, or when somebody has put something else there.
local function read_place(agreed, group)
  local is_packed, place = pcall(cmsgpack.unpack, redis.call('HGET', agreed, 'place:' .. group) or '')
  if not is_packed or type(place) ~= 'table' then return end
  local last, is_whole, ids, marks = unpack(place, 1, 4)
  local function is_id(id) return type(id) == 'string' and string.match(id, '^%d+%-%d+$') end
  if not is_id(last) or type(ids) ~= 'table' or type(marks) ~= 'table' then return end
  for _, id in ipairs(ids) do
    if not is_id(id) then return end
  end
  return last, is_whole, ids, marks
end

local function write_place(stream, agreed, noted, group)
  local page = redis.pcall('XPENDING', stream, group, '-', '+', LISTED)
  if page.err then return page end
  local ids, marks = {}, {}
  for at, pending in ipairs(page) do
    ids[at] = pending[1]
    if pending[4] >= MARKED then
      marks[#marks + 1] = pending[1]
      marks[#marks + 1] = pending[4]
    end
  end
  local _, last = other_groups(stream, group)
  local is_whole = #page < LISTED
  -- What is not listed has to be read again, and all that lies between.
  if not is_whole then last = ids[#ids] end
  local name, packed = 'place:' .. group, cmsgpack.pack({last, is_whole, ids, marks})
  if redis.call('HGET', agreed, name) ~= packed then
    local reply = redis.pcall('HSET', agreed, name, packed)
    if type(reply) == 'table' then return end  -- a full memory: the notes stay
  end
  if redis.call('EXISTS', noted) == 1 then redis.call('DEL', noted) end
end

local function note(stream, agreed, noted, group, ids)
  local length = redis.pcall('APPEND', noted, table.concat(ids, ' ') .. ' ')
  if type(length) == 'number' and length > NOTED then write_place(stream, agreed, noted, group) end
end
