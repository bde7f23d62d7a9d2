-- redrive: bring dead letters back to the group they died in, through its lane, each atomically.
-- KEYS[1] dead letters   KEYS[2] stream   KEYS[3] lane
-- ARGV[1] group   ARGV[2] bell   ARGV[3] 1: attempts and crashes begin anew, 0: they go on
-- ARGV[4..] ids of dead letters
-- Returns for each 1; 0 when it is not there, or died in another group; -1 when its group is gone.
local there = false
if redis.call('EXISTS', KEYS[2]) == 1 then
  for _, info in ipairs(redis.call('XINFO', 'GROUPS', KEYS[2])) do
    for i = 1, #info, 2 do
      if info[i] == 'name' and info[i + 1] == ARGV[1] then there = true end
    end
  end
end

-- What was said of the death, and when it was to expire: it is wanted now.
local left = {['mq-group'] = 1, ['mq-reason'] = 1, ['mq-detail'] = 1, ['mq-error-type'] = 1,
  ['mq-traceback'] = 1, ['mq-died'] = 1, ['mq-expires'] = 1}
if ARGV[3] == '1' then left['mq-attempt'] = 1; left['mq-crashes'] = 1 end

local answers, ring = {}, false
for at = 4, #ARGV do
  local letter = redis.call('XRANGE', KEYS[1], ARGV[at], ARGV[at])[1]
  local fields, group = {}, ''
  if letter then
    for i = 1, #letter[2], 2 do
      local name, value = letter[2][i], letter[2][i + 1]
      if name == 'mq-group' then group = value end
      if not left[name] then
        fields[#fields + 1] = name
        fields[#fields + 1] = value
      end
    end
  end
  if not letter or group ~= ARGV[1] then
    answers[#answers + 1] = 0
  elseif not there then
    answers[#answers + 1] = -1
  else
    redis.call('XDEL', KEYS[1], ARGV[at])
    redis.call('XADD', KEYS[3], '*', unpack(fields))
    answers[#answers + 1] = 1
    ring = true
  end
end
if ring then redis.pcall('PUBLISH', ARGV[2], '') end
return answers
