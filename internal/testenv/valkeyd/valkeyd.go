// Package valkeyd runs a Valkey or Redis server for a test, on loopback, with
// everything that can happen to one.
package valkeyd

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

// Server is a server that runs until the test ends.
type Server struct {
	Addr string

	t    testing.TB
	dir  string
	args []string
	cmd  *exec.Cmd
}

// Start runs one with further arguments ("--requirepass", "x"). It keeps nothing
// on the disk unless they say so.
func Start(t testing.TB, args ...string) *Server {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s := &Server{Addr: l.Addr().String(), t: t, dir: t.TempDir(), args: args}
	l.Close()
	s.run()
	t.Cleanup(s.Kill)
	return s
}

func (s *Server) run() {
	s.t.Helper()
	path, err := exec.LookPath("valkey-server")
	if err != nil {
		path, err = exec.LookPath("redis-server")
	}
	if err != nil {
		s.t.Fatal("neither valkey-server nor redis-server is installed; run make deps")
	}
	_, port, _ := net.SplitHostPort(s.Addr)
	args := append([]string{"--bind", "127.0.0.1", "--port", port, "--dir", s.dir, "--save", "", "--appendonly", "no", "--daemonize", "no"}, s.args...)
	s.cmd = exec.Command(path, args...)
	s.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	out, err := s.cmd.StdoutPipe()
	if err != nil {
		s.t.Fatal(err)
	}
	if err := s.cmd.Start(); err != nil {
		s.t.Fatal(err)
	}
	ready := make(chan error, 1)
	go func() {
		var text strings.Builder
		lines := bufio.NewScanner(out)
		for lines.Scan() {
			fmt.Fprintln(&text, lines.Text())
			if strings.Contains(lines.Text(), "Ready to accept connections") {
				ready <- nil
				io.Copy(io.Discard, out)
				return
			}
		}
		ready <- errors.New(text.String())
	}()
	select {
	case err := <-ready:
		if err != nil {
			s.t.Fatalf("the server did not start: %v", err)
		}
	case <-time.After(30 * time.Second):
		s.t.Fatal("the server did not start within 30 s")
	}
}

// Kill ends it with SIGKILL.
func (s *Server) Kill() {
	if s.cmd != nil {
		s.cmd.Process.Kill()
		s.cmd.Wait()
		s.cmd = nil
	}
}

// Restart runs it again at the same address, with nothing that it held.
func (s *Server) Restart() {
	s.t.Helper()
	s.Kill()
	s.run()
}

// Pause stops it with SIGSTOP: connections are taken and nothing answers.
func (s *Server) Pause() { s.signal(syscall.SIGSTOP) }

// Resume lets it go on.
func (s *Server) Resume() { s.signal(syscall.SIGCONT) }

func (s *Server) signal(sig os.Signal) {
	s.t.Helper()
	if err := s.cmd.Process.Signal(sig); err != nil {
		s.t.Fatal(err)
	}
}

// Do sends one inline command and returns the first line of the answer.
func (s *Server) Do(command string) string { return s.Script(command) }

// Script sends inline commands on one connection and returns the first line of
// the last answer; each must be answered by one line.
func (s *Server) Script(commands ...string) (line string) {
	s.t.Helper()
	c, err := net.Dial("tcp", s.Addr)
	if err != nil {
		s.t.Fatal(err)
	}
	defer c.Close()
	c.SetDeadline(time.Now().Add(10 * time.Second))
	in := bufio.NewReader(c)
	for _, command := range commands {
		if _, err := io.WriteString(c, command+"\r\n"); err != nil {
			s.t.Fatal(err)
		}
		if line, err = in.ReadString('\n'); err != nil {
			s.t.Fatal(err)
		}
	}
	return strings.TrimSpace(line)
}

// Slow is a way to the server on which every answer takes so long. It returns
// the address.
func (s *Server) Slow(delay time.Duration) string {
	s.t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		s.t.Fatal(err)
	}
	ctx, stop := context.WithCancel(context.Background())
	var all sync.WaitGroup
	s.t.Cleanup(func() { stop(); l.Close(); all.Wait() })
	all.Go(func() {
		for {
			in, err := l.Accept()
			if err != nil {
				return
			}
			all.Go(func() { s.relay(ctx, in, delay) })
		}
	})
	return l.Addr().String()
}

func (s *Server) relay(ctx context.Context, in net.Conn, delay time.Duration) {
	defer in.Close()
	out, err := net.Dial("tcp", s.Addr)
	if err != nil {
		return
	}
	defer out.Close()
	defer context.AfterFunc(ctx, func() { in.Close(); out.Close() })()
	go func() { io.Copy(out, in); out.Close() }()
	buf := make([]byte, 4096)
	for {
		n, err := out.Read(buf)
		if err != nil {
			return
		}
		select {
		case <-ctx.Done():
			return
		case <-time.After(delay):
		}
		if _, err := in.Write(buf[:n]); err != nil {
			return
		}
	}
}
