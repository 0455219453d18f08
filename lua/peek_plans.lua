-- peek_plans: shows what is due in many queues; changes nothing.
--
-- KEYS[1...] list  names of queues, each ending in :idle or :processing
-- ARGV[1]    text  due items of one list, at most
--
-- Only the first 16 items of a list are looked at. Reply: array of key, item's JSON, key,
-- item's JSON, … for items whose time_s has come, and for those whose time_s cannot be found,
-- so that a claim sets them aside. Keys of another type are passed over.

local LOOK_ITEMS_MAX_PEEK = 16
local count_max = tonumber(ARGV[1]) or 1
local due = {}
for place = 1, #KEYS do
  local key = KEYS[place]
  local count, start, step = 0, 0, 1
  while count < count_max and start < LOOK_ITEMS_MAX_PEEK do
    local texts = redis.pcall('LRANGE', key, start, start + step - 1)
    if texts.err then
      break
    end
    for _, text in ipairs(texts) do
      local time_s = tonumber(string.match(text, '"time_s"%s*:%s*(%d+)'))
      if count < count_max and not (time_s and time_s > now_s) then
        count = count + 1
        due[#due + 1] = key
        due[#due + 1] = text
      end
    end
    if #texts < step then
      break
    end
    start = start + step
    step = LOOK_ITEMS_MAX_PEEK - 1
  end
end
return due
