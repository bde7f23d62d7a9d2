-- recover: take over one entry whose consumer stopped renewing its lease, marked as a suspect: the
-- message its process may have died of. Looks at one bounded page a call, from where the last call of
-- any consumer ended, and refuses to be asked too often, so that a million pending entries never hold
-- the server. While there are more than a page, what consumers hold that were not seen for so long is
-- looked for apart, or it would have to wait until its page comes. Where the group stands is written
-- down on the way.
-- The mark is the delivery count: it is set without a delivery, passes under a full memory, and goes
-- with XACK. 1000 + crashes: marked; abandoned again, it is charged one crash. 500 + crashes: another
-- suspect runs beside it, so nobody could say which one killed; abandoned again, it has to run alone.
-- with: settled
-- with: place
-- KEYS[1] stream   KEYS[2] lane   KEYS[3] what all users agree on (hash)
-- KEYS[4] what the group has settled since its place was written down
-- ARGV[1] group   ARGV[2] consumer   ARGV[3] own visibility timeout (ms)   ARGV[4] entries a page
-- ARGV[5] server time (ms) until which one may be taken over; 0: none may. A request that was held up
-- (a paused server, a silent line) comes when every lease looks abandoned, and must not claim.
-- ARGV[6] id of a suspect of ours that still runs, or ''   ARGV[7] 1: it is from the lane, 0: not
-- ARGV[8] 1: one that has to run alone may be taken beside it, 0: it may not
-- ARGV[9] ms between two looks of the group that find nothing and have more to look at
-- Returns {entry or false, its crashes, 1 when from the lane, 1 when it has to run alone, 1 when there is
-- more to look at and it is this consumer that looks, ms until the first lease of others that was seen
-- ends unless it is renewed or -1}.
local MARK, UNSURE = 1000, 500
local FEW = 10  -- behind one that was abandoned there mostly is another
local page_size = tonumber(ARGV[4])

local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local may_take = now <= tonumber(ARGV[5])
local said_name, looked_name = 'visibility:' .. ARGV[1], 'looked:' .. ARGV[1]
local missed_name = 'missed:' .. ARGV[1]
local cursor_names = {'cursor:' .. ARGV[1], 'lane-cursor:' .. ARGV[1]}
local known = redis.call(
  'HMGET', KEYS[3], said_name, looked_name, cursor_names[1], cursor_names[2], missed_name)
local function cursor(text) return text and string.match(text, '^%(?%d+%-%d+$') or '-' end
local said, starts = known[1], {cursor(known[3]), cursor(known[4])}
local to_remember = {}

-- The longest visibility timeout any live consumer of the group works with: each says its own at
-- each look, and one that is not said again runs out.
local own = tonumber(ARGV[3])
local idle = own
local longest, when
if said then
  longest, when = string.match(said, '^(%d+) (%d+)$')
  longest, when = tonumber(longest), tonumber(when)
end
if longest and longest > own and now - when < 2 * longest + 60000 then
  idle = longest
else
  to_remember = {said_name, string.format('%.0f %.0f', own, now)}
end

-- Small things to remember, which a full memory may refuse.
local function remember()
  if #to_remember > 0 then redis.pcall('HSET', KEYS[3], unpack(to_remember)) end
end

local function is_within(said_at, ms)
  local since = now - (tonumber(said_at or '') or 0)
  return since >= 0 and since < ms
end

-- Somebody of the group has just looked, and goes on.
if may_take and is_within(known[2], tonumber(ARGV[9])) then
  remember()
  return {false, 0, 0, 0, 0, -1}
end

-- Only what came back carries crashes, in digits: anybody may write anything into a stream.
local function crashes_of(fields, in_lane)
  for i = 1, #fields, 2 do
    if in_lane and fields[i] == 'mq-crashes' then
      return #fields[i + 1] < 16 and tonumber(string.match(fields[i + 1], '^%d+$')) or 0
    end
  end
  return 0
end

local taken, is_marked, crashes, from_lane, is_for_alone, more = false, false, 0, 0, 0, 0
local is_beside = ARGV[6] ~= ''
local ends = -1

