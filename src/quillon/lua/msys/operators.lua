-- The operators that the dialect adds, as the functions of _BIT that dialect.py puts in their place. A metamethod goes
-- first, as for the operators of Lua itself.
-- Given: what runtime.lua gives.
local rt = ...
local raise = rt.raise

_BIT = {}
local function number(value)
  local found = tonumber(value)
  if found == nil then raise("attempt to perform arithmetic on a " .. type(value) .. " value") end
  return found
end
-- up to 2^64, which is what 0xFFFFFFFFFFFFFFFF is as a number of Lua
local function whole(value)
  local found = number(value)
  if not (found >= -2^63 and found <= 2^64) then raise("number has no integer representation") end
  return found
end
local function operator(event, f, operand)
  return function(a, b)
    if type(a) == "table" or type(b) == "table" then
      local meta = type(a) == "table" and getmetatable(a) or type(b) == "table" and getmetatable(b)
      local own = type(meta) == "table" and rawget(meta, event)
      if own then return own(a, b) end
    end
    return f(operand(a), operand(b))
  end
end
-- Integers of 64 bits, as far as a number of Lua holds them: a half of 32 bits each, the upper one with the sign.
local floor, ceil = math.floor, math.ceil
local HALF = 2^32
local function integer(value) return value < 0 and ceil(value) or floor(value) end
local function bits(f)
  return function(a, b)
    a, b = integer(a), integer(b)
    if a >= 0 and b >= 0 and a < 2^31 and b < 2^31 then return f(a, b) end
    return f(floor(a / HALF), floor(b / HALF)) * HALF + f(a % HALF, b % HALF) % HALF
  end
end
_BIT.band = operator("__and", bits(bit.band), whole)
_BIT.bor = operator("__or", bits(bit.bor), whole)
_BIT.bxor = operator("__xor", bits(bit.bxor), whole)
local function shifted(a, by)
  if by >= 64 then return 0 end
  if by <= -64 then return a < 0 and -1 or 0 end
  if by < 0 then return floor(a / 2^-by) end
  local moved = a * 2^by % 2^64
  return moved < 2^63 and moved or moved - 2^64
end
_BIT.shl = operator("__shl", function(a, by) return shifted(integer(a), integer(by)) end, whole)
_BIT.shr = operator("__shr", function(a, by) return shifted(integer(a), -integer(by)) end, whole)
_BIT.idiv = operator("__intdiv", function(a, b) return floor(a / b) end, number)
local bnot = operator("__not", function(a) return -integer(a) - 1 end, whole)
function _BIT.bnot(a) return bnot(a, 0) end
