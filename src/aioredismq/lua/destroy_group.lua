-- destroy_group: remove a group with its lane, on purpose: its live consumers find the tombstone and end.
-- KEYS[1] stream   KEYS[2] what all users agree on (hash)   KEYS[3] tombstones (hash)
-- KEYS[4] lane   KEYS[5] delayed set   KEYS[6] delayed fields
-- KEYS[7] what the group has settled since its place was written down
-- ARGV[1] group   ARGV[2] bell channel   ARGV[3] life of the tombstone (ms)
-- Returns 1 when the group was there, 0 when not.
if redis.call('EXISTS', KEYS[1]) == 0 then return 0 end
redis.call('DEL', unpack(KEYS, 4))  -- first, as 6.2 refuses XGROUP under a full memory
local there = redis.call('XGROUP', 'DESTROY', KEYS[1], ARGV[1])
local name = 'group:' .. ARGV[1]
local generation = redis.call('HGET', KEYS[2], name)
redis.call('HDEL', KEYS[2], name, 'place:' .. ARGV[1], 'visibility:' .. ARGV[1],
  'looked:' .. ARGV[1], 'missed:' .. ARGV[1], 'cursor:' .. ARGV[1], 'lane-cursor:' .. ARGV[1])
if generation then
  redis.call('HSET', KEYS[3], generation, 1)
  redis.call('PEXPIRE', KEYS[3], ARGV[3])
end
redis.pcall('PUBLISH', ARGV[2], '')
return there
