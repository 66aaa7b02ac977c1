// Talks to the token service as openid-client and oauth4webapi do. Each line on
// standard input is a request {op, ...}; each line on standard output its
// answer, {error} if it failed.
import * as readline from 'node:readline'
import * as oauth from 'oauth4webapi'
import * as oidc from 'openid-client'

const configs = new Map()
const keys = new Map()
let nonceless

async function privateKey(id) {
  if (!keys.has(id)) {
    const pair = await crypto.subtle.generateKey({ name: 'ECDSA', namedCurve: 'P-256' }, true, ['sign'])
    const jwk = await crypto.subtle.exportKey('jwk', pair.publicKey)
    keys.set(id, { key: pair.privateKey, kid: 'k-' + id, jwk: { kty: jwk.kty, crv: jwk.crv, x: jwk.x, y: jwk.y, kid: 'k-' + id, alg: 'ES256', use: 'sig' } })
  }
  return keys.get(id)
}

async function auth(q) {
  switch (q.auth) {
    case 'basic': return oidc.ClientSecretBasic(q.secret)
    case 'post': return oidc.ClientSecretPost(q.secret)
    case 'jwt': {
      const k = await privateKey(q.client)
      return oidc.PrivateKeyJwt({ key: k.key, kid: k.kid })
    }
  }
  throw new Error('unknown auth ' + q.auth)
}

// config discovers the service by its metadata (RFC 8414), as any client would.
async function config(q) {
  const id = q.client + ' ' + q.auth + ' ' + q.secret
  if (!configs.has(id)) {
    configs.set(id, await oidc.discovery(new URL(q.issuer), q.client, undefined, await auth(q), { algorithm: 'oauth2' }))
  }
  return configs.get(id)
}

async function options(q) {
  if (!q.dpop) return undefined
  nonceless ??= await oidc.randomDPoPKeyPair('ES256', { extractable: true })
  return { DPoP: oidc.getDPoPHandle(await config(q), nonceless) }
}

// validate is what a resource server does with a token (RFC 9068): it fetches
// the keys that the metadata name.
async function validate(q) {
  const issuer = new URL(q.issuer)
  const as = await oauth.processDiscoveryResponse(issuer, await oauth.discoveryRequest(issuer, { algorithm: 'oauth2' }))
  const request = new Request(q.audience + '/x', { headers: { authorization: `Bearer ${q.token}` } })
  const claims = await oauth.validateJwtAccessToken(as, request, q.audience)
  return { claims, alg: JSON.parse(atob(q.token.split('.')[0].replaceAll('-', '+').replaceAll('_', '/'))) }
}

const ops = {
  key: async (q) => (await privateKey(q.client)).jwk,
  metadata: async (q) => (await config(q)).serverMetadata(),
  credentials: async (q) => oidc.clientCredentialsGrant(await config(q), q.params, await options(q)),
  exchange: async (q) => oidc.genericGrantRequest(await config(q), 'urn:ietf:params:oauth:grant-type:token-exchange', q.params, await options(q)),
  refresh: async (q) => oidc.refreshTokenGrant(await config(q), q.token, q.params, await options(q)),
  revoke: async (q) => { await oidc.tokenRevocation(await config(q), q.token); return {} },
  introspect: async (q) => oidc.tokenIntrospection(await config(q), q.token),
  validate,
}

for await (const line of readline.createInterface({ input: process.stdin })) {
  let out
  try {
    const q = JSON.parse(line)
    out = { ...(await ops[q.op](q)) }
  } catch (e) {
    out = { error: e.error ?? e.code ?? e.message, status: e.status, detail: String(e.cause?.message ?? e.message) }
  }
  process.stdout.write(JSON.stringify(out) + '\n')
}
