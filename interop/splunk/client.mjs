// Sends what it is told with Splunk's library and says what came back, one line
// of JSON for each request.
import { createRequire } from "node:module";
const { Logger } = createRequire(import.meta.url)("splunk-logging");

const order = JSON.parse(process.argv[2]);
const logger = new Logger({ token: order.token, url: order.url, maxBatchCount: order.batch ?? 1, maxRetries: order.retries ?? 0 });
Object.assign((logger.requestOptions.headers ??= {}), order.headers);
if (order.raw) logger.eventFormatter = (message) => message;

const say = (o) => console.log(JSON.stringify(o));
let problem = null;
logger.error = (err) => { problem = { message: String(err.message ?? err), code: err.code ?? null }; };

const answered = (resolve) => (err, response, body) => {
  say({ status: response?.statusCode ?? 0, body: body ?? null, problem });
  problem = null;
  resolve();
};
for (let i = 0; i < order.events.length; i += order.batch ?? 1) {
  const some = order.events.slice(i, i + (order.batch ?? 1));
  await new Promise((resolve) => {
    for (const e of some.slice(0, -1)) logger.send(e);
    const last = some[some.length - 1];
    const full = some.length === (order.batch ?? 1);
    logger.send(last, full ? answered(resolve) : undefined);
    if (!full) logger.flush(answered(resolve));
  });
}
