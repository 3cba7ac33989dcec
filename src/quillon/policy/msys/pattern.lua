-- Lua's string functions within the CPU limit, and within the C stack.
-- A search with a pattern of Lua is C that nothing interrupts, and can take longer than anybody waits. `degree` says with
-- which power of the subject's length its steps may grow. What may take few steps goes to Lua's own functions, what may
-- take many to Python's (pattern.py), which stop in time.
-- Given: the Python functions, what runtime.lua gives, and numbers of steps: from the first on Lua's own functions are
-- timed, from the second on they are not used. Without them there is no limit.
local py, rt, FEW, MANY = ...
local raise, stop, checked, seconds_left, levels, DEEPEST = rt.raise, rt.stop, rt.checked, rt.seconds_left, rt.levels, rt.DEEPEST
local type, select, tostring, tonumber, setmetatable, error, pcall = type, select, tostring, tonumber, setmetatable, error, pcall
local byte, sub, concat, running = string.byte, string.sub, table.concat, coroutine.running
local floor, ceil, huge = math.floor, math.ceil, math.huge
local find, match, gmatch, gsub, rep = string.find, string.match, string.gmatch, string.gsub, string.rep

-- a function that gsub calls back goes deeper on the C stack, which nobody watches
local gsubs = setmetatable({}, {__mode = "k"})
local function ended(here, ok, ...)
  gsubs[here] = gsubs[here] - 1
  if not ok then error((...), 0) end
  return ...
end
local function own_gsub(subject, pattern, replacement, ...)
  if type(replacement) ~= "function" then return gsub(subject, pattern, replacement, ...) end
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

function string.rep(...)
  seconds_left()
  return checked(rep(...))
end

local LONG = 2000  -- octets of a pattern
local degrees, known = {}, 0
-- One for each item that can be tried at several lengths, and one for the places where a match can start. The last item
-- is not tried again, for nothing can fail behind it.
local function degree(pattern)
  local found = degrees[pattern]
  if found then return found end
  if #pattern > LONG then return huge end
  local bare = gsub(gsub(pattern, "%%%%", "x"), "%%b.?.?", "*x")  -- %b looks along the subject, too
  bare = gsub(gsub(gsub(bare, "%%.", "x"), "%[%^?.[^%]]*%]", "x"), "[()]", "")
  local _, many = gsub(bare, "[*+-]", "")
  if find(bare, "[*+-]$") then many = many - 1 end
  if byte(pattern) ~= 94 then many = many + 1 end
  if known >= 1000 then degrees, known = {}, 0 end
  found = many > 1 and many or 1
  degrees[pattern], known = found, known + 1
  return found
end
-- The most steps of a search: the ways to choose so many places along the subject, about.
local ways = setmetatable({1}, {__index = function(t, n) t[n] = n * t[n - 1] return t[n] end})
local function steps(subject, pattern)
  if type(subject) ~= "string" or type(pattern) ~= "string" then return 0 end
  local power = degree(pattern)
  return power > 100 and huge or (#subject) ^ power / ways[power]
end

-- A function that takes a place and gives the first and last place of the next match, and those of its captures: false
-- for the last place of a `()`.
local function searcher(subject, pattern, only_there)
  if #pattern > LONG then raise("pattern too long") end
  seconds_left()
  local search = checked(py.search(subject, pattern, only_there))
  if type(search) == "string" then raise(search) end
  local function given(first, ...)
    if first == false then stop() end
    return first, ...
  end
  return function(place) return given(search(place, seconds_left())) end
end
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

local SPECIAL = "[%^%$%*%+%?%.%(%[%%%-]"
local function looked(plain, shape, name)
  return function(subject, pattern, init, literal)
    local count = steps(subject, pattern)
    if count < FEW then return plain(subject, pattern, init, literal) end
    if count < MANY or name == "find" and (literal or not find(pattern, SPECIAL)) then
      seconds_left()
      return checked(plain(subject, pattern, init, literal))
    end
    local place = tonumber(init or 1)
    if not place then raise("bad argument #3 to '" .. name .. "' (number expected, got " .. type(init) .. ")") end
    place = place < 0 and #subject + ceil(place) + 1 or floor(place)
    if not (place >= 1) then place = 1 elseif place > #subject then place = #subject + 1 end
    return shape(subject, searcher(subject, anchor(pattern))(place))
  end
end
string.find, string.match = looked(find, found, "find"), looked(match, captures, "match")

function string.gmatch(subject, pattern)
  local count = steps(subject, pattern)
  if count < FEW then return gmatch(subject, pattern) end
  if count < MANY then
    local nexts = gmatch(subject, pattern)
    return function()
      seconds_left()
      return checked(nexts())
    end
  end
  local search, place = searcher(subject, byte(pattern) == 94 and "%" .. pattern or pattern, false), 1
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
    return go_on(search(place))
  end
end

-- what stands in place of a match
local function filled(template, subject, first, last, ...)
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
  local search = searcher(subject, bare, only_there)
  local out, place, many, left = {}, 1, 0, tonumber(most) or #subject + 1
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
  while many < left and place <= #subject + 1 and take(search(place)) do end
  out[#out + 1] = sub(subject, place)
  return concat(out), many
end
