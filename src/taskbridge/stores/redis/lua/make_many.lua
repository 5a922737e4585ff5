-- Does for many commits that are alike what make.lua does for one, at less cost for each.
-- KEYS: the texts of one commit after those of another. ARGV: whether no key is there twice, as 1 or 0; how many texts
-- each has, and for how many ms each of these is kept (empty: for ever); how many commands, and the name, the key and
-- the number of items of each; then, commit by commit, its texts and its items.
-- Returns a digit for each: 1 if it was done, else 0; or 2, if make.lua is to tell: something is refused, or what was
-- there is no text. Nothing of it is left then.
local texts, at, pushes, done = tonumber(ARGV[2]), ARGV[2] + 4, {}, {}
local width = texts  -- how many words of a commit there are
for i = 1, ARGV[at - 1] do
  local items = tonumber(ARGV[at + 2])
  pushes[i], at, width = {ARGV[at], ARGV[at + 1], items = items, size = 2}, at + 3, width + items
end

-- Those that are kept for ever are made by one command, which takes half as much; if one is there, it makes none.
local lasting, words, size = {}, {}, 0
for i = 0, ARGV[1] == '1' and texts - 1 or -1 do
  lasting[i] = ARGV[3 + i] == ''
  local word = at + i
  for key = 1 + i, lasting[i] and #KEYS or 0, texts do
    words[size + 1], words[size + 2], size, word = KEYS[key], ARGV[word], size + 2, word + width
  end
end
if size > 0 and redis.pcall('MSETNX', unpack(words)) ~= 1 then lasting = {} end

for first = 1, #KEYS, texts do
  local outcome = 1
  for i = 0, texts - 1 do
    local key, text, kept, made = KEYS[first + i], ARGV[at + i], ARGV[3 + i], 1
    if not lasting[i] then
      if kept == '' then made = redis.pcall('SETNX', key, text)  -- which takes less than SET, and replies a number
      else made = redis.pcall('SET', key, text, 'NX', 'PX', kept) end
    end
    if made ~= 1 and (made == 0 or not made or made.err) then
      local tells = made == 0 or not made or made.err:find('OOM ', 1, true)
      outcome = tells and type(redis.pcall('GET', key)) == 'string' and 0 or 2
      for j = 0, texts - 1 do
        if j < i or lasting[j] then redis.call('DEL', KEYS[first + j]) end
      end
      break
    end
  end
  done[#done + 1], at = outcome, at + texts
  for _, push in ipairs(pushes) do
    for i = at, at + (outcome == 1 and push.items or 0) - 1 do
      push.size = push.size + 1
      push[push.size] = ARGV[i]
    end
    at = at + push.items
  end
end
for _, push in ipairs(pushes) do
  if push.size > 2 and type(redis.pcall(unpack(push))) == 'table' then  -- an error
    for n, outcome in ipairs(done) do
      if outcome == 1 then redis.call('DEL', unpack(KEYS, (n - 1) * texts + 1, n * texts)) end
      done[n] = outcome == 1 and 2 or outcome
    end
    break
  end
end
return table.concat(done)
