package kv_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/gatebook/gatebook/internal/kv"
)

type clock struct{ atomic.Int64 }

func (c *clock) now() time.Time { return time.Unix(c.Load(), 0) }

func open(t *testing.T, path string, c *clock) *kv.Local {
	t.Helper()
	l, err := kv.OpenLocal(path, [32]byte{1}, c.now)
	if err != nil {
		t.Fatal(err)
	}
	return l
}

func TestLocal(t *testing.T) {
	ctx := context.Background()
	path := filepath.Join(t.TempDir(), "state.db")
	var c clock
	c.Store(1000)
	l := open(t, path, &c)
	check := func(err error, want error) {
		t.Helper()
		if !errors.Is(err, want) {
			t.Fatalf("error %v, want %v", err, want)
		}
	}
	_, err := l.Get(ctx, "a", "k")
	check(err, kv.ErrNotFound)
	check(l.Put(ctx, "a", "k", []byte("one"), time.Time{}), nil)
	check(l.Put(ctx, "a", "short", []byte("x"), time.Unix(1010, 0)), nil)
	check(l.Put(ctx, "b", "k", []byte("other"), time.Time{}), nil)
	check(l.Swap(ctx, "a", "k", []byte("two"), []byte("three"), time.Time{}), kv.ErrChanged)
	check(l.Swap(ctx, "a", "none", nil, []byte("three"), time.Time{}), kv.ErrNotFound)
	check(l.Swap(ctx, "a", "k", []byte("one"), []byte("two"), time.Time{}), nil)
	if ok, err := l.Create(ctx, "a", "k", []byte("no"), time.Time{}); ok || err != nil {
		t.Fatalf("created over an entry: %v %v", ok, err)
	}
	check(l.Close(), nil)

	l = open(t, path, &c)
	got := map[string]string{}
	check(l.Range(ctx, "a", func(k string, v []byte) error { got[k] = string(v); return nil }), nil)
	if fmt.Sprint(got) != "map[k:two short:x]" {
		t.Fatalf("after opening again: %v", got)
	}
	c.Store(1010)
	_, err = l.Get(ctx, "a", "short")
	check(err, kv.ErrNotFound)
	if ok, err := l.Create(ctx, "a", "short", []byte("y"), time.Unix(1020, 0)); !ok || err != nil {
		t.Fatalf("not created after expiry: %v %v", ok, err)
	}
	c.Store(1020)
	check(l.Sweep(ctx), nil)
	check(l.Delete(ctx, "a", "k"), nil)
	check(l.Delete(ctx, "a", "k"), nil)
	_, err = l.Get(ctx, "a", "k")
	check(err, kv.ErrNotFound)
	check(l.Close(), nil)
}

func TestLocalCreatesOnce(t *testing.T) {
	var c clock
	l := open(t, filepath.Join(t.TempDir(), "s.db"), &c)
	defer l.Close()
	var won atomic.Int32
	var wg sync.WaitGroup
	for range 64 {
		wg.Go(func() {
			ok, err := l.Create(context.Background(), "once", "token", nil, time.Time{})
			if err != nil {
				t.Error(err)
			}
			if ok {
				won.Add(1)
			}
		})
	}
	wg.Wait()
	if won.Load() != 1 {
		t.Fatalf("%d of 64 created the entry", won.Load())
	}
}

func TestLocalTellsNothing(t *testing.T) {
	path := filepath.Join(t.TempDir(), "s.db")
	var c clock
	l := open(t, path, &c)
	ctx := context.Background()
	if err := l.Put(ctx, "table-name", "ada@example.com", []byte("secret-value"), time.Time{}); err != nil {
		t.Fatal(err)
	}
	l.Close()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	for _, word := range []string{"table-name", "ada@", "secret-value"} {
		if bytes.Contains(b, []byte(word)) {
			t.Errorf("the file holds %q in clear", word)
		}
	}
	// With another key it is not taken for empty, and stays as it is.
	if _, err := kv.OpenLocal(path, [32]byte{2}, c.now); !errors.Is(err, kv.ErrForeign) {
		t.Errorf("with another key: %v", err)
	}
	if after, err := os.ReadFile(path); err != nil || !bytes.Equal(after, b) {
		t.Errorf("it was changed: %v", err)
	}
}

// A copy of a file in use is what the file was at one moment.
func TestCopy(t *testing.T) {
	path := filepath.Join(t.TempDir(), "s.db")
	var c clock
	l := open(t, path, &c)
	ctx := context.Background()
	for _, key := range []string{"a", "b"} {
		if err := l.Put(ctx, "t", key, []byte{0}, time.Time{}); err != nil {
			t.Fatal(err)
		}
	}
	var wg sync.WaitGroup
	stop := make(chan struct{})
	wg.Go(func() { // "b" is never ahead of "a"
		for i := byte(1); ; i++ {
			select {
			case <-stop:
				return
			default:
			}
			for _, key := range []string{"a", "b"} {
				if err := l.Put(ctx, "t", key, bytes.Repeat([]byte{i}, 5000), time.Time{}); err != nil {
					t.Error(err)
				}
			}
		}
	})
	for n := range 10 {
		to := filepath.Join(t.TempDir(), "copy.db")
		f, err := os.OpenFile(to, os.O_CREATE|os.O_WRONLY, 0o600)
		if err != nil {
			t.Fatal(err)
		}
		if err := errors.Join(l.Copy(f), f.Close()); err != nil {
			t.Fatal(err)
		}
		k := open(t, to, &c)
		a, errA := k.Get(ctx, "t", "a")
		b, errB := k.Get(ctx, "t", "b")
		if errA != nil || errB != nil || a[0] != b[0] && a[0] != b[0]+1 {
			t.Errorf("copy %d: %v", n, errors.Join(errA, errB))
		}
		k.Close()
	}
	close(stop)
	wg.Wait()
	if err := kv.CopyFile(path, io.Discard); !errors.Is(err, kv.ErrLocked) {
		t.Errorf("copied a file that is open: %v", err)
	}
	l.Close()
	var whole bytes.Buffer
	if err := kv.CopyFile(path, &whole); err != nil || whole.Len() == 0 {
		t.Errorf("%d bytes, %v", whole.Len(), err)
	}
}
