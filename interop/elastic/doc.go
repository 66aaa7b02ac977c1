// Package elastic lets other people's clients send to the server that our sink for
// Elasticsearch and OpenSearch is tried against: go-elasticsearch, opensearch-go and
// rsyslog's omelasticsearch. What they send has to be understood as they meant it,
// and they have to understand its answers. It needs the Debian packages rsyslog and
// rsyslog-elasticsearch.
package elastic
