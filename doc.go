// Package gatebook is the map of the tree; it holds no code.
//
// cmd/gatebook is the program. Everything else is in internal/:
//
//	gate     the request's way; read gate/pipeline.go first
//	book     the record's way; read book/append.go first
//	desk     the readers: search, proofs, the admin API
//	server   puts the parts together
//	cli      the commands
//	config   the file and its checks
//
// What may import what is decided in arch_test.go.
package gatebook
