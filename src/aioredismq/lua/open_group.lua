-- open_group: make the stream and a group of it, unless they are there, and agree on the queue's rules.
-- KEYS[1] stream   KEYS[2] what all users agree on (hash)
-- ARGV[1] group, or '' for none   ARGV[2] where a new group starts (`0` or `$`)
-- ARGV[3] a new generation's name   ARGV[4..] rules: name, value, name, value, …
-- Returns {generation of the queue, generation of the group}, or {'mismatch', name, value in force}.
for i = 4, #ARGV, 2 do
  local value = redis.call('HGET', KEYS[2], ARGV[i])
  if value and value ~= ARGV[i + 1] then return {'mismatch', ARGV[i], value} end
end
local made = false
if ARGV[1] ~= '' then
  local reply = redis.pcall('XGROUP', 'CREATE', KEYS[1], ARGV[1], ARGV[2], 'MKSTREAM')
  if not reply.err then
    made = true
  elseif not string.find(reply.err, 'BUSYGROUP', 1, true) then
    return reply
  end
end
for i = 4, #ARGV, 2 do redis.call('HSETNX', KEYS[2], ARGV[i], ARGV[i + 1]) end
redis.call('HSETNX', KEYS[2], 'generation', ARGV[3])
local group = ''
if ARGV[1] ~= '' then
  local name = 'group:' .. ARGV[1]
  if made then
    redis.call('HSET', KEYS[2], name, ARGV[3])
  else
    redis.call('HSETNX', KEYS[2], name, ARGV[3])
  end
  group = redis.call('HGET', KEYS[2], name)
end
return {redis.call('HGET', KEYS[2], 'generation'), group}
