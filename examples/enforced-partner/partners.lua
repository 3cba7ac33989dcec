-- Enforced reception: mail of the domains in the file `partners` only over TLS and from a client whose certificate
-- the partner's own authority has issued, for one of its names; AUTH only over TLS. partners.py does the same in
-- Python: load one of them.
--
--   scriptlet "scriptlet" { script "partners" { source = "partners" } }
--
-- The listener needs TLS_Certificate, TLS_Key, "STARTTLS" among its SMTP_Extensions, and TLS_Client_CA with the
-- authorities that issue the partners' client certificates: that one of them has verified does not yet tell whose it
-- is. The file is read again after a minute, without a reload.

require("msys.core")

local FILE, EVERY = "partners", 60
local mod = {}
local partners, read_at = {}, nil

-- One domain a line: its authority's file, names, and a key where one is wanted. One that cannot be read is not loaded; later
-- it stops mail: nothing is let in that was to be enforced.
local function read()
  local text, fault = msys.readfile(FILE)
  if text == nil then error("partners: " .. fault) end
  local found = {}
  for line in text:gmatch("[^\r\n]+") do
    local domain, authority, names, key = line:match("^%s*([^#%s]+)%s+(%S+)%s+([^#%s]+)%s*([^#%s]*)")
    if domain then
      local good, print = pcall(msys.tls.fingerprint, authority)
      if not good then error("partners: " .. line .. ": " .. print) end
      found[domain:lower()] = {authority = print, names = names, key = key:lower():gsub(":", "")}
    elseif line:match("^%s*[^#%s]") then
      error("partners: a line has domain, authority and names: " .. line)
    end
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
  elseif vctx:get(msys.core.VCTX_CONN, "tls_client_cert_anchor_sha256") ~= wanted.authority
    or not msys.tls.names_one_of(vctx:get(msys.core.VCTX_CONN, "tls_client_cert_san"), wanted.names)
    or (wanted.key ~= "" and vctx:get(msys.core.VCTX_CONN, "tls_client_cert_spki_sha256") ~= wanted.key) then
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

read()
msys.registerModule("partners", mod)
