// Does what one line of standard input says, with Datadog's client:
// {url, key, do: "send"|"search"|"validate", logs, encoding, query, from, page} in,
// {status, data} or {status, error} out.
import { createInterface } from 'node:readline'
import { client, v1, v2 } from '@datadog/datadog-api-client'

function configured({ url, key }) {
  return client.createConfiguration({
    authMethods: { apiKeyAuth: key, appKeyAuth: 'app-key' },
    baseServer: new client.BaseServerConfiguration(url, {}),
  })
}

async function run(q) {
  const c = configured(q)
  const logs = new v2.LogsApi(c)
  switch (q.do) {
    case 'validate':
      return await new v1.AuthenticationApi(c).validate()
    case 'send':
      return await logs.submitLog({ body: q.logs, contentEncoding: q.encoding })
    case 'search': {
      const body = { filter: { query: q.query, from: q.from, to: 'now' }, sort: 'timestamp', page: { limit: q.page } }
      const found = []
      for await (const l of logs.listLogsWithPagination({ body })) {
        const a = l.attributes
        found.push({ host: a.host, service: a.service, status: a.status, message: a.message, tags: a.tags, timestamp: a.timestamp, attributes: a.attributes })
      }
      return found
    }
  }
}

for await (const line of createInterface({ input: process.stdin })) {
  let out
  try {
    out = { status: 200, data: await run(JSON.parse(line)) }
  } catch (e) {
    out = { status: e.code ?? 0, error: String(e.message ?? e) }
  }
  console.log(JSON.stringify(out))
}
