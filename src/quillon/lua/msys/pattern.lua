-- Lua's string functions within the CPU limit, and within the C stack.
-- A search with a pattern of Lua is C that nothing interrupts, and can take longer than anybody waits. What may take few
-- steps goes to Lua's own functions. For what may take many, `compile` makes a function of the pattern in Lua, which the
-- limit stops as it does any other, and which gives the same results (Lua 5.1 manual, 5.4.1); it leaves to Lua's own
-- functions what is one run along the subject.
-- Given: what runtime.lua gives, and numbers of steps: from the first on Lua's own functions are timed, from the second
-- on they are not used. Without them there is no limit.
local rt, FEW, MANY = ...
local raise, checked, seconds_left, levels, DEEPEST = rt.raise, rt.checked, rt.seconds_left, rt.levels, rt.DEEPEST
local type, select, tostring, tonumber, setmetatable, error, pcall = type, select, tostring, tonumber, setmetatable, error, pcall
local loadstring = loadstring
local byte, char, sub, concat, running = string.byte, string.char, string.sub, table.concat, coroutine.running
local floor, ceil, huge = math.floor, math.ceil, math.huge
local find, match, gmatch, gsub, format = string.find, string.match, string.gmatch, string.gsub, string.format

-- a function that gsub calls back goes deeper on the C stack, which nobody watches
local gsubs = setmetatable({}, {__mode = "k"})
local function ended(here, ok, ...)
  gsubs[here] = gsubs[here] - 1
  if not ok then error((...), 0) end
  return ...
end
local function own_gsub(subject, pattern, replacement, ...)
  if type(replacement) == "table" then
    if getmetatable(replacement) == nil then return gsub(subject, pattern, replacement, ...) end
    local found = replacement  -- whose __index is called back as well
    replacement = function(key) return found[key] end
  elseif type(replacement) ~= "function" then
    return gsub(subject, pattern, replacement, ...)
  end
  local here = running() or gsubs
  local depth = (gsubs[here] or 0) + 1
  if depth + (levels[here] or 0) > DEEPEST then raise("C stack overflow") end
  gsubs[here] = depth
  return ended(here, pcall(gsub, subject, pattern, replacement, ...))
end
if not FEW then
  string.gsub = own_gsub
  return
end

-- reading a pattern ----------------------------------------------------------------------------------------------
local LONG = 2000  -- octets of a pattern
local MOST = 150  -- items of one that can be tried at several lengths: each is a local variable
local function malformed() raise("malformed pattern") end

-- where the item that begins at a place ends: one character, `%` and another, or a set
local function item_end(pattern, at)
  local first = sub(pattern, at, at)
  if first == "%" then
    if at == #pattern then malformed() end
    return at + 1
  elseif first ~= "[" then
    return at
  end
  at = at + 1
  if sub(pattern, at, at) == "^" then at = at + 1 end
  repeat
    if at > #pattern then malformed() end
    at = at + (sub(pattern, at, at) == "%" and 2 or 1)
  until sub(pattern, at, at) == "]"
  return at
end

