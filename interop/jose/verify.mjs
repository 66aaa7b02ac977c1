// Verifies tokens with a key set, as an upstream would: one JSON line for each.
import { createLocalJWKSet, jwtVerify } from 'jose';
import { createInterface } from 'node:readline';

for await (const line of createInterface({ input: process.stdin })) {
  const { jwks, token, issuer, audience, now } = JSON.parse(line);
  let answer;
  try {
    const { payload } = await jwtVerify(token, createLocalJWKSet(jwks), {
      issuer, audience, algorithms: ['EdDSA'], typ: 'gatebook-identity+jwt', currentDate: new Date(now * 1000), requiredClaims: ['jti', 'iat', 'exp'],
    });
    answer = { claims: payload };
  } catch (e) {
    answer = { error: e.code ?? String(e) };
  }
  process.stdout.write(JSON.stringify(answer) + '\n');
}
