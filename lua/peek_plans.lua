-- peek_plans: shows what is due in many queues; changes nothing.
--
-- KEYS[1...] list  names of queues, each ending in :idle or :processing
-- ARGV[1]    text  due items of one list, at most
--
-- As far into each list is looked as a claim does. Reply: two arrays. The first is key, item's
-- JSON, key, item's JSON, … for items whose time_s has come, and for those whose time_s cannot
-- be found, so that a claim sets them aside. The second has one integer for each list: 0 when
-- something is due in it or it was not read to its end, else the earliest time_s * 256 + the
-- number of its items. Keys of another type are passed over. A call ends early when it has read
-- much: the second array is shorter then, and the other lists were not looked at. A reply also
-- ends early when it grows large: what is left out shows when the first ones are claimed.

local ITEMS_MAX = 128
local LIST_BYTES_MAX = 4194304
local CALL_BYTES_MAX = 8388608
local REPLY_BYTES_MAX = 16777216
local pcall_redis, match = redis.pcall, string.match
local count_max = tonumber(ARGV[1]) or 1
local due, quiet, reply_bytes, call_bytes = {}, {}, 0, 0

for place = 1, #KEYS do
  local key = KEYS[place]
  local count, start, step, bytes, soonest_s, is_whole = 0, 0, 2, 0, math.huge, false
  while count < count_max and start < ITEMS_MAX and bytes < LIST_BYTES_MAX and reply_bytes <= REPLY_BYTES_MAX do
    -- Most lists end within the first two items: as text, their numbers need not be printed for each.
    local texts
    if start == 0 then
      texts = pcall_redis('LRANGE', key, '0', '1')
    else
      texts = pcall_redis('LRANGE', key, start, start + step - 1)
    end
    if texts.err then
      break
    end
    for i = 1, #texts do
      local text = texts[i]
      bytes = bytes + #text
      -- Where items of our own scripts have it, behind an id of 36 characters; else anywhere.
      local time_s = tonumber(match(text, '^","time_s":(%d+),', 44) or match(text, '"time_s"%s*:%s*(%d+)[,}%s]'))
      if time_s and time_s > now_s then
        if time_s < soonest_s then
          soonest_s = time_s
        end
      elseif count < count_max then
        count = count + 1
        due[#due + 1] = key
        due[#due + 1] = text
        reply_bytes = reply_bytes + #text
      end
    end
    start = start + #texts
    if #texts < step then
      is_whole = true
      break
    end
    step = 32
  end
  quiet[place] = is_whole and count == 0 and start > 0 and start < 256 and soonest_s < 2 ^ 40
    and soonest_s * 256 + start or 0
  call_bytes = call_bytes + bytes
  if call_bytes > CALL_BYTES_MAX then
    break
  end
end
return { due, quiet }
