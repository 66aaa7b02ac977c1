-- A bearer-token check for nginx: ES256 or RS256 by libcrypto through LuaJIT's
-- FFI, then issuer, audience and expiry. check verifies each time, cached remembers for a minute.
local ffi, cjson, base64 = require "ffi", require "cjson.safe", require "ngx.base64"
ffi.cdef [[
void *BIO_new_mem_buf(const void *b, int n); int BIO_free(void *b);
void *PEM_read_bio_PUBKEY(void *b, void **x, void *cb, void *u);
void *EVP_MD_CTX_new(void); int EVP_MD_CTX_reset(void *c); const void *EVP_sha256(void);
int EVP_DigestVerifyInit(void *c, void **p, const void *md, void *e, void *k);
int EVP_DigestVerify(void *c, const unsigned char *s, size_t sl, const unsigned char *t, size_t tl);
]]
local C = ffi.C
local M = {}
local key, ctx, alg

function M.load(name, file)
  local f = assert(io.open(file)); local pem = f:read("*a"); f:close()
  local bio = C.BIO_new_mem_buf(pem, #pem)
  key = C.PEM_read_bio_PUBKEY(bio, nil, nil, nil); C.BIO_free(bio)
  assert(key ~= nil, "public key"); ctx = C.EVP_MD_CTX_new(); alg = name
end

local function int(s)
  s = s:gsub("^%z+", "")
  if s == "" or s:byte() > 127 then s = "\0" .. s end
  return "\2" .. string.char(#s) .. s
end

local function valid(msg, sig)
  if alg == "ES256" then
    if #sig ~= 64 then return false end
    local body = int(sig:sub(1, 32)) .. int(sig:sub(33))
    sig = "\48" .. string.char(#body) .. body
  end
  C.EVP_MD_CTX_reset(ctx)
  return C.EVP_DigestVerifyInit(ctx, nil, C.EVP_sha256(), nil, key) == 1 and C.EVP_DigestVerify(ctx, sig, #sig, msg, #msg) == 1
end

function M.check(issuer, audience)
  local auth = ngx.var.http_authorization
  local head, body, sig = (auth or ""):match("^Bearer ([%w_-]+)%.([%w_-]+)%.([%w_-]+)$")
  if not head then return ngx.exit(401) end
  local h = cjson.decode(base64.decode_base64url(head) or "")
  if not h or h.alg ~= alg then return ngx.exit(401) end
  if not valid(head .. "." .. body, base64.decode_base64url(sig) or "") then return ngx.exit(401) end
  local c = cjson.decode(base64.decode_base64url(body) or "")
  if not c or c.iss ~= issuer or c.aud ~= audience or (c.exp or 0) < ngx.time() then return ngx.exit(401) end
  ngx.var.sub = c.sub
end

function M.cached(issuer, audience)
  local d, auth = ngx.shared.jwt, ngx.var.http_authorization
  local sub = auth and d:get(auth)
  if sub then ngx.var.sub = sub return end
  M.check(issuer, audience)
  d:set(auth, ngx.var.sub, 60)
end

return M
