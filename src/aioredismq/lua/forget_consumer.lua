-- forget_consumer: remove a consumer's name from a group and its lane, if it holds nothing in either.
-- XGROUP DELCONSUMER destroys what is pending under the name: looking and removing are one step.
-- Nobody's name, under which a group that was made again keeps what was pending, goes with it.
-- with: adopt
-- KEYS[1] stream   KEYS[2] lane   ARGV[1] group   ARGV[2] consumer
-- Returns 1 when the name is gone, 0 when it still holds something.
local function holds_any(key, name)
  local pending = redis.pcall('XPENDING', key, ARGV[1], '-', '+', 1, name)
  if pending.err and string.find(pending.err, 'NOGROUP', 1, true) then return false end
  return pending.err or #pending > 0  -- who may not look knows nothing, and destroys nothing
end

for _, key in ipairs(KEYS) do
  if holds_any(key, ARGV[2]) then return 0 end
end
for _, key in ipairs(KEYS) do
  redis.pcall('XACK', key, ARGV[1], '0-0')  -- 6.2 refuses XGROUP as a first write to a full memory
  redis.pcall('XGROUP', 'DELCONSUMER', key, ARGV[1], ARGV[2])
end
if not holds_any(KEYS[1], NOBODY) then redis.pcall('XGROUP', 'DELCONSUMER', KEYS[1], ARGV[1], NOBODY) end
return 1
