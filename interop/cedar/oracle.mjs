// Answers calls for Cedar's own implementation, one JSON line for each:
// {"op": name of the function, "call": its argument}.
import * as cedar from '@cedar-policy/cedar-wasm/nodejs';
import { createInterface } from 'node:readline';

const ours = {
  version: () => ({ version: cedar.getCedarSDKVersion() }),
  preparse: ({ id, policies }) => cedar.preparsePolicySet(id, policies),
};

for await (const line of createInterface({ input: process.stdin })) {
  let answer;
  try {
    const { op, call } = JSON.parse(line);
    answer = (ours[op] ?? cedar[op])(call);
  } catch (e) {
    answer = { type: 'failure', errors: [{ message: String(e) }] };
  }
  process.stdout.write(JSON.stringify(answer) + '\n');
}
