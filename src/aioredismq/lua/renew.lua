-- renew: renew the leases of what a consumer holds: as if it had just been delivered, without raising
-- delivery counts. Owner-checked: what somebody else has claimed meanwhile is theirs.
-- What was pending under nobody's name since the group was made again is taken on.
-- with: adopt
-- KEYS[1] stream or lane   ARGV[1] group   ARGV[2] consumer   ARGV[3..] ids, ascending
-- Returns the ids that are not held any more.
local held = {}
for i = 3, #ARGV do held[ARGV[i]] = true end
local mine = {}
local start, last = ARGV[3], ARGV[#ARGV]
while true do
  local page = redis.call('XPENDING', KEYS[1], ARGV[1], start, last, 200, ARGV[2])
  for _, pending in ipairs(page) do
    if held[pending[1]] then
      mine[#mine + 1] = pending[1]
      held[pending[1]] = nil
    end
  end
  if #page < 200 then break end
  start = '(' .. page[#page][1]
end
if #mine > 0 then
  mine[#mine + 1] = 'JUSTID'  -- unpack must come last to give all it has
  redis.call('XCLAIM', KEYS[1], ARGV[1], ARGV[2], 0, unpack(mine))
end
local lost = {}
for i = 3, #ARGV do
  if held[ARGV[i]] and not adopt(KEYS[1], ARGV[1], ARGV[2], ARGV[i]) then
    lost[#lost + 1] = ARGV[i]
  end
end
return lost
