package program

import (
	"fmt"
	"net"
	"os"
	"sync/atomic"
	"testing"
)

// Addresses are taken from below the ports that the kernel chooses by itself
// (ip_local_port_range, 32768 and up unless changed): between the moment a port is
// found free and the moment a program listens on it, and while that program is
// started again, neither an outgoing connection nor a server on port 0 can take it.
const (
	firstPort = 10_000
	lastPort  = 32_767
)

// taken counts the ports that this process has tried.
var taken atomic.Int64

// FreeAddr is an address of this machine where nobody listens. It gives none
// twice before it has been through all of them. Safe for concurrent use.
func FreeAddr(t testing.TB) string {
	t.Helper()
	const all = lastPort - firstPort + 1
	// Processes that test at the same time begin far from each other: 7919 is prime.
	start := int64(os.Getpid()) * 7919
	for range all {
		addr := fmt.Sprintf("127.0.0.1:%d", firstPort+(start+taken.Add(1))%all)
		l, err := net.Listen("tcp", addr)
		if err != nil {
			continue // somebody listens there
		}
		l.Close()
		return addr
	}
	t.Fatalf("no free port from %d to %d", firstPort, lastPort)
	return ""
}
