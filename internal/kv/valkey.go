package kv

import (
	"context"
	"crypto/sha256"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"sync/atomic"
	"time"

	"github.com/redis/go-redis/v9"
	"github.com/redis/go-redis/v9/maintnotifications"
)

// ErrForgot means that the store cannot know: what was asked about is older
// than its memory.
var ErrForgot = errors.New("kv: the store does not remember that far back")

// ErrAway means that the store was not asked, because it did not answer of
// late.
var ErrAway = errors.New("kv: the shared store is away")

// ValkeyConfig says where a Valkey or Redis server is (7.0 or newer). The
// server must not evict what it holds: maxmemory-policy noeviction.
type ValkeyConfig struct {
	Address            string // host:port
	Username, Password string // Password "": no authentication
	TLS                *tls.Config
	DB                 int
	Prefix             string        // before every name; default "gatebook:"
	Timeout            time.Duration // for one call; default 100 ms
	Logger             *slog.Logger  // nil: discards
}

// Valkey is what the nodes of a cluster share: counters and what was seen once.
// A call that fails is not tried again; after a few failures in a row nobody
// asks for a second, so that a dead server costs nothing. It is safe for
// concurrent use.
type Valkey struct {
	c      ValkeyConfig
	client *redis.Client
	log    *slog.Logger

	// Which process of the server answers, and whether it may forget at will. A
	// connection does not outlive that process, so what the newest connection
	// has found holds for all.
	server atomic.Pointer[serverFacts]

	failed atomic.Int32 // calls in a row
	closed atomic.Int64 // Unix nanoseconds until which nobody asks
	down   atomic.Bool  // as last logged
}

type serverFacts struct {
	run    string // run_id of INFO
	evicts string // a maxmemory-policy other than noeviction
}

// When a server counts as away, and for how long.
const (
	breakAfter     = 3
	breakTime      = time.Second
	defaultTimeout = 100 * time.Millisecond
)

// NewValkey makes the client. It connects with the first call.
func NewValkey(c ValkeyConfig) *Valkey {
	if c.Prefix == "" {
		c.Prefix = "gatebook:"
	}
	if c.Timeout <= 0 {
		c.Timeout = defaultTimeout
	}
	if c.Logger == nil {
		c.Logger = slog.New(slog.DiscardHandler)
	}
	redis.SetLogger(silent{}) // it would write to stderr by itself
	v := &Valkey{c: c, log: c.Logger}
	v.client = redis.NewClient(&redis.Options{
		Addr: c.Address, Username: c.Username, Password: c.Password, DB: c.DB, TLSConfig: c.TLS,
		DialTimeout: c.Timeout, ReadTimeout: c.Timeout, WriteTimeout: c.Timeout, PoolTimeout: c.Timeout,
		ContextTimeoutEnabled: true, MaxRetries: -1, DialerRetries: 1, OnConnect: v.meet,
		MaintNotificationsConfig: &maintnotifications.Config{Mode: maintnotifications.ModeDisabled}, DisableIdentity: true,
	})
	return v
}

type silent struct{}

// Printf implements the logger of go-redis.
func (silent) Printf(context.Context, string, ...any) {}

// meet finds out which server a new connection has reached.
func (v *Valkey) meet(ctx context.Context, cn *redis.Conn) error {
	server, err := cn.Info(ctx, "server").Result()
	if err != nil {
		return err
	}
	memory, err := cn.Info(ctx, "memory").Result()
	if err != nil {
		return err
	}
	f := &serverFacts{run: infoField(server, "run_id")}
	if p := infoField(memory, "maxmemory_policy"); p != "noeviction" {
		f.evicts = p
	}
	if f.run == "" {
		return errors.New("kv: the server does not say its run_id")
	}
	v.server.Store(f)
	return nil
}

// infoField finds a field in the answer to INFO.
func infoField(info, name string) string {
	for line := range strings.Lines(info) {
		if value, ok := strings.CutPrefix(strings.TrimSpace(line), name+":"); ok {
			return value
		}
	}
	return ""
}

// Close closes all connections.
func (v *Valkey) Close() error { return v.client.Close() }

// Secret is a key that all nodes with the same password derive, to hide what
// they store under.
func (v *Valkey) Secret() [32]byte {
	return sha256.Sum256([]byte("gatebook/v1/valkey names\x00" + v.c.Prefix + "\x00" + v.c.Password))
}

