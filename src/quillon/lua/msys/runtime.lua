-- What every script runs in: limits, coroutines that wait for the server, errors with their place, hidden objects.
-- Given: the table of Python functions, and the CPU limit in milliseconds (0: none).
local py, cpu_limit = ...
local sethook, getinfo, clock = debug.sethook, debug.getinfo, os.clock
local protected, gsub = xpcall, string.gsub
local create, resume, yield, running = coroutine.create, coroutine.resume, coroutine.yield, coroutine.running
local error, type, select, setmetatable, tostring, pcall = error, type, select, setmetatable, tostring, pcall
local huge = math.huge
local tonumber, concat, find, sub, format = tonumber, table.concat, string.find, string.sub, string.format

-- A callout that takes too long is stopped: every so many instructions the CPU time is looked at. Once it is over,
-- every single instruction fails, so that no pcall gets around it. Compiled traces would not be looked at: jit.off.
-- The clock costs a system call, so it is first read when a callout has run for one such interval; `deadline` is false
-- until then, and `left` the seconds that it has. An instruction that joins large texts takes as long as thousands of
-- others: where the last interval took longer than it should have, the next ones are short.
jit.off()
local FIRST, LONG, SHORT = 1000, 4000, 20  -- instructions
local SLOW = 0.002  -- seconds, for any interval
local BIG = 65536  -- octets or elements: what is done with more of them is followed by a look at the clock
local limit = cpu_limit > 0 and cpu_limit / 1000 or huge
local words = "stopped after more than " .. cpu_limit .. " ms of CPU"
local state = {over = false, deadline = false, left = limit, said = nil}
local interval, looked = 0, 0

-- fails with the place in the script, not in the functions here that it went through
local function place()
  for level = 2, 50 do
    local info = getinfo(level, "Sl")
    if not info then break end
    if info.currentline > 0 and info.short_src ~= "msys" then return info.short_src .. ":" .. info.currentline end
  end
  return ""
end
local function raise(text)
  local where = place()
  error(where ~= "" and where .. ": " .. text or text, 0)
end
local look
local function look_every(instructions)
  if interval ~= instructions and cpu_limit > 0 then
    interval = instructions
    sethook(look, "", instructions)
  end
end
-- not on the main thread, where no script runs and what stopped it is cleared away
local function over()
  -- with the place found when the time was over: to look for it again at each of ten thousand calls takes longer
  if state.over and running() then error(state.said or words, 0) end
end
local function stop()
  local _, said = pcall(raise, words)
  state.said, state.over, interval = said, true, 1
  sethook(over, "", 1)
  error(said, 0)
end
function look()
  local now = clock()
  if not state.deadline then
    state.deadline = now + state.left
  elseif now > state.deadline and running() then
    stop()
  else
    look_every(now - looked > SLOW and SHORT or LONG)
  end
  looked = now
end
local function arm(seconds)
  state.deadline, state.left = false, seconds or limit
  look_every(FIRST)
end
-- seconds left, less than none where the limit has been passed
local function disarm()
  if state.over then
    state.over = false
    look_every(FIRST)
    return -1
  end
  return state.deadline and state.deadline - clock() or state.left
end
look_every(FIRST)
-- to be called before what is checked
local function seconds_left()
  if not state.deadline then state.deadline = clock() + state.left end
  return state.deadline - clock()
end
local function checked(...)
  if seconds_left() < 0 and running() then stop() end
  return ...
end
-- the handler of the library's own xpcall runs where no limit is looked at
local function handled(handler, ok, ...)
  if ok then return true, ... end
  return false, handler(...)
end
-- Each pcall that unwinds after the limit catches, and its next instruction fails anew: as many as are nested are bounded,
-- as by LUAI_MAXCCALLS of Lua 5.1.
local DEEPEST_PCALL = 190
local depths, of_main = setmetatable({}, {__mode = "k"}), {}
local own_pcall = pcall
local function came_back(here, ...)
  depths[here] = depths[here] - 1
  return ...
end
function pcall(f, ...)
  local here = running() or of_main
  local depth = (depths[here] or 0) + 1
  if depth > DEEPEST_PCALL then raise("C stack overflow") end
  depths[here] = depth
  return came_back(here, own_pcall(f, ...))
end
_G.pcall = pcall
function xpcall(f, handler, ...) return handled(handler, pcall(f, ...)) end
getmetatable(py.now).__metatable = false  -- shared by all Python objects: no script may see or change it

-- waiting --------------------------------------------------------------------------------------------------------
-- A function of the server that waits yields WAIT through whatever coroutines the script has made of its own.
local WAIT = {}
local current = {may_wait = false, session = nil}
local remaining = setmetatable({}, {__mode = "k"})

-- Coroutines within coroutines, and functions called back by gsub, go deeper on the C stack, which nobody watches.
local DEEPEST = 100
local levels = setmetatable({}, {__mode = "k"})
local function deeper(co)
  local here = running()
  local level = (here and (levels[here] or 0) + (depths[here] or 0) or 0) + 1
  if level > DEEPEST then raise("C stack overflow") end
  levels[co], depths[co] = level, 0