-- The parts of a pattern: {kind, ...}. A `single` has its item and how often it may be there.
local function parts_of(pattern)
  local parts, open, captures, at = {}, {}, {}, 1
  while at <= #pattern do
    local first, second = sub(pattern, at, at), sub(pattern, at + 1, at + 1)
    if first == "(" then
      captures[#captures + 1] = second == ")" and "place" or "open"
      if #captures > 32 then raise("too many captures") end
      if second == ")" then
        parts[#parts + 1] = {"place", #captures}
        at = at + 1
      else
        open[#open + 1] = #captures
        parts[#parts + 1] = {"open", #captures}
      end
      at = at + 1
    elseif first == ")" then
      local last = table.remove(open)
      if not last then raise("invalid pattern capture") end
      captures[last] = "closed"
      parts[#parts + 1] = {"close", last}
      at = at + 1
    elseif first == "$" and at == #pattern then
      parts[#parts + 1] = {"finish"}
      at = at + 1
    elseif first == "%" and second == "b" then
      if at + 3 > #pattern then malformed() end
      parts[#parts + 1] = {"between", byte(pattern, at + 2), byte(pattern, at + 3)}
      at = at + 4
    elseif first == "%" and second == "f" then
      if sub(pattern, at + 2, at + 2) ~= "[" then raise("missing '[' after '%f' in pattern") end
      local last = item_end(pattern, at + 2)
      parts[#parts + 1] = {"frontier", sub(pattern, at + 2, last)}
      at = last + 1
    elseif first == "%" and find(second, "^%d") then
      local number = tonumber(second)
      if captures[number] ~= "closed" and captures[number] ~= "place" then raise("invalid capture index") end
      parts[#parts + 1] = {captures[number] == "place" and "never" or "back", number}
      at = at + 2
    else
      local last = item_end(pattern, at)
      local often = sub(pattern, last + 1, last + 1)
      often = find(often, "^[*+?-]") and often or ""
      parts[#parts + 1] = {"single", sub(pattern, at, last), often}
      at = last + 1 + #often
    end
  end
  if #open > 0 then raise("unfinished capture") end
  return parts, captures
end

-- The limit looks at the time every so many instructions; functions that run along the subject count octets, too.
local function tick()
  seconds_left()
  checked()
  return 0
end
local COUNT = "t = t + %s - %s if t > 1e6 then t = tick() end"

-- making a function of it ----------------------------------------------------------------------------------------
-- An item in a form that stands for itself at any place of a pattern, and what all others are; nil for `.`
local function both_ways(item)
  if item == "." then return nil end
  if sub(item, 1, 1) == "[" and #item > 1 then
    if sub(item, 2, 2) ~= "^" then return item, "[^" .. sub(item, 2) end
    local inner = sub(item, 3)
    return item, sub(inner, 1, 1) == "^" and "[%" .. inner or "[" .. inner
  end
  if #item == 1 and find(item, "^%W") then item = "%" .. item end
  return "[" .. item .. "]", "[^" .. item .. "]"
end

-- what of a subject's octets an item is, by number
local function members(item)
  local found = {}
  for octet = 0, 255 do
    if find(char(octet), item) then found[octet] = true end
  end
  return found
end

-- Source of a test whether the octet at `at` fits, and the same with a name for the item's members.
local function test(compiled, item, at)
  if item == "." then return at .. " <= n" end
  local plain = #item == 1 and item or match(item, "^%%(%W)$")
  if plain then return "byte(s, " .. at .. ") == " .. byte(plain) end
  local known = compiled.numbers[item]
  if not known then
    local text = both_ways(item)
    compiled.sets[#compiled.sets + 1] = members(text)
    known = #compiled.sets
    compiled.numbers[item] = known
  end
  return "K[" .. known .. "][byte(s, " .. at .. ") or -1]"
end

-- Source for a part that is there once.
local once = {
  open = function(_, part) return format("C[%d] = i", 2 * part[2] - 1) end,
  close = function(_, part) return format("C[%d] = i - 1", 2 * part[2]) end,
  place = function(_, part) return format("C[%d] = i C[%d] = false", 2 * part[2] - 1, 2 * part[2]) end,
  finish = function() return "if i <= n then return nil end" end,
  never = function() return "if true then return nil end" end,
  back = function(_, part)
    return format([[do local from, to = C[%d], C[%d]
      ]] .. format(COUNT, "to", "from") .. [[
      if i + to - from > n or sub(s, i, i + to - from) ~= sub(s, from, to) then return nil end
      i = i + to - from + 1 end]], 2 * part[2] - 1, 2 * part[2])
  end,
  frontier = function(compiled, part)
    local set = match(test(compiled, part[2], "i"), "^K%[%d+%]")
    return format([[if %s[i > 1 and byte(s, i - 1) or 0] or not %s[byte(s, i) or 0] then return nil end]], set, set)
  end,
  between = function(_, part)
    local class = "[%" .. char(part[2]) .. "%" .. char(part[3]) .. "]"
    if find(char(part[2]), "^%w") then class = "[" .. char(part[2]) .. sub(class, 4) end
    if find(char(part[3]), "^%w") then class = gsub(class, "%%(.)%]$", "%1]") end
    return format([[if byte(s, i) ~= %d then return nil end
      do local depth, at = 1, i
        repeat
          local from = at
          at = find(s, %q, at + 1)
          ]] .. format(COUNT, "(at or n)", "from") .. [[ if not at then return nil end
          if byte(s, at) == %d then depth = depth - 1 else depth = depth + 1 end
        until depth == 0
        i = at + 1 end]], part[2], class, part[3])
  end,
  single = function(compiled, part) return format("if not (%s) then return nil end i = i + 1", test(compiled, part[2], "i")) end,
}

-- What the text has to begin with where a part follows, as source of a test of the place j; nil where that is not known.
local function begins(compiled, parts, at)
  local part = parts[at]
  while part and (part[1] == "open" or part[1] == "close" or part[1] == "place") do
    at = at + 1
    part = parts[at]
  end
  if not part then return nil end
  if part[1] == "finish" then return "j > n" end
  if part[1] == "between" then return "byte(s, j) == " .. part[2] end
  if part[1] == "single" and (part[3] == "" or part[3] == "+") then return test(compiled, part[2], "j"), part[2] end
end

-- Source for a part that can be tried at several lengths; `next` is the name of what follows.
local function several(compiled, parts, at, next)
  local item, often = parts[at][2], parts[at][3]
  local text, others = both_ways(item)
  local follows, following = begins(compiled, parts, at + 1)
  local go = format(follows and "if %s then local r = %s(j) if r then return r end end"
    or "%s do local r = %s(j) if r then return r end end", follows or "", next)
  if often == "?" then
    return format("if %s then local r = %s(i + 1) if r then return r end end return %s(i)", test(compiled, item, "i"), next, next)
  elseif often == "-" then
    local skip = ""
    if following and following ~= "." and not text then
      -- any octets up to one that has to be there
      skip = format("local from = j j = find(s, %q, j) %s if not j then return nil end", (both_ways(following)),
        format(COUNT, "(j or n)", "from"))
    end
    return format([[local j = i
      while true do %s %s
        if not (%s) then return nil end
        j = j + 1 end]], skip, go, test(compiled, item, "j"))
  end
  local stop = text and format("(find(s, %q, i) or n + 1)", others) or "n + 1"
  return format("local e = %s %s for j = e, %s, -1 do %s end return nil", stop, format(COUNT, "e", "i"),
    often == "+" and "i + 1" or "i", go)
end

-- The function of a pattern: of a subject and a place, whether the match has to start there. It gives first and last place
-- of the match and of each capture, false as the last place of a `()`.
local function compile(pattern)
  pattern = match(pattern, "^%Z*")  -- a zero ends it
  local parts, captures = parts_of(pattern)
  local compiled = {sets = {}, numbers = {}}
  local bodies, body = {}, {}
  for at, part in ipairs(parts) do
    if part[1] == "single" and part[3] ~= "" then
      body[#body + 1] = several(compiled, parts, at, "m" .. #bodies + 2)
      bodies[#bodies + 1] = concat(body, "\n")
      body = {}
    else
      body[#body + 1] = once[part[1]](compiled, part)
    end
  end
  body[#body + 1] = "return i"
  bodies[#bodies + 1] = concat(body, "\n")
  if #bodies > MOST then raise("pattern too complex") end
  local out = {"local byte, sub, find, tick, K, C = ... local s, n, t = nil, 0, 0"}
  for at = #bodies, 1, -1 do out[#out + 1] = format("local function m%d(i) %s end", at, bodies[at]) end
  local follows, following = begins(compiled, parts, 1)
  local skip = ""
  if following and following ~= "." then
    skip = format("local from = j j = find(s, %q, j) %s if not j then break end", (both_ways(following)),
      format(COUNT, "(j or n)", "from"))
  end
  local places = {}
  for number = 1, #captures do places[number] = format("C[%d], C[%d]", 2 * number - 1, 2 * number) end
  out[#out + 1] = format([[return function(subject, place, only_there)
    s, n = subject, #subject
    local j, e = place, nil
    while j <= n + 1 do
      if not only_there then %s end
      e = m1(j)
      if e or only_there then break end
      j = j + 1
    end
    s = nil
    if e then return j, e - 1%s end
  end]], skip, #places > 0 and ", " .. concat(places, ", ") or "")
  return loadstring(concat(out, "\n"), "=msys")(byte, sub, find, tick, compiled.sets, {})
end

local functions, kept = {}, 0
local function searcher(pattern)
  if #pattern > LONG then raise("pattern too long") end
  local found = functions[pattern]
  if not found then
    found = compile(pattern)
    if kept >= 200 then functions, kept = {}, 0 end
    functions[pattern], kept = found, kept + 1
  end
  return found
end

-- how long Lua's own functions may take --------------------------------------------------------------------------
-- The power of the subject's length with which steps may grow: one for each part that can be tried at several lengths or
-- runs along the subject, one for the places where a match can start. The last part is not tried again, for nothing can
-- fail behind it. And by how much each step may cost more than one.
local estimates, known = {}, 0
local function estimate(pattern)
  local found = estimates[pattern]
  if found then return found end
  local power, weight = byte(pattern) == 94 and 0 or 1, #pattern / 8 + 1
  local ok, parts = pcall(parts_of, byte(pattern) == 94 and sub(pattern, 2) or pattern)
  if #pattern > LONG then
    power = huge
  elseif ok then
    for at, part in ipairs(parts) do
      local last = true
      for behind = at + 1, #parts do last = last and parts[behind][1] == "close" end
      if part[3] == "?" then
        weight = weight * 2
      elseif part[1] == "between" or part[1] == "back" or not last and part[1] == "single" and part[3] ~= "" then
        power = power + 1
      end
    end
  end  -- a pattern that is none is an error sooner or later, which Lua's own functions tell with their words
  if power == 0 then power = 1 end
  if known >= 1000 then estimates, known = {}, 0 end
  found = {power, weight}
  estimates[pattern], known = found, known + 1
  return found
end
-- The most steps of a search: the ways to choose so many places along the subject, about. `literal`: `^` is a character.
local ways = setmetatable({1}, {__index = function(t, n) t[n] = n * t[n - 1] return t[n] end})
local function steps(subject, pattern, literal)
  if type(subject) ~= "string" or type(pattern) ~= "string" then return 0 end
  local found = estimate(pattern)
  local power = found[1]
  if literal and byte(pattern) == 94 then power = power + 1 end
  return power > 100 and huge or (#subject) ^ power / ways[power] * found[2]
end

-- the functions of scripts ---------------------------------------------------------------------------------------
local function anchor(pattern)
  if byte(pattern) == 94 then return sub(pattern, 2), true end
  return pattern, false
end
local function pieces(subject, first, last, ...)
  if first then return last and sub(subject, first, last) or first, pieces(subject, ...) end
end
local function captures(subject, first, last, ...)
  if not first then return nil end
  if select("#", ...) == 0 then return sub(subject, first, last) end
  return pieces(subject, ...)
end
local function found(subject, first, last, ...)
  if not first then return nil end
  return first, last, pieces(subject, ...)
end
local function whole(value, number, name)
  local given = tonumber(value)
  if not given then raise("bad argument #" .. number .. " to '" .. name .. "' (number expected, got " .. type(value) .. ")") end
  return given < 0 and ceil(given) or floor(given)
end
local function begin(subject, init, name)
  local place = whole(init or 1, 3, name)
  if place < 0 then place = #subject + place + 1 end
  if not (place >= 1) then return 1 end
  return place > #subject and #subject + 1 or place
end

-- a text as it stands, in pieces that do not take long each
local function find_text(subject, text, init)
  local place = begin(subject, init, "find")
  local width = floor(MANY * 10 / #text) + #text
  while place + #text - 1 <= #subject do
    tick()
    local first = find(sub(subject, place, place + width - 1), text, 1, true)
    if first then return place + first - 1, place + first + #text - 2 end
    place = place + width - #text + 1
  end
  return nil
end
local SPECIAL = "[%^%$%*%+%?%.%(%[%%%-]"
local function looked(plain, shape, name)
  return function(subject, pattern, init, literal)
    local count = steps(subject, pattern)
    if count < FEW then return plain(subject, pattern, init, literal) end
    if name == "find" and (literal or not find(pattern, SPECIAL)) then
      if #subject * #pattern < MANY * 10 then return plain(subject, pattern, init, true) end
      return find_text(subject, pattern, init)
    end
    if count < MANY then
      seconds_left()
      return checked(plain(subject, pattern, init))
    end
    local bare, only_there = anchor(pattern)
    return shape(subject, searcher(bare)(subject, begin(subject, init, name), only_there))
  end
end
string.find, string.match = looked(find, found, "find"), looked(match, captures, "match")

function string.gmatch(subject, pattern)
  local count = steps(subject, pattern, true)
  if count < FEW then return gmatch(subject, pattern) end
  if count < MANY then
    local nexts = gmatch(subject, pattern)
    return function()
      seconds_left()
      return checked(nexts())
    end
  end
  local search, place = searcher(byte(pattern) == 94 and "%" .. pattern or pattern), 1
  local function go_on(first, last, ...)
    if not first then
      place = #subject + 2
      return nil
    end
    place = last >= first and last + 1 or first + 1
    return captures(subject, first, last, ...)
  end
  return function()
    if place > #subject + 1 then return nil end
    return go_on(search(subject, place, false))
  end
end

-- what stands in place of a match
local function filled(template, subject, first, last, ...)
  if not find(template, "%", 1, true) then return template end
  local given = {captures(subject, first, last, ...)}
  return (gsub(template, "%%(.?)", function(mark)
    local number = tonumber(mark)
    if not number then return mark end
    if number == 0 then return sub(subject, first, last) end
    if given[number] == nil then raise("invalid capture index") end
    return tostring(given[number])
  end))
end
local function replaced(replacement, subject, first, last, ...)
  local kind, value = type(replacement), nil
  if kind == "function" then
    value = replacement(captures(subject, first, last, ...))
  elseif kind == "table" then
    value = replacement[(captures(subject, first, last, ...))]
  else
    return filled(tostring(replacement), subject, first, last, ...)
  end
  if not value then return sub(subject, first, last) end
  if type(value) ~= "string" and type(value) ~= "number" then raise("invalid replacement value (a " .. type(value) .. ")") end
  return tostring(value)
end
local REPLACES = {string = true, number = true, table = true, ["function"] = true}
function string.gsub(subject, pattern, replacement, most)
  local count = steps(subject, pattern)
  if count < FEW or not REPLACES[type(replacement)] then return own_gsub(subject, pattern, replacement, most) end
  if count < MANY then
    seconds_left()
    return checked(own_gsub(subject, pattern, replacement, most))
  end
  local bare, only_there = anchor(pattern)
  local search = searcher(bare)
  local out, place, many = {}, 1, 0
  local left = most == nil and huge or whole(most, 4, "gsub")
  local function take(first, last, ...)
    if not first then return false end
    out[#out + 1] = sub(subject, place, first - 1)
    out[#out + 1] = replaced(replacement, subject, first, last, ...)
    if last < first then  -- an empty match: one character goes as it is
      out[#out + 1] = sub(subject, first, first)
      last = first
    end
    place, many = last + 1, many + 1
    return not only_there
  end
  while many < left and place <= #subject + 1 and take(search(subject, place, only_there)) do end
  out[#out + 1] = sub(subject, place)
  return concat(out), many
end
