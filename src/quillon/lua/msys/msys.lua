-- The tables that scripts know: msys and what hangs on it, and the objects of callouts.
-- Given: the Python functions, and what runtime.lua gives. Gives Lua's own libraries, as far as scripts have them, and what
-- `require` knows by name.
local py, rt = ...
local bound, handle, raise, opaque = rt.bound, rt.handle, rt.raise, rt.opaque

msys = {core = {}}
json, xml, thread = {}, {}, {}
local core = msys.core
for name, value in pairs(py.constants) do core[name] = value end
thread.MUTEX_NORMAL, thread.MUTEX_RECURSIVE, thread.MUTEX_ERRORCHECK = 0, 1, 2

-- every Python function `a.b.c` stands at a.b.c
local roots = {msys = msys, json = json, xml = xml, thread = thread}
local tables = {msys = msys, ["msys.core"] = core, json = json, xml = xml, thread = thread}
local function at(path)
  local found = tables[path]
  if found then return found end
  local parent, name = path:match("^(.*)%.([%w_]+)$")
  found = {}
  at(parent)[name] = found
  tables[path] = found
  return found
end
for name in pairs(py.functions) do
  local path, last = name:match("^([%w_.]+)%.([%w_]+)$")
  if path and roots[path:match("^%w+")] then at(path)[last] = bound(name) end
end
msys.validation = msys.validate
if msys.counter then msys.counter.STRICT, msys.counter.RELAXED = 0, 1 end

-- what the manual has and this server has not: an error that says so
local libraries = {}  -- those of Lua and curl, as far as they are here
local function left_out(name, reason)
  return function() raise(name .. " is not in this version: " .. reason) end
end
for name, reason in pairs(py.left_out) do
  local path, last = name:match("^([%w_.]+)%.([%w_]+)$")
  if not path then
    libraries[name] = left_out(name, reason)
  elseif roots[path:match("^%w+")] then
    at(path)[last] = left_out(name, reason)
  else
    libraries[path] = libraries[path] or {}
    libraries[path][last] = left_out(name, reason)
  end
end

-- objects
local new = rt.new
local methods = {}
for _, kind in ipairs({"vctx", "ac", "msg", "part", "timer", "mutex", "http", "file", "dkim", "sig", "xmldoc", "xmlnode", "null"}) do
  new[kind], methods[kind] = rt.class(kind)
end
-- one object stands for what are two in C, and so has the fields of both: `ctx` is the vctx
local has_message = bound("ac:has_message")
rt.fields.ac.message = function(self)
  local h = handle(self)
  return has_message(h) and new.msg(h) or nil
end
core.accept_construct_get_message_construct = function(ac)
  return setmetatable({ctx = new.vctx(handle(ac))}, {__index = function(_, key)
    if key == "message" then return rt.fields.ac.message(ac) end
  end})
end
rt.fields.ac.ctx = function(self) return new.vctx(handle(self)) end
-- what reads and writes contexts is called most: plain values cross without the general way, and nothing else does
local good, plain = rt.good, {string = true, number = true, boolean = true, ["nil"] = true}
local function check(value)
  if not plain[type(value)] then raise("a context holds texts, no " .. type(value)) end
end
local function reader(name)
  local get = py.functions[name]
  return function(self, kind, key)
    if type(key) ~= "string" then check(key) end
    if type(kind) ~= "number" then check(kind) end
    return good(get(handle(self), kind, key))
  end
end
local function writer(name)
  local set = py.functions[name]
  return function(self, kind, key, value)
    if type(key) ~= "string" then check(key) end
    if type(kind) ~= "number" then check(kind) end
    if type(value) ~= "string" then check(value) end
    return good(set(handle(self), kind, key, value))
  end
end
methods.vctx.get, methods.vctx.set = reader("vctx:get"), writer("vctx:set")
for _, name in ipairs({"get", "delete", "exists", "exists_and_get"}) do
  methods.msg["context_" .. name] = reader("msg:context_" .. name)
end
methods.msg.context_set = writer("msg:context_set")

-- where a script speaks is noted, for those who try it out
for _, spoken in ipairs({{methods.vctx, "set_code"}, {methods.vctx, "disconnect"}, {methods.msg, "code"}, {methods.msg, "discard"}}) do
  local f = spoken[1][spoken[2]]
  spoken[1][spoken[2]] = function(...)
    py.spoke(rt.place())
    return f(...)
  end
end

