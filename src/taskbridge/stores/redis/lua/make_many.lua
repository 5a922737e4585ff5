-- Does for many commits that are alike what make.lua does for one, at less cost for each.
-- KEYS: the texts of one commit after those of another. ARGV: how many texts each has, and for how many ms each of these
-- is kept (empty: for ever); how many commands, and the name, the key and the number of items of each; then, commit by
-- commit, its texts and its items.
-- Returns of each whether it was done, as 1 or 0; or 2, if make.lua is to tell: something is refused, or what was there
-- is no text. Nothing of it is left then.
local texts, at, pushes, done = tonumber(ARGV[1]), ARGV[1] + 3, {}, {}
for i = 1, ARGV[at - 1] do
  pushes[i], at = {ARGV[at], ARGV[at + 1], items = tonumber(ARGV[at + 2])}, at + 3
end
for first = 1, #KEYS, texts do
  local outcome = 1
  for i = 0, texts - 1 do
    local key, text, kept, made = KEYS[first + i], ARGV[at + i], ARGV[2 + i], nil
    if kept == '' then made = redis.pcall('SETNX', key, text)  -- which takes less than SET, and replies a number
    else made = redis.pcall('SET', key, text, 'NX', 'PX', kept) end
    if made ~= 1 and (made == 0 or not made or made.err) then
      local tells = made == 0 or not made or made.err:find('OOM ', 1, true)
      outcome = tells and type(redis.pcall('GET', key)) == 'string' and 0 or 2
      if i > 0 then redis.call('DEL', unpack(KEYS, first, first + i - 1)) end
      break
    end
  end
  done[#done + 1], at = outcome, at + texts
  for _, push in ipairs(pushes) do
    for i = at, at + (outcome == 1 and push.items or 0) - 1 do push[#push + 1] = ARGV[i] end
    at = at + push.items
  end
end
for _, push in ipairs(pushes) do
  if #push > 2 and type(redis.pcall(unpack(push))) == 'table' then  -- an error
    for n, outcome in ipairs(done) do
      if outcome == 1 then redis.call('DEL', unpack(KEYS, (n - 1) * texts + 1, n * texts)) end
      done[n] = outcome == 1 and 2 or outcome
    end
    break
  end
end
return done