end
local function pass(co, ok, first, ...)
  if ok and first == WAIT then return pass(co, resume(co, yield(WAIT, ...))) end
  return ok, first, ...
end
function coroutine.resume(co, ...)
  if type(co) ~= "thread" then raise("bad argument #1 to 'resume' (coroutine expected)") end
  deeper(co)
  return pass(co, resume(co, ...))
end
local function unwrap(ok, ...)
  if not ok then error((...), 0) end
  return ...
end
function coroutine.wrap(f)
  local co = create(f)
  return function(...)
    deeper(co)
    return unwrap(pass(co, resume(co, ...)))
  end
end
local wait

-- Callouts run in coroutines that are used again and never collected: a Python object that stands for a value of Lua
-- remembers the coroutine that it came from, and must find it alive whenever it goes.
local FINISHED = {}
local spare, stopped, buried = {}, {}, 0
-- errors of Lua's own functions that were called through those here have no place in the script yet
local function located(fault)
  if type(fault) ~= "string" or find(fault, "^[^\n]-%.lua:%d+: ") then return fault end
  local where = place()
  return (where ~= "" and where .. ": " or "") .. gsub(fault, "^msys:%d+: ", "")
end
local function body(f, ...) return body(yield(FINISHED, protected(f, located, ...))) end

