-- settle: acknowledge handled entries, and take off what the last group has settled.
-- Not owner-checked: who did the work is right to say so, lease or not. May be sent again.
-- with: settled
-- with: place
-- with: remove
-- KEYS[1] stream or lane; of the stream also: KEYS[2] what all users agree on (hash)
-- KEYS[3] what the group has settled since its place was written down
-- ARGV[1] group   ARGV[2..] entry ids
-- Returns how many were still pending.
local ids = {unpack(ARGV, 2)}
local acknowledged = redis.call('XACK', KEYS[1], ARGV[1], unpack(ids))
if redis.call('EXISTS', KEYS[1]) == 1 then remove(KEYS[1], KEYS[2], KEYS[3], ARGV[1], ids) end
return acknowledged
