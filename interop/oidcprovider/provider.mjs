// An OpenID provider for tests: oidc-provider on a free port of the loopback
// interface, told what to be by the first line on stdin and what to do by the
// lines after it. Every line in and out is one JSON object; the answer to a
// command has the command's id. When stdin ends, so does the process: it does
// not outlive the test.
import { createServer } from 'node:http';
import { createInterface } from 'node:readline';
import { generateKeyPairSync, randomBytes } from 'node:crypto';

// stdout is ours; what the provider tells people goes to stderr.
for (const name of ['log', 'info', 'debug', 'warn']) console[name] = (...words) => console.error(...words);
const { default: Provider, interactionPolicy } = await import('oidc-provider');

const lines = createInterface({ input: process.stdin })[Symbol.asyncIterator]();
const options = JSON.parse((await lines.next()).value);
const say = (o) => process.stdout.write(`${JSON.stringify(o)}\n`);

// Store keeps everything in memory, and over a rotation of keys.
const store = new Map();
class Store {
  constructor(model) { this.model = model; }

  async upsert(id, payload, expiresIn) {
    store.set(`${this.model}:${id}`, { payload, until: expiresIn ? Date.now() + expiresIn * 1000 : Infinity });
  }

  async find(id) {
    const kept = store.get(`${this.model}:${id}`);
    return kept && kept.until > Date.now() ? kept.payload : undefined;
  }

  async search(name, value) {
    for (const [key, { payload, until }] of store) {
      if (key.startsWith(`${this.model}:`) && payload[name] === value && until > Date.now()) return payload;
    }
    return undefined;
  }

  async findByUid(uid) { return this.search('uid', uid); }

  async findByUserCode(code) { return this.search('userCode', code); }

  async consume(id) { store.get(`${this.model}:${id}`).payload.consumed = Math.floor(Date.now() / 1000); }

  async destroy(id) { store.delete(`${this.model}:${id}`); }

  async revokeByGrantId(grantId) {
    for (const [key, { payload }] of store) if (payload.grantId === grantId) store.delete(key);
  }
}

const alg = options.alg || 'ES256';
let serial = 0;
function newKey(name) {
  const make = {
    ES256: () => generateKeyPairSync('ec', { namedCurve: 'P-256' }),
    EdDSA: () => generateKeyPairSync('ed25519'),
    RS256: () => generateKeyPairSync('rsa', { modulusLength: 2048 }),
    PS256: () => generateKeyPairSync('rsa', { modulusLength: 2048 }),
  }[name];
  serial += 1;
  return { ...make().privateKey.export({ format: 'jwk' }), use: 'sig', alg: name, kid: `${name.toLowerCase()}-${serial}` };
}

const cookieKeys = [randomBytes(32).toString('hex')];
const nonceSecret = randomBytes(32);
const pick = (o) => Object.fromEntries(Object.entries(o).filter(([, v]) => v !== undefined && v !== null));

// configure is the provider but for its keys. Nobody is asked anything: the
// account is login_hint (or "ann"), the class of its login is the first of
// acr_values, and every scope of every resource is granted.
function configure(keys) {
  return {
    adapter: Store,
    jwks: { keys },
    clients: options.clients || [],
    clientDefaults: {
      id_token_signed_response_alg: alg,
      introspection_signed_response_alg: alg,
      grant_types: ['authorization_code', 'refresh_token', 'client_credentials'],
      ...options.clientDefaults,
    },
    cookies: { keys: cookieKeys },
    acrValues: options.acrValues || [],
    scopes: ['openid', 'offline_access', ...(options.scopes || [])],
    claims: { openid: ['sub', 'sid', 'acr', 'amr', 'auth_time'], profile: ['name'], email: ['email', 'email_verified'] },
    ttl: {
      AccessToken: 300, ClientCredentials: 300, RefreshToken: 3600, IdToken: 300, Session: 3600, Grant: 3600, Interaction: 60, ...options.ttl,
    },
    fetch: (url, { dispatcher, ...rest }) => globalThis.fetch(url, rest), // the loopback interface is where all of it is
    findAccount: (_, id) => ({ accountId: id, claims: async () => ({ sub: id, ...options.accounts?.[id] }) }),
    extraTokenClaims(ctx, token) {
      const from = ctx?.oidc?.entities?.AuthorizationCode || ctx?.oidc?.entities?.RefreshToken;
      return pick({
        acr: from?.acr, amr: from?.amr, auth_time: from?.authTime, ...options.tokenClaims?.[token.accountId || token.clientId],
      });
    },
    issueRefreshToken: (_, client) => client.grantTypeAllowed('refresh_token'),
    expiresWithSession: () => false,
    rotateRefreshToken: true,
    interactions: { url: (_, interaction) => `/interaction/${interaction.uid}`, policy: interactionPolicy.base() },
    async loadExistingGrant(ctx) {
      const { provider, client, session } = ctx.oidc;
      const known = session.grantIdFor(client.clientId);
      const old = known && await provider.Grant.find(known);
      if (old) return old;
      const grant = new provider.Grant({ clientId: client.clientId, accountId: session.accountId });
      grant.addOIDCScope('openid profile email offline_access');
      for (const [uri, r] of Object.entries(options.resources || {})) grant.addResourceScope(uri, r.scope || '');
      await grant.save();
      return grant;
    },
    features: {
      devInteractions: { enabled: false },
      clientCredentials: { enabled: true },
      introspection: { enabled: true, allowedPolicy: () => true },
      jwtIntrospection: { enabled: true },
      revocation: { enabled: true },
      backchannelLogout: { enabled: true },
      rpInitiatedLogout: { enabled: true },
      pushedAuthorizationRequests: { enabled: true },
      dPoP: { enabled: true, nonceSecret, requireNonce: () => Boolean(options.dpopNonce) },
      resourceIndicators: {
        enabled: true,
        defaultResource: (_, __, oneOf) => options.defaultResource || oneOf,
        useGrantedResource: () => true,
        getResourceServerInfo(_, uri) {
          const r = options.resources?.[uri];
          if (!r) throw Object.assign(new Error('invalid_target'), { error: 'invalid_target', statusCode: 400, expose: true });
          const jwt = r.format === 'opaque' ? undefined : { sign: { alg: r.alg || alg } };
          return {
            scope: r.scope || '', audience: r.audience || uri, accessTokenTTL: r.ttl, accessTokenFormat: r.format === 'opaque' ? 'opaque' : 'jwt', jwt,
          };
        },
      },
    },
  };
}

