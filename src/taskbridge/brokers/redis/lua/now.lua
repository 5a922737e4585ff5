local function now_ms()  -- with the microseconds as its fraction
  local time = redis.call('TIME')
  return time[1] * 1000 + time[2] / 1000
end
