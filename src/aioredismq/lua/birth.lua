-- birth: ids of a stream that does not exist yet, one millisecond ahead of the clock. It may have had an
-- earlier life (flushed, deleted by hand) whose entries are still in somebody's hands: what he says of
-- them must not meet another message under the same id.
local function new_id(stream)
  if redis.call('EXISTS', stream) == 1 then return '*' end
  local time = redis.call('TIME')
  return string.format('%.0f-0', time[1] * 1000 + math.floor(time[2] / 1000) + 1)
end

-- Makes a stream that is not there, empty; who may not store anything leaves that to XGROUP.
local function begin(stream)
  local id = new_id(stream)
  if id ~= '*' then redis.pcall('XADD', stream, 'MAXLEN', 0, id, '-', '') end
end