local function take(at, pending)
  local key, id, owner, count = KEYS[at], pending[1], pending[2], pending[4]
  if is_beside and count >= UNSURE and owner ~= ARGV[2] and ARGV[8] == '0' then return end
  local entry = redis.call('XRANGE', key, id, id)[1]
  if not entry then
    redis.call('XACK', key, ARGV[1], id)
    return
  end
  crashes = crashes_of(entry[2], at == 2)
  if count >= MARK then
    crashes = math.max(crashes, count - MARK + (owner == ARGV[2] and 0 or 1))
  elseif count >= UNSURE then
    crashes = math.max(crashes, count - UNSURE)
  end
  if owner == ARGV[2] then
    redis.call('XCLAIM', key, ARGV[1], ARGV[2], 0, id, 'JUSTID')
  else
    local mark = is_beside and UNSURE or MARK
    redis.call('XCLAIM', key, ARGV[1], ARGV[2], 0, id, 'RETRYCOUNT', mark + crashes, 'JUSTID')
    is_marked = true
    if count >= UNSURE or crashes > 0 then is_for_alone = 1 end
  end
  taken, from_lane = entry, at - 1
end

-- Whoever lives and holds something renews it, and is seen by that.
local function take_of_missed(at)
  for _, info in ipairs(redis.call('XINFO', 'CONSUMERS', KEYS[at], ARGV[1])) do
    local name = field(info, 'name')
    if name ~= ARGV[2] and field(info, 'pending') > 0 and field(info, 'idle') >= idle then
      local page = redis.call('XPENDING', KEYS[at], ARGV[1], 'IDLE', idle, '-', '+', 10, name)
      for _, pending in ipairs(page) do
        take(at, pending)
        if taken then return end
      end
    end
  end
end

-- Take over the first of a page that is abandoned, and return its id.
local function take_of(at, page)
  for _, pending in ipairs(page) do
    if pending[3] >= idle then
      take(at, pending)
      if taken then return pending[1] end
    elseif pending[2] ~= ARGV[2] and (ends < 0 or idle - pending[3] < ends) then
      ends = idle - pending[3]
    end
  end
end

local looks_for_missed = not is_within(known[5], 1000)
local few = math.min(FEW, page_size)
for at = 1, 2 do
  if taken or not may_take then break end
  local key, start, following = KEYS[at], starts[at], '-'
  local page = redis.pcall('XPENDING', key, ARGV[1], start, '+', few)
  if page.err then
    if at == 1 then return page end
    page = {}  -- nothing has come back to this group yet
  end
  local id = take_of(at, page)
  if not id and #page == few and few < page_size then
    page = redis.call('XPENDING', key, ARGV[1], start, '+', page_size)
    id = take_of(at, page)
  end
  if id then
    following, more = '(' .. id, 1
  elseif #page == page_size then
    following, more = '(' .. page[page_size][1], 1
    if looks_for_missed then take_of_missed(at) end
  end
  if following ~= start then
    to_remember[#to_remember + 1] = cursor_names[at]
    to_remember[#to_remember + 1] = following
  end
end

if is_marked and is_beside then
  local key = KEYS[ARGV[7] + 1]
  local former = redis.call('XPENDING', key, ARGV[1], ARGV[6], ARGV[6], 1, ARGV[2])[1]
  if former and former[4] >= MARK then
    redis.call('XCLAIM', key, ARGV[1], ARGV[2], 0, ARGV[6],
      'RETRYCOUNT', UNSURE + former[4] - MARK, 'JUSTID')
  end
end

if more == 1 and not taken then
  local names = looks_for_missed and {looked_name, missed_name} or {looked_name}
  for _, name in ipairs(names) do
    to_remember[#to_remember + 1] = name
    to_remember[#to_remember + 1] = string.format('%.0f', now)
  end
end
remember()
-- Once a round, which takes a while with a long list.
if not may_take or starts[1] == '-' then
  local failure = write_place(KEYS[1], KEYS[3], KEYS[4], ARGV[1])
  if failure then return failure end
end
return {taken, crashes, from_lane, is_for_alone, more, ends}
