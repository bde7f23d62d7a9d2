-- recover: take over one entry whose consumer stopped renewing its lease, marked as a suspect: the
-- message its process may have died of. Looks at one bounded page a call, from where the last call of
-- any consumer ended, so that a million pending entries never hold the server.
-- The mark is the delivery count: it is set without a delivery, passes under a full memory, and goes
-- with XACK. 1000 + crashes: marked; abandoned again, it is charged one crash. 500 + crashes: it was
-- marked and still runs, but another suspect has started since, so nobody could say which one killed.
-- with: floor
-- KEYS[1] stream   KEYS[2] lane   KEYS[3] what all users agree on (hash)
-- ARGV[1] group   ARGV[2] consumer   ARGV[3] own visibility timeout (ms)   ARGV[4] entries a page
-- ARGV[5] server time (ms) until which one may be taken over; 0: only look. A request that was held up
-- (a paused server, a silent line) comes when every lease looks abandoned, and must not claim.
-- ARGV[6] id of a suspect of ours that still runs, or ''   ARGV[7] 1: it is from the lane, 0: not
-- Returns {entry or false, its crashes, 1 when from the lane, 1 when there is more to look at}.
local MARK, UNSURE = 1000, 500
local page_size = tonumber(ARGV[4])

local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)

-- The longest visibility timeout any live consumer of the group works with: each says its own at
-- each look, and one that is not said again runs out.
local name = 'visibility:' .. ARGV[1]
local own = tonumber(ARGV[3])
local idle = own
local said = redis.call('HGET', KEYS[3], name)
local longest, when
if said then
  longest, when = string.match(said, '^(%d+) (%d+)$')
  longest, when = tonumber(longest), tonumber(when)
end
local stands = longest and longest > own and now - when < 2 * longest + 60000
if stands then idle = longest end

-- Only what came back carries crashes, in digits: anybody may write anything into a stream.
local function crashes_of(fields, in_lane)
  for i = 1, #fields, 2 do
    if in_lane and fields[i] == 'mq-crashes' then
      return #fields[i + 1] < 16 and tonumber(string.match(fields[i + 1], '^%d+$')) or 0
    end
  end
  return 0
end

local may_take = now <= tonumber(ARGV[5])
local taken, crashes, from_lane, more = false, 0, 0, 0
local cursors = {}
for at = 1, 2 do
  if taken then break end
  local key = KEYS[at]
  local cursor_name = (at == 1 and 'cursor:' or 'lane-cursor:') .. ARGV[1]
  local start = redis.call('HGET', KEYS[3], cursor_name) or '-'
  local page = redis.pcall('XPENDING', key, ARGV[1], start, '+', page_size)
  if page.err then
    if at == 1 then return page end
    page = {}  -- nothing has come back to this group yet
  end
  local following = '-'
  if #page == page_size then following = '(' .. page[#page][1]; more = 1 end
  for _, pending in ipairs(page) do
    local id, owner, since, count = pending[1], pending[2], pending[3], pending[4]
    if owner ~= ARGV[2] and since >= idle and may_take then
      local entry = redis.call('XRANGE', key, id, id)[1]
      if not entry then
        redis.call('XACK', key, ARGV[1], id)
      else
        crashes = crashes_of(entry[2], at == 2)
        if count >= MARK then
          crashes = math.max(crashes, count - MARK + 1)
        elseif count >= UNSURE then
          crashes = math.max(crashes, count - UNSURE)
        end
        redis.call('XCLAIM', key, ARGV[1], ARGV[2], 0, id, 'RETRYCOUNT', MARK + crashes, 'JUSTID')
        taken, from_lane, following, more = entry, at - 1, '(' .. id, 1
        break
      end
    end
  end
  if following ~= start then cursors[#cursors + 1] = {cursor_name, following} end
end

if taken and ARGV[6] ~= '' then
  local key = KEYS[ARGV[7] + 1]
  local former = redis.call('XPENDING', key, ARGV[1], ARGV[6], ARGV[6], 1, ARGV[2])[1]
  if former and former[4] >= MARK then
    redis.call('XCLAIM', key, ARGV[1], ARGV[2], 0, ARGV[6],
      'RETRYCOUNT', UNSURE + former[4] - MARK, 'JUSTID')
  end
end

-- Small things to remember, which a full memory may refuse.
for _, cursor in ipairs(cursors) do redis.pcall('HSET', KEYS[3], cursor[1], cursor[2]) end
if not stands then
  redis.pcall('HSET', KEYS[3], name, string.format('%.0f %.0f', own, now))
end
redis.pcall('HSET', KEYS[3], 'floor:' .. ARGV[1], floor(KEYS[1], ARGV[1]))
return {taken, crashes, from_lane, more}
