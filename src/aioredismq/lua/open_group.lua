-- open_group: make the stream and a group of it, unless they are there, and agree on the queue's rules.
-- A group that is gone is made again where it was: what it has settled does not come again, and what
-- it had pending is pending, under the name of who makes it as far as he holds it, else under nobody's.
-- with: birth
-- with: settled
-- with: place
-- with: adopt
-- KEYS[1] stream   KEYS[2] what all users agree on (hash)   KEYS[3] tombstones (hash)
-- KEYS[4] what the group has settled since its place was written down; KEYS[5..] the same of those beside it
-- ARGV[1] group, or '' for none   ARGV[2] where a new group starts (`0` or `$`)
-- ARGV[3], ARGV[4] the generations of queue and group, for as long as they have none
-- ARGV[5] `new`; `again`: the group was there and is gone, so begin where it was; `first`: make it only
-- where there is no group at all
-- ARGV[6] bell channel   ARGV[7] consumer   ARGV[8] ids it holds, with blanks between
-- ARGV[9..] for each group beside it: name, generation, as ARGV[4]; then rules: name, value, …
-- With `again`, where no group is left at all, those beside it are made in the same step: or what this
-- one settles before they are there would be taken off, and they would never see it.
-- Returns {generation of the queue, generation of the group, 1 when the group was made, else 0, the time},
-- {'mismatch', name, value in force}, or {'deleted'}: a generation was ended on purpose.
local rules = 9 + 2 * (#KEYS - 4)
for i = rules, #ARGV, 2 do
  local value = redis.call('HGET', KEYS[2], ARGV[i])
  if value and value ~= ARGV[i + 1] then return {'mismatch', ARGV[i], value} end
end
local marks = redis.call('HMGET', KEYS[3], ARGV[3], ARGV[4])
if marks[1] or marks[2] then return {'deleted'} end

local time = redis.call('TIME')
local stream, agreed, noted, group = KEYS[1], KEYS[2], KEYS[4], ARGV[1]
local held = {}
for id in string.gmatch(ARGV[8], '%S+') do held[#held + 1] = id end

local function is_later(id, other)
  local ms, seq = parts(id)
  local other_ms, other_seq = parts(other)
  return other_ms < ms or (other_ms == ms and other_seq < seq)
end

-- How far a group had come that was at a place: by what it has settled since, too, which is given.
local function furthest_of(start, key)
  local furthest, settled = start, {}
  local notes = redis.pcall('GET', key)
  for id, mark in string.gmatch(type(notes) == 'string' and notes or '', '(%d+%-%d+)(!?) ') do
    settled[id] = mark
    if is_later(id, furthest) then furthest = id end
  end
  return furthest, settled
end

local function has_any_until(id)
  return #redis.call('XRANGE', stream, '-', id, 'COUNT', 1) > 0
end

-- Whether the stream has anything that the group had come past: then it was not lost itself.
local has_older = false

-- Where the group begins again, and what of the stream before that is pending.
local function place()
  if redis.call('EXISTS', stream) == 0 then return '0', {}, {} end
  local start, is_whole, ids, marks = read_place(agreed, group)
  if not start then
    -- All was lost, not the place alone: what is in the stream has been produced since.
    local is_new = not redis.call('HGET', agreed, 'group:' .. group)
    has_older = not is_new
    return is_new and '0' or ARGV[2], {}, {}
  end
  local furthest, settled = furthest_of(start, noted)
  for _, id in ipairs(held) do
    if is_later(id, furthest) then furthest = id end
  end
  has_older = has_any_until(furthest)
  local info = redis.call('XINFO', 'STREAM', stream)
  -- The stream has gone back (a failover, a restored copy): all of it is to be seen, unless nothing
  -- may be seen again.
  if is_later(furthest, field(info, 'last-generated-id')) then return ARGV[2], {}, {} end

  local pending, counts = {}, {}
  for i = 1, #marks, 2 do counts[marks[i]] = marks[i + 1] end
  local function note_pending(id)
    if not settled[id] then pending[#pending + 1] = {id, counts[id] or 1} end
  end
  for _, id in ipairs(ids) do
    if #redis.call('XRANGE', stream, id, id) > 0 then note_pending(id) end
  end
  if is_whole then
    -- What is left there was delivered, as something behind it was, and is not settled.
    local from = start
    while from do
      local page = redis.call('XRANGE', stream, '(' .. from, furthest, 'COUNT', 200)
      for _, entry in ipairs(page) do note_pending(entry[1]) end
      from = #page == 200 and page[#page][1]
    end
    start = furthest
  end
  return start, pending, settled
end

-- Makes another group that was lost together with this one. Where it was: at the beginning, if all there
-- is has come since. If not, its own consumers know better; and what was destroyed on purpose is not
-- known any more while this one is.
local function make_beside(name, generation, settled)
  if redis.call('HGET', agreed, 'group:' .. group) and not redis.call('HGET', agreed, 'group:' .. name) then
    return
  end
  local last = read_place(agreed, name)
  if last and has_any_until(furthest_of(last, settled)) then return end
  if redis.pcall('XGROUP', 'CREATE', stream, name, '0').err then return end
  redis.call('HSETNX', agreed, 'group:' .. name, generation)
  write_place(stream, agreed, settled, name)
end

redis.call('XLEN', stream)  -- refuses a key that is no stream before anything is written
-- XACK passes under a full memory, and what follows a first write does: the consumers that would make
-- room must be able to start.
redis.pcall('XACK', stream, group, '0-0')
local made, wanted = 0, group ~= ''
if ARGV[5] == 'first' and redis.call('EXISTS', stream) == 1 then
  wanted = #redis.call('XINFO', 'GROUPS', stream) == 0
end
if wanted then
  local start, pending, settled = ARGV[2], {}, {}
  if ARGV[5] == 'again' then start, pending, settled = place() end
  local are_lost = redis.call('EXISTS', stream) == 0 or #redis.call('XINFO', 'GROUPS', stream) == 0
  begin(stream)
  local reply = redis.pcall('XGROUP', 'CREATE', stream, group, start, 'MKSTREAM')
  if not reply.err then
    made = 1
    if ARGV[5] == 'again' and are_lost and not has_older then
      for i = 5, #KEYS do make_beside(ARGV[2 * i - 1], ARGV[2 * i], KEYS[i]) end
    end
    for _, item in ipairs(pending) do
      redis.call('XCLAIM', stream, group, NOBODY, 0, item[1], 'RETRYCOUNT', item[2], 'FORCE', 'JUSTID')
    end
    -- What was settled while the group was gone, and no other group needs.
    local others = other_groups(stream, group)
    for id, mark in pairs(settled) do
      if mark == '' and #settled_by(stream, others, {id}) > 0 then redis.call('XDEL', stream, id) end
    end
  elseif not string.find(reply.err, 'BUSYGROUP', 1, true) then
    return reply
  end
  for _, id in ipairs(held) do adopt(stream, group, ARGV[7], id) end
end
for i = rules, #ARGV, 2 do redis.call('HSETNX', agreed, ARGV[i], ARGV[i + 1]) end
redis.call('HSETNX', agreed, 'generation', ARGV[3])
local generation = ''
if wanted then
  redis.call('HSETNX', agreed, 'group:' .. group, ARGV[4])
  generation = redis.call('HGET', agreed, 'group:' .. group)
  if made == 1 or not redis.call('HGET', agreed, 'place:' .. group) then
    write_place(stream, agreed, noted, group)
  end
  if made == 1 and ARGV[5] == 'again' then redis.pcall('PUBLISH', ARGV[6], '') end
end
local now = time[1] * 1000 + math.floor(time[2] / 1000)
return {redis.call('HGET', agreed, 'generation'), generation, made, now}