-- node:attr(name) reads, node:attr(name, value) writes, and with nil takes away; so does node:attribute
local read_attribute, drop_attribute = methods.xmlnode.attribute, methods.xmlnode.no_attribute
methods.xmlnode.no_attribute = nil
function methods.xmlnode.attr(self, name, ...)
  if select("#", ...) == 0 then return read_attribute(self, name) end
  local value = ...
  if value == nil then drop_attribute(self, name) else read_attribute(self, name, value) end
end
methods.xmlnode.attribute = function(self, name, ...)
  if select("#", ...) == 0 then return read_attribute(self, name) end
  methods.xmlnode.attr(self, name, ...)
  return read_attribute(self, name)
end

-- locks: taken at once, or waited for
local wait_for_lock, trylock = msys.waitlock, msys.trylock
msys.waitlock, msys.trylock = nil, nil
function msys.lock(name) if not trylock(name) then wait_for_lock(name) end end
local wait_for_mutex = methods.mutex.waitlock
methods.mutex.waitlock = nil
function methods.mutex.lock(self) if not self:trylock() then wait_for_mutex(self) end end

-- JSON: tables that print as JSON
local parse, text_of, null = json.parse, json.text, new.null(py.null)
json.parse, json.text, json.null = nil, nil, null
new.null = function() return null end
local as_json = {__tostring = function(self) return text_of(self) end}
as_json.__concat = function(a, b) return tostring(a) .. tostring(b) end
local function json_object(value)
  if type(value) == "table" and opaque[value] == nil then
    for _, inner in pairs(value) do json_object(inner) end
    return setmetatable(value, as_json)
  end
  return value
end
local function copied(value)
  if type(value) ~= "table" or opaque[value] ~= nil then return value end
  local out = {}
  for k, v in pairs(value) do out[k] = copied(v) end
  return out
end
function json.new() return setmetatable({}, as_json) end
function json.decode(text)
  local value, code, fault = parse(text)
  if code then return nil, code, fault end
  return json_object(value)
end
function json.encode(value)
  if type(value) == "table" then return json_object(copied(value)) end
  return text_of(value)
end

-- an ec_string: a buffer with a length
local texts = setmetatable({}, {__mode = "k"})
local sample = newproxy(true)
do
  local meta = getmetatable(sample)
  meta.__metatable = false
  local function set(self, text) texts[self] = tostring(text) end
  local function get(self) return texts[self] end
  local own = {set = set, get = get, append = function(self, text) texts[self] = texts[self] .. tostring(text) end}
  own.write = own.append
  meta.__index = function(self, key) return own[key] end
  meta.__len = function(self) return #texts[self] end
  meta.__tostring = get
  meta.__concat = function(a, b) return tostring(a) .. tostring(b) end
  meta.__eq = function(a, b) return texts[a] == texts[b] end
end
local newproxy = newproxy
function core.string_new(text)
  local made = newproxy(sample)
  texts[made] = tostring(text or "")
  return made
end
local envelope = bound("msg:envelope")
function methods.msg.get_envelope2(self, flags, localpart, domain)
  local l, d = envelope(handle(self), flags)
  localpart:set(l)
  if domain then domain:set(d) end
  return true
end

