package pace

import (
	"fmt"
	"io"
	"net"
	"runtime"
	"sync"
	"testing"
	"time"
)

// TestSlicerLetsTheNetworkIn has somebody echo over a connection while somebody
// else works without a pause on the only processor: each of the two ends waits
// for the poller. With runtime.Gosched alone that comes about every 10 ms.
func TestSlicerLetsTheNetworkIn(t *testing.T) {
	for _, workers := range []int{1, 4} {
		t.Run(fmt.Sprint(workers), func(t *testing.T) { networkComesIn(t, workers) })
	}
}

func networkComesIn(t *testing.T, workers int) {
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
	stop := make(chan struct{})
	var stopped sync.WaitGroup
	var g Group
	turns := make([]int, workers) // each is of its worker until all have stopped
	for i := range workers {
		stopped.Go(func() {
			s := g.New(time.Now)
			defer s.Close()
			for {
				select {
				case <-stop:
					return
				default:
					if s.Yield(); s.now().Sub(s.begun) < time.Microsecond {
						turns[i]++
					}
				}
			}
		})
	}
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
	stopped.Wait()
	t.Logf("%v for one trip, slices %v", took/trips, turns)
	for i, n := range turns {
		if n == 0 {
			t.Errorf("worker %d had no slice: %v", i, turns)
		}
	}
	if took > trips*5*time.Millisecond {
		t.Errorf("%d trips took %v: work off the request path keeps the network out", trips, took)
	}
}

// TestTurnWithoutPipe still yields.
func TestTurnWithoutPipe(t *testing.T) {
	s := (*Group)(nil).New(time.Now)
	s.turn, s.tried = nil, true
	s.rest()
	s.Close()
	s.rest() // now with one
	s.Close()
}

// A turn that cannot be waited for is not tried again: each try would leave a byte in
// the pipe, and at the end somebody would wait for room in it for ever.
func TestTurnThatFails(t *testing.T) {
	var g *Group
	s := g.New(time.Now)
	defer s.Close()
	if s.look(); s.turn == nil {
		t.Fatal("there is no pipe")
	}
	if err := s.turn.r.Close(); err != nil {
		t.Fatal(err)
	}
	if s.look(); s.turn != nil {
		t.Error("it is kept")
	}
	s.look()
}

// Turns go from one Slicer of a group to the next, and not more are kept than a few.
func TestTurnsAreKept(t *testing.T) {
	var g Group
	s := g.New(time.Now)
	s.look()
	first := s.turn
	if first == nil {
		t.Fatal("there is no pipe")
	}
	s.Close()
	if s.look(); s.turn != first {
		t.Error("it made another")
	}
	s.Close()
	var many []*Slicer
	for range 3 * turnsMost {
		many = append(many, g.New(time.Now))
		many[len(many)-1].look()
	}
	for _, s := range many {
		s.Close()
	}
	if len(g.turns) != turnsMost {
		t.Errorf("%d are kept", len(g.turns))
	}
	for _, turn := range g.turns {
		if !turn.wait() {
			t.Error("one that is kept cannot be waited for")
		}
		turn.close()
	}
}
