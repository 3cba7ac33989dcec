-- Enforced reception: mail of the domains in the file `partners` only over TLS and from a client whose certificate has
-- verified; AUTH only over TLS. partners.py does the same in Python: load one of them.
--
--   scriptlet "scriptlet" { script "partners" { source = "partners" } }
--
-- The listener needs TLS_Certificate, TLS_Key, "STARTTLS" among its SMTP_Extensions, and TLS_Client_CA with the authority
-- that issues the partners' client certificates. The file is read again after a minute, without a reload.

require("msys.core")

local FILE, EVERY = "partners", 60
local mod = {}
local partners, read_at = {}, nil

-- One domain and its fingerprint a line. A table that cannot be read stops mail: nothing is let in that was to be enforced.
local function read()
  local text, fault = msys.readfile(FILE)
  if text == nil then error("partners: " .. fault) end
  local found = {}
  for line in text:gmatch("[^\r\n]+") do
    local domain, fingerprint = line:match("^%s*([^#%s]+)%s+(%S+)")
    if domain then found[domain:lower()] = fingerprint:lower():gsub(":", "") end
  end
  partners, read_at = found, msys.core.get_now_ts()
end

function mod:validate_mailfrom(str, ac, vctx)
  if read_at == nil or msys.core.get_now_ts() - read_at > EVERY then read() end
  local domain = (vctx:get(msys.core.VCTX_MESS, "mailfrom_domain") or ""):lower()
  local wanted = partners[domain]
  if wanted == nil then return msys.core.VALIDATE_CONT end

  if vctx:get(msys.core.VCTX_CONN, "tls") ~= "on" then
    vctx:set_code(550, "5.7.10 mail from " .. domain .. " is accepted over TLS only")
  elseif vctx:get(msys.core.VCTX_CONN, "tls_client_verified") ~= "yes" then
    local cause = vctx:get(msys.core.VCTX_CONN, "tls_client_verify_error") or "no_client_certificate"
    vctx:set_code(550, "5.7.1 mail from " .. domain .. " needs a verified client certificate (" .. cause .. ")")
  elseif wanted ~= "*" and vctx:get(msys.core.VCTX_CONN, "tls_client_cert_sha256") ~= wanted then
    vctx:set_code(550, "5.7.1 mail from " .. domain .. " needs its own client certificate")
  end
  return msys.core.VALIDATE_CONT
end

function mod:core_validate_auth_hook(vctx, auth_info, auth_status)
  if vctx:get(msys.core.VCTX_CONN, "tls") ~= "on" then
    vctx:set_code(530, "5.7.0 Must issue a STARTTLS command first")
  end
  return msys.core.VALIDATE_CONT
end

msys.registerModule("partners", mod)
