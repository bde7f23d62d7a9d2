-- delete: remove a queue and everything that belongs to it, on purpose: live consumers find the
-- tombstone and end.
-- KEYS[1] what all users agree on (hash)   KEYS[2] tombstones (hash)   KEYS[3..] everything else
-- ARGV[1] bell channel   ARGV[2] life of the tombstone (ms)
-- Returns how many keys were there.
local generation = redis.call('HGET', KEYS[1], 'generation')
local there = redis.call('DEL', KEYS[1], unpack(KEYS, 3))
if generation then
  redis.call('HSET', KEYS[2], generation, 1)
  redis.call('PEXPIRE', KEYS[2], ARGV[2])
end
redis.pcall('PUBLISH', ARGV[1], '')
return there