function msys.registerModule(name, callouts)
  if type(callouts) ~= "table" then raise("registerModule: the second argument is a table of callouts") end
  local names = {}
  for key, value in pairs(callouts) do
    if type(key) == "string" and type(value) == "function" then names[#names + 1] = key end
  end
  -- looked up here, where a metatable's functions run within the limits, and no more afterwards
  local found = {}
  for _, key in ipairs(py.callouts) do
    local f = callouts[key]
    if type(f) == "function" then found[key] = f end
  end
  good(py.register(tostring(name), rt.keep(callouts), rt.keep(found), table.concat(names, " "), next(found) ~= nil))
end
function msys.registerAuth(scheme, callouts)
  if type(callouts) ~= "table" or type(callouts.authenticate) ~= "function" then
    raise("registerAuth: the second argument is a table with a function authenticate")
  end
  good(py.register_auth(tostring(scheme), rt.keep(callouts)))
end
function msys.registerControl(prefix, closure)
  if type(closure) ~= "function" then raise("registerControl: the second argument is a function") end
  good(py.register_control(tostring(prefix), rt.keep(closure)))
end
function msys.asyncOk() return rt.current.may_wait end
function msys.type(value)
  if opaque[value] ~= nil then return tostring(value) end
  if texts[value] then return "ec_string" end
  return type(value)
end
function msys.cast(object) return object end
function msys.getClassMetaTable(kind)
  local found = ({["msys.core:_ec_message"] = methods.msg, ["msys.core:_ec_message_part"] = methods.part,
    ["msys.core:_validate_context"] = methods.vctx, ["msys.core:_accept_construct"] = methods.ac})[kind]
  if not found then raise("getClassMetaTable: there is no class " .. tostring(kind)) end
  return found
end
-- one thread does it all: a pool runs its closure at once, or when the phase is over
function msys.runInPool(pool, closure, mode)
  if mode == nil or mode == false then return pcall(closure) end
  local after = mode
  good(py.later(rt.keep(function()
    local result = {pcall(closure)}
    if type(after) == "function" then after(unpack(result)) end
    if not result[1] then error(result[2], 0) end
  end)))
end
for _, name in ipairs({"after", "at", "every"}) do
  local make = msys.timer[name]
  msys.timer[name] = function(seconds, closure, label)
    if type(closure) ~= "function" then raise("a timer takes seconds and a function") end
    local number = rt.keep(closure)
    local timer = make(seconds, number, label)
    rawset(timer, 1, closure)
    rawset(timer, 2, number)
    return timer
  end
end
-- a function is kept for the server only while its timer runs
local stop_timer, start_timer = methods.timer.stop, methods.timer.start
function methods.timer.stop(self)
  stop_timer(self)
  rt.drop(rawget(self, 2))
end
function methods.timer.start(self)
  self:stop()
  local number = rt.keep(rawget(self, 1))
  rawset(self, 2, number)
  start_timer(self, number)
end
msys.runInInst = nil

-- rows of a query come at once and are handed out one by one
local rows = bound("db.rows")
msys.db.query = function(cache, sql, parameters, options)
  local found, fault = rows(cache, sql, parameters, options)
  if found == nil then return nil, fault end
  local n = 0
  return function() n = n + 1 return found[n] end
end

-- nodes come as a table that a generic for can run over as well
local each = {__call = function(list)
  local at = (list.at or 0) + 1
  list.at = list[at] and at
  return list[at]
end}
for _, owner in ipairs({{methods.xmldoc, "xpath"}, {methods.xmlnode, "children"}}) do
  local find = owner[1][owner[2]]
  owner[1][owner[2]] = function(...) return setmetatable(find(...), each) end
end

local cidr_ready, cidr_load, cidr_find = msys.cidr.ready, msys.cidr.lookup, msys.cidr.find
msys.cidr.ready, msys.cidr.lookup, msys.cidr.find = nil, nil, nil
function msys.cidr.query(name, ip)
  if not cidr_ready(name) then cidr_load(name) end
  return cidr_find(name, ip)
end

msys.tls_params = {set = function(parameters, name, value) parameters[name] = value end}
msys.http = {client = {new = bound("http.new")}}
msys.dumper = {}
local function dump(value, indent, seen)
  if type(value) ~= "table" or opaque[value] ~= nil then
    return type(value) == "string" and string.format("%q", value) or tostring(value)
  end
  if seen[value] then return "(again)" end
  seen[value] = true
  local out = {}
  for k, v in pairs(value) do out[#out + 1] = indent .. "  [" .. dump(k, "", seen) .. "] = " .. dump(v, indent .. "  ", seen) end
  return "{\n" .. table.concat(out, ",\n") .. "\n" .. indent .. "}"
end
function msys.dumper.Dumper(value) return dump(value, "", {}) end

local builtin = {
  string = string, table = table, math = math, coroutine = coroutine, json = json, xml = xml, thread = thread,
  os = libraries.os, io = libraries.io, debug = libraries.debug, curl = libraries.curl, bit = bit, strict = true,
  ["msys.http.client"] = msys.http.client, ["opendkim.dkim"] = core,
  ["msys.extended.message"] = methods.msg, ["msys.extended.message_routing"] = methods.msg,
  ["msys.extended.ac"] = methods.ac, ["msys.extended.vctx"] = methods.vctx, ["msys.boot"] = true,
}
for path, found in pairs(tables) do builtin[path] = found end
for _, name in ipairs({"timer", "dumper", "threadpool", "os", "datasource", "tls_params", "idn", "validate", "base64", "qp"}) do
  builtin["msys." .. name] = builtin["msys." .. name] or msys[name] or {}
end

return {libraries = libraries, builtin = builtin}