const counts = {};
const faults = {};
const events = [];
const watched = ['access_token.issued', 'client_credentials.issued', 'refresh_token.consumed', 'grant.success', 'grant.revoked', 'grant.error',
  'authorization.success', 'authorization.error', 'pushed_authorization_request.success', 'end_session.success', 'introspection.error',
  'revocation.error', 'backchannel.success', 'backchannel.error', 'server_error'];

let provider;
let keys = [newKey(alg), ...(options.moreAlgs || []).map(newKey)];
let handle;
function build(issuer) {
  provider = new Provider(issuer, configure(keys));
  for (const name of watched) {
    provider.on(name, (...about) => events.push(pick({
      event: name, error: about.find((a) => a instanceof Error)?.message, client: about.find((a) => a?.clientId)?.clientId,
    })));
  }
  handle = provider.callback();
}

// answerInteraction logs in whoever the request hints at.
async function answerInteraction(req, res) {
  const { params, prompt } = await provider.interactionDetails(req, res);
  if (prompt.name !== 'login') throw new Error(`the provider asks for ${prompt.name}: ${JSON.stringify(prompt.details)}`);
  const acr = params.acr_values?.split(' ')[0];
  const login = pick({ accountId: params.login_hint || 'ann', acr, amr: acr ? ['pwd', 'otp'] : ['pwd'] });
  await provider.interactionFinished(req, res, { login }, { mergeWithLastSubmission: false });
}

const server = createServer(async (req, res) => {
  const { pathname } = new URL(req.url, 'http://localhost');
  counts[pathname] = (counts[pathname] || 0) + 1;
  const fault = faults[pathname];
  try {
    if (fault?.hang) return;
    if (fault?.delay) await new Promise((done) => { setTimeout(done, fault.delay); });
    if (fault?.status) {
      res.writeHead(fault.status, { 'content-type': 'application/json', ...fault.headers }).end(fault.body || '');
    } else if (pathname.startsWith('/interaction/')) {
      await answerInteraction(req, res);
    } else {
      handle(req, res);
    }
  } catch (e) {
    console.error(e);
    res.writeHead(500).end(String(e));
  }
});
await new Promise((done) => { server.listen(0, '127.0.0.1', done); });
const issuer = `http://127.0.0.1:${server.address().port}`;
build(issuer);
say({ issuer, kids: keys.map((k) => k.kid) });

const commands = {
  // rotate signs with a new key from now on; keep says how many of the older
  // ones stay published.
  rotate({ keep = 1 }) {
    keys = [newKey(alg), ...keys.slice(0, keep)];
    build(issuer);
    return { kids: keys.map((k) => k.kid) };
  },
  // fault makes a path answer with a status, late or not at all; without any
  // of these it is well again.
  fault({ path, ...how }) {
    if (how.status || how.delay || how.hang) faults[path] = how; else delete faults[path];
    return {};
  },
  // steal tells the refresh tokens of a client that nobody has used yet, as
  // somebody would know them who has read along.
  steal({ client }) {
    const now = Math.floor(Date.now() / 1000);
    const tokens = [...store].filter(([key, { payload: p }]) => key.startsWith('RefreshToken:') && p.clientId === client && !p.consumed && p.exp > now)
      .map(([, { payload }]) => payload.jti);
    return { tokens };
  },
  counts: () => ({ counts }),
  events: () => ({ events }),
};
for await (const line of lines) {
  const { id, cmd, ...rest } = JSON.parse(line);
  try {
    say({ id, ...commands[cmd](rest) });
  } catch (e) {
    say({ id, error: String(e) });
  }
}
process.exit(0);
