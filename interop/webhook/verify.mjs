// Verifies one request per line of standard input with npm's standardwebhooks:
// {secret, headers, body} in, {ok, type} or {error} out.
import { createInterface } from 'node:readline'
import { Webhook } from 'standardwebhooks'

for await (const line of createInterface({ input: process.stdin })) {
  const { secret, headers, body } = JSON.parse(line)
  try {
    const message = new Webhook(secret).verify(body, headers)
    console.log(JSON.stringify({ ok: true, type: message.type, count: message.data.count ?? 0 }))
  } catch (e) {
    console.log(JSON.stringify({ error: String(e.message) }))
  }
}
