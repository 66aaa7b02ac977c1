// Package opensearch delivers to the real OpenSearch, as one node that it starts. It
// says whether the templates that are put are taken, whether what is sent arrives
// once and is found by what the server indexes, and what becomes of it when the gate
// or the server is killed, when a request is too long for the server and when a
// mapping refuses a record. The server has no security plugin, so privileges and
// credentials are not tried here. It needs Java 17; `make deps` fetches the server.
package opensearch