local function results(co, ok, ...)
  spare[#spare + 1] = co
  if not ok then error((...), 0) end
  return true, ...
end
-- Gives true and the results, or false, the coroutine, and what it waits for.
local function finished(co, ok, first, ...)
  local left, said = disarm(), state.said
  state.said = nil
  if not ok then
    buried = buried % 256 + 1
    stopped[buried] = co
    error(said or first, 0)
  end
  if first == WAIT then
    remaining[co] = left
    return false, co, ...
  end
  if first ~= FINISHED then
    stopped[#stopped + 1] = co
    error("a callout yielded outside of any coroutine of its own", 0)
  end
  if left < 0 then  -- in a library function, which nothing interrupts
    spare[#spare + 1] = co
    local good, fault = ...
    error(said or (not good and fault) or words, 0)
  end
  return results(co, ...)
end
local function enter(may_wait, session, f, ...)
  local n = #spare
  local co = spare[n]
  if co then spare[n] = nil else co = create(body) end
  current.may_wait, current.session = may_wait, session
  depths[co] = 0  -- unwinding may have been cut short
  arm()
  return finished(co, resume(co, f, ...))
end
local function continue(co, session, ...)
  current.may_wait, current.session = true, session
  arm(remaining[co])
  return finished(co, resume(co, ...))
end
-- what a script waits for does not come any more: let it unwind
local function cancel(co)
  current.may_wait, current.session = false, nil
  arm(math.min(remaining[co] or 0.01, 0.01))
  pcall(finished, co, resume(co, false, "the session has ended"))
end

-- functions and tables of scripts that the server keeps; it knows them by number
local kept, last_kept = {}, 0
local function keep(value)
  last_kept = last_kept + 1
  kept[last_kept] = value
  return last_kept
end

-- Python functions -----------------------------------------------------------------------------------------------
-- Only plain values cross; tables and objects cross as text, which codec.py explains, behind TOKEN. A function that fails
-- gives FAULT and words, which are raised with the place in the script.
local TOKEN, FAULT = py.token, py.fault
local opaque = setmetatable({}, {__mode = "k"})  -- what stands behind the objects of scripts
local new = {}  -- by kind, what makes an object

local function write(out, value, objects, depth)
  local kind = type(value)
  if kind == "string" then
    out[#out + 1] = "s" .. #value .. ":" .. value
  elseif kind == "number" then
    out[#out + 1] = format("d%.17g;", value)
  elseif kind == "boolean" then
    out[#out + 1] = value and "T" or "F"
  elseif kind == "nil" then
    out[#out + 1] = "n"
  elseif kind == "table" and opaque[value] == nil then
    if depth > 100 then raise("a table is nested too deeply, or holds itself") end
    local place, count = #out + 1, 0
    out[place] = ""
    for k, v in pairs(value) do
      count = count + 1
      write(out, k, objects, depth + 1)
      write(out, v, objects, depth + 1)
    end
    out[place] = "t" .. count .. ":"
  elseif kind == "table" or kind == "userdata" then
    objects[#objects + 1] = kind == "table" and opaque[value] or value
    out[#out + 1] = "o" .. (#objects - 1) .. ",;"
  else
    raise("a " .. kind .. " has no place here")
  end
end
local large = false  -- whether what crosses takes a while
local function packed(...)
  local out, objects = {}, {}
  local arguments = {n = select("#", ...), ...}
  write(out, arguments, objects, 0)
  local text = concat(out)
  if #text > BIG then large = true end
  return TOKEN, text, unpack(objects)
end
local function crossing(...)
  for i = 1, select("#", ...) do
    local value = select(i, ...)
    local kind = type(value)
    if kind == "string" then
      if #value > BIG then large = true end
    elseif kind == "table" or kind == "function" or kind == "thread" then
      return packed(...)
    end
  end
  return ...
end
local function crossed(first, ...)
  if large or type(first) == "string" and #first > BIG then
    large = false
    return checked(first, ...)
  end
  return first, ...
end

local function read(text, at, objects)
  local kind = sub(text, at, at)
  if kind == "s" then
    local _, stop, length = find(text, "^(%d+):", at + 1)
    local last = stop + tonumber(length)
    return sub(text, stop + 1, last), last + 1
  elseif kind == "d" then
    local _, stop, number = find(text, "^([^;]*);", at + 1)
    return tonumber(number), stop + 1
  elseif kind == "t" then
    local _, stop, count = find(text, "^(%d+):", at + 1)
    local found = {}
    at = stop + 1
    for _ = 1, tonumber(count) do
      local key, value
      key, at = read(text, at, objects)
      value, at = read(text, at, objects)
      found[key] = value
    end
    return found, at
  elseif kind == "o" then
    local _, stop, place, class = find(text, "^(%d+),(%w*);", at + 1)
    return new[class](objects[tonumber(place) + 1]), stop + 1
  end
  if kind == "n" then return nil, at + 1 end
  return kind == "T", at + 1
end
local function opened(text, ...)
  if #text > BIG then large = true end
  local found = read(text, 1, {...})
  return unpack(found, 1, found.n)
end
local NO_MEMORY = py.no_memory
local function good(first, ...)
  if first == NO_MEMORY then raise("the scripts hold too much memory (Memory_Limit)") end
  if first == FAULT then raise((...)) end
  if first == TOKEN then return opened(...) end
  return first, ...
end
local function answered(ok, ...)
  if not ok then raise((...)) end
  return good(...)
end
function wait(name, ...)
  if not current.may_wait then raise(name .. " would have to wait, which this phase cannot") end
  return answered(yield(WAIT, name, crossing(...)))
end
local function bound(name)
  local f = py.functions[name]
  if py.waits[name] then return function(...) return wait(name, ...) end end
  return function(...) return crossed(good(f(crossing(...)))) end
end

-- objects --------------------------------------------------------------------------------------------------------
-- A script holds a table around a handle that it can neither see nor forge. What a kind of object can do is what Python
-- has under its name: `kind:method` and `kind.field`, and `kind.field=` where a field can be set.
local function handle(self)
  local found = opaque[self]
  if found == nil then raise("this is no object of the server; was a method called with a dot instead of a colon?") end
  return found
end
local fields_of = {}
local function class(kind)
  local methods, fields, setters = {}, {}, {}
  fields_of[kind] = fields
  for name in pairs(py.functions) do
    local owner, mark, rest = name:match("^(%w+)([:.])([%w_]+)$")
    if owner == kind then
      local f = bound(name)
      if mark == ":" then
        methods[rest] = function(self, ...) return f(handle(self), ...) end
      else
        fields[rest] = function(self) return f(handle(self)) end
      end
    end
    owner, rest = name:match("^(%w+)%.([%w_]+)=$")
    if owner == kind then
      local f = bound(name)
      setters[rest] = function(self, value) return f(handle(self), value) end
    end
  end
  local meta = {__metatable = false}
  meta.__index = function(self, key)
    local method = methods[key]
    if method then return method end
    local field = fields[key]
    return field and field(self)
  end
  meta.__newindex = function(self, key, value)
    local set = setters[key]
    if not set then raise(kind .. "." .. tostring(key) .. " cannot be set") end
    set(self, value)
  end
  meta.__tostring = function() return kind end
  return function(value)
    local self = setmetatable({}, meta)
    opaque[self] = value
    return self
  end, methods
end

_TLS = setmetatable({}, {
  __metatable = false,
  __index = function(_, key)
    local session = current.session
    return session and session.tls and session.tls[key]
  end,
  __newindex = function(_, key, value)
    local session = current.session
    if not session then raise("_TLS belongs to a session") end
    session.tls = session.tls or {}
    session.tls[key] = value
  end,
})
_OSTLS = {}

function print(...)
  local said = {}
  for i = 1, select("#", ...) do said[i] = tostring((select(i, ...))) end
  py.print(table.concat(said, " "))
end

return {
  disarm = disarm, state = state, enter = enter, continue = continue, cancel = cancel, keep = keep,
  kept = function(number) return kept[number] end, drop = function(number) kept[number] = nil end,
  -- where a function begins
  defined = function(f)
    local info = getinfo(f, "S")
    return info.short_src .. ":" .. info.linedefined
  end,
  place = place, bound = bound, new = new, fields = fields_of,
  good = good, raise = raise, class = class, handle = handle, opaque = opaque,
  current = current, BIG = BIG,
  stop = stop, checked = checked, seconds_left = seconds_left, levels = levels, DEEPEST = DEEPEST,
}
