-- Clock, numbers and checks that every script shares.

local clock = redis.call('TIME')
local now_s = tonumber(clock[1])
local now_us = tonumber(clock[2])

-- cjson prints 14 digits and then switches to exponents; sizes and times need all of them.
local function int_text(number)
  return string.format('%.0f', number)
end

-- A whole second that is not before now + duration; now itself for no duration.
local function seconds_from_now(duration_s)
  if duration_s <= 0 then
    return now_s
  end
  return math.ceil(now_s + now_us / 1000000 + duration_s)
end

local function decode_object(text)
  local ok, value = pcall(cjson.decode, text)
  if ok and type(value) == 'table' and string.find(text, '^%s*{') then
    return value
  end
  return nil
end

-- What stands at a key must be of the expected type before anything is written:
-- an error in the middle of a script would leave the first half applied.
local checked_types = {}
local function wrong_type(key, expected)
  if checked_types[key] == nil then
    local found = redis.call('TYPE', key)['ok']
    checked_types[key] = found == 'none' or found == expected
  end
  if checked_types[key] then
    return nil
  end
  return 'ERR key ' .. key .. ' is not a ' .. expected .. '; rename or remove it'
end
