-- generations: which lives a queue and a group are in, and whether one of those a consumer knows was
-- ended on purpose.
-- KEYS[1] what all users agree on (hash)   KEYS[2] tombstones (hash)
-- ARGV[1], ARGV[2] the generations of queue and group that the consumer knows   ARGV[3] group
-- Returns {1 when one was ended, else 0, the queue's now or '', the group's now or ''}.
local marks = redis.call('HMGET', KEYS[2], ARGV[1], ARGV[2])
local now = redis.call('HMGET', KEYS[1], 'generation', 'group:' .. ARGV[3])
return {(marks[1] or marks[2]) and 1 or 0, now[1] or '', now[2] or ''}
