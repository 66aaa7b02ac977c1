package pace

import (
	"io"
	"net"
	"runtime"
	"testing"
	"time"
)

// TestSlicerLetsTheNetworkIn has somebody echo over a connection while somebody
// else works without a pause on the only processor: each of the two ends waits
// for the poller. With runtime.Gosched alone that comes about every 10 ms.
func TestSlicerLetsTheNetworkIn(t *testing.T) {
	defer runtime.GOMAXPROCS(runtime.GOMAXPROCS(1))
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	go func() {
		c, err := l.Accept()
		if err != nil {
			return
		}
		defer c.Close()
		_, _ = io.Copy(c, c)
	}()
	c, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	stop, stopped := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(stopped)
		s := New(time.Now)
		defer s.Close()
		for {
			select {
			case <-stop:
				return
			default:
				s.Yield()
			}
		}
	}()
	const trips = 100
	begun := time.Now()
	b := []byte{1}
	for range trips {
		if _, err := c.Write(b); err != nil {
			t.Fatal(err)
		}
		if _, err := io.ReadFull(c, b); err != nil {
			t.Fatal(err)
		}
	}
	took := time.Since(begun)
	close(stop)
	<-stopped
	t.Logf("%v for one trip", took/trips)
	if took > trips*5*time.Millisecond {
		t.Errorf("%d trips took %v: work off the request path keeps the network out", trips, took)
	}
}

// TestTurnWithoutPipe still yields.
func TestTurnWithoutPipe(t *testing.T) {
	s := New(time.Now)
	s.turn, s.tried = nil, true
	s.rest()
	s.Close()
	s.rest() // now with one
	s.Close()
}