// call does one thing on the server, within the time-out, unless it is away.
func (v *Valkey) call(ctx context.Context, do func(ctx context.Context) error) error {
	if time.Now().UnixNano() < v.closed.Load() {
		return ErrAway
	}
	within, cancel := context.WithTimeout(ctx, v.c.Timeout)
	defer cancel()
	err := do(within)
	if err != nil && ctx.Err() != nil {
		return err // whoever asked has gone: that says nothing of the server
	}
	if err == nil || isAnswer(err) {
		v.failed.Store(0)
		if v.down.CompareAndSwap(true, false) {
			v.log.Info("the shared store answers again", "address", v.c.Address)
		}
		return err
	}
	if v.failed.Add(1) >= breakAfter {
		v.failed.Store(0)
		v.closed.Store(time.Now().Add(breakTime).UnixNano())
		if v.down.CompareAndSwap(false, true) {
			v.log.Error("the shared store is away", "address", v.c.Address, "err", err)
		}
	}
	return fmt.Errorf("%w: %w", ErrAway, err)
}

// isAnswer tells an answer of the server that says no from one that did not
// come.
func isAnswer(err error) bool {
	return errors.Is(err, ErrForgot) || errors.Is(err, errEvicts)
}

var errEvicts = errors.New("kv: the shared store may evict what it holds; set its maxmemory-policy to noeviction")

var errChanged = errors.New("kv: the server was replaced during the call")

// The birth of the store's memory stands under one name, with the run_id of the
// process that it was noted for: a server that was restarted, flushed or
// replaced by a replica is born again, because what it held may be gone.
const birth = `
local t = redis.call('TIME')
local now = t[1] * 1000 + math.floor(t[2] / 1000)
local had = redis.call('GET', KEYS[1])
local born
if had and string.sub(had, 1, #ARGV[1] + 1) == ARGV[1] .. ' ' then
  born = tonumber(string.sub(had, #ARGV[1] + 2))
else
  born = now
  redis.call('SET', KEYS[1], ARGV[1] .. ' ' .. string.format('%.0f', now))
end
`

// onceScript answers 1 if the name was free and is taken now, 0 if it was
// taken, 2 if it may have been taken before the store was born.
var onceScript = redis.NewScript(birth + `
if redis.call('EXISTS', KEYS[2]) == 1 then return 0 end
if tonumber(ARGV[2]) < born then return 2 end
redis.call('SET', KEYS[2], '', 'PX', ARGV[3])
return 1
`)

// Once takes the name until expires and reports whether it was free: of any
// number of callers on any number of nodes exactly one gets true. ErrForgot: it
// was issued before the store began to remember. Any other error means that
// the store is away, or may evict what it holds.
func (v *Valkey) Once(ctx context.Context, name string, issued, expires time.Time) (fresh bool, err error) {
	err = v.call(ctx, func(ctx context.Context) error {
		facts, err := v.facts(ctx)
		if err != nil {
			return err
		}
		ttl := max(time.Until(expires), time.Millisecond).Milliseconds() + 1
		n, err := onceScript.Run(ctx, v.client, []string{v.c.Prefix + "born", v.c.Prefix + name},
			facts.run, issued.UnixMilli(), ttl).Int()
		switch {
		case err != nil:
			return err
		case v.server.Load().run != facts.run:
			return errChanged // asked in the name of one process, answered by another
		case n == 2:
			return ErrForgot
		}
		fresh = n == 1
		return nil
	})
	return fresh && err == nil, err
}

// facts are what is known of the server, asked for with the first call.
func (v *Valkey) facts(ctx context.Context) (*serverFacts, error) {
	f := v.server.Load()
	if f == nil {
		if err := v.client.Ping(ctx).Err(); err != nil {
			return nil, err
		}
		if f = v.server.Load(); f == nil {
			return nil, errors.New("kv: nothing is known of the server")
		}
	}
	if f.evicts != "" {
		return nil, fmt.Errorf("%w (it is %s)", errEvicts, f.evicts)
	}
	return f, nil
}

var birthScript = redis.NewScript(birth + "return string.format('%.0f', born)")

// Ping asks the server whether it is there and since when it remembers.
func (v *Valkey) Ping(ctx context.Context) (born time.Time, err error) {
	err = v.call(ctx, func(ctx context.Context) error {
		facts, err := v.facts(ctx)
		if err != nil {
			return err
		}
		ms, err := birthScript.Run(ctx, v.client, []string{v.c.Prefix + "born"}, facts.run).Int64()
		born = time.UnixMilli(ms)
		return err
	})
	return born, err
}

// Up says whether the server answered of late.
func (v *Valkey) Up() bool { return !v.down.Load() && v.server.Load() != nil }

// Run asks every second whether the server is there, so that it begins to
// remember before it is needed and its return is noticed, until ctx ends.
func (v *Valkey) Run(ctx context.Context) error {
	tick := time.NewTicker(breakTime)
	defer tick.Stop()
	for {
		_, _ = v.Ping(ctx) // logged where it is noticed
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
	}
}
