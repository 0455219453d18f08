-- peek_plans: shows what is due in many queues; changes nothing.
--
-- KEYS[1...] list  names of queues, each ending in :idle or :processing
-- ARGV[1]    text  due items of one list, at most
--
-- As far into each list is looked as a claim does. Reply: array of key, item's JSON, key,
-- item's JSON, … for items whose time_s has come, and for those whose time_s cannot be found,
-- so that a claim sets them aside. Keys of another type are passed over. A reply ends early
-- when it grows large: what is left out shows when the first ones are claimed.

local ITEMS_MAX = 128
local LIST_BYTES_MAX = 4194304
local REPLY_BYTES_MAX = 16777216
local count_max = tonumber(ARGV[1]) or 1
local due, reply_bytes = {}, 0
for place = 1, #KEYS do
  if reply_bytes > REPLY_BYTES_MAX then
    break
  end
  local key = KEYS[place]
  local count, start, step, bytes = 0, 0, 2, 0
  while count < count_max and start < ITEMS_MAX and bytes < LIST_BYTES_MAX do
    local texts = redis.pcall('LRANGE', key, start, start + step - 1)
    if texts.err then
      break
    end
    for _, text in ipairs(texts) do
      bytes = bytes + #text
      local time_s = tonumber(string.match(text, '"time_s"%s*:%s*(%d+)'))
      if count < count_max and not (time_s and time_s > now_s) then
        count = count + 1
        due[#due + 1] = key
        due[#due + 1] = text
        reply_bytes = reply_bytes + #text
      end
    end
    if #texts < step then
      break
    end
    start = start + step
    step = 32
  end
end
return due
