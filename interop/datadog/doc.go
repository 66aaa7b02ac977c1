// Package datadog lets Datadog's own client, npm's @datadog/datadog-api-client,
// talk to the account that our tests send to: if that client is understood and
// understands the answers, then the tests of our sink mean something. The client
// for Go takes minutes to compile.
package datadog
