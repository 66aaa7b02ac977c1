// A DPoP client by another hand: makes keys and proofs on request, one JSON
// object a line each way, until its input ends.
import { createInterface } from 'node:readline';
import * as DPoP from 'dpop';

const pairs = [];
for await (const line of createInterface({ input: process.stdin })) {
  const ask = JSON.parse(line);
  let answer;
  try {
    if (ask.cmd === 'key') {
      const pair = await DPoP.generateKeyPair(ask.alg);
      answer = { key: pairs.push(pair) - 1, jkt: await DPoP.calculateThumbprint(pair.publicKey) };
    } else {
      answer = { proof: await DPoP.generateProof(pairs[ask.key], ask.htu, ask.htm, ask.nonce || undefined, ask.token || undefined) };
    }
  } catch (e) {
    answer = { error: String(e) };
  }
  process.stdout.write(JSON.stringify(answer) + '\n');
}
