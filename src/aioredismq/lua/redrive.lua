-- redrive: bring dead letters back to the group they died in, through its lane, each atomically.
-- It knows its last request again when that is sent twice, and answers as it did. Its first write needs
-- no memory, so that the rest passes under a full memory.
-- with: birth
-- with: words
-- KEYS[1] dead letters   KEYS[2] stream   KEYS[3] lane
-- KEYS[4] what this redrive was answered last (hash)
-- ARGV[1] group   ARGV[2] bell   ARGV[3] 1: attempts and crashes begin anew, 0: they go on
-- ARGV[4] number of this request   ARGV[5] how long its answer is remembered (ms)
-- ARGV[6..] ids of dead letters
-- Returns for each 1; 0 when it is not there, or died in another group; -1 when its group is gone. Or
-- the error of the first that could not be stored: it and those behind it are still dead letters.
local answered = redis.call('HMGET', KEYS[4], 'number', 'answers')
if answered[1] == ARGV[4] then return cmsgpack.unpack(answered[2]) end

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

redis.call('XDEL', KEYS[1], '0-0')
local answers, ring, failure = {}, false, nil
for at = 6, #ARGV do
  local letter = redis.call('XRANGE', KEYS[1], ARGV[at], ARGV[at])[1]
  local fields, group = {}, ''
  if letter then
    for i = 1, #letter[2], 2 do
      local name, value = letter[2][i], letter[2][i + 1]
      if name == 'mq-group' then group = value end
      if not left[name] and (#fields < MOST_WORDS or name == 'body' and #fields < MOST_WORDS + 100) then
        fields[#fields + 1] = name
        fields[#fields + 1] = value
      end
    end
  end
  if #fields == 0 then fields = {'body', ''} end
  if not letter or group ~= ARGV[1] then
    answers[#answers + 1] = 0
  elseif not there then
    answers[#answers + 1] = -1
  else
    local stored = redis.pcall('XADD', KEYS[3], new_id(KEYS[3]), unpack(fields))
    if type(stored) == 'table' and stored.err then
      failure = stored
      break
    end
    redis.call('XDEL', KEYS[1], ARGV[at])
    answers[#answers + 1] = 1
    ring = true
  end
end
if ring then
  redis.pcall('PUBLISH', ARGV[2], '')
  if not failure then
    redis.pcall('HSET', KEYS[4], 'number', ARGV[4], 'answers', cmsgpack.pack(answers))
    redis.pcall('PEXPIRE', KEYS[4], ARGV[5])
  end
end
return failure or answers
