-- One look into one queue, as the recorded speeds of the original show it: one call per list.
-- KEYS[1] list. Reply: the head when it is due, else "". Changes nothing. Not for use.
local text = redis.call('LINDEX', KEYS[1], 0)
local now_s = tonumber(redis.call('TIME')[1])
if text and cjson.decode(text).time_s <= now_s then
  return text
end
return ''
