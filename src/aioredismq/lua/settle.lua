-- settle: acknowledge handled entries, and take off what the last group has settled.
-- Not owner-checked: who did the work is right to say so, lease or not. May be sent again.
-- with: settled
-- with: remove
-- KEYS[1] stream or lane   ARGV[1] group   ARGV[2..] entry ids
-- Returns how many were still pending.
local ids = {unpack(ARGV, 2)}
local acknowledged = redis.call('XACK', KEYS[1], ARGV[1], unpack(ids))
if redis.call('EXISTS', KEYS[1]) == 1 then remove(KEYS[1], ARGV[1], ids) end
return acknowledged
