package book

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/gatebook/gatebook/internal/book/keys"
	"github.com/gatebook/gatebook/internal/book/ledger"
)

// buckets are the tables of the key store.
var buckets = []string{"meta", "epoch", "key", "blind", "unbound", "day", "anon", "full"}

// rows lists the content of a key store, one line for each row.
func rows(t testing.TB, s keys.Store) map[string]string {
	t.Helper()
	out := map[string]string{}
	err := s.View(func(tx keys.Tx) error {
		for _, b := range buckets {
			if err := tx.ForEach(b, func(k, v []byte) error {
				out[fmt.Sprintf("%s %x", b, k)] = string(v)
				return nil
			}); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// harmlessState are the changes of the key store that verification may let
// pass: nothing that it rests on is in them.
var harmlessState = []struct {
	why   string
	match func(at int, c change) bool
}{
	{"one of bbolt's two heads: the store falls back to the transaction before", func(at int, _ change) bool {
		return at < 2*4096
	}},
	{"the name of a key that was destroyed", func(_ int, c change) bool {
		return c.table == "key" && c.was == tombstoneRow && c.is == tombstoneRow
	}},
	{"when a claimed name was seen, which only the pruning of the index asks", func(_ int, c change) bool {
		return c.table == "blind" && c.oldKey == c.newKey && strings.HasPrefix(c.oldKey, "02") && c.was[:len(c.was)-4] == c.is[:len(c.is)-4]
	}},
	{"which networks of strangers share a key: they would get a new one", func(_ int, c change) bool {
		return c.table == "anon" && c.was == c.is && c.oldKey[:8] == c.newKey[:8]
	}},
	{"a row of the index of names is gone: its person would get a new pseudonym", func(_ int, c change) bool {
		return c.table == "blind" && c.newKey == ""
	}},
}

const tombstoneRow = "\x02"

// change is the one row in which two key stores differ.
type change struct {
	table, oldKey, newKey, was, is string
}

// changes lists the rows that differ; a row that moved counts once.
func changes(want, have map[string]string) (out []change) {
	var came []string
	for k := range have {
		if _, ok := want[k]; !ok {
			came = append(came, k)
		}
	}
	for k, v := range want {
		is, ok := have[k]
		if ok && is == v {
			continue
		}
		table, key, _ := strings.Cut(k, " ")
		c := change{table: table, oldKey: key, newKey: key, was: v, is: is}
		if !ok {
			c.newKey = ""
		}
		for i, n := range came {
			if t, key, _ := strings.Cut(n, " "); !ok && t == table {
				c.newKey, c.is = key, have[n]
				came = slices.Delete(came, i, i+1)
				break
			}
		}
		out = append(out, c)
	}
	for _, n := range came {
		table, key, _ := strings.Cut(n, " ")
		out = append(out, change{table: table, newKey: key, is: have[n]})
	}
	return out
}

// TestKeyStoreFlips flips bits all over the key store on the disk. Whatever
// bbolt would make of the page, verify says so in words, or nothing of what the
// store holds has changed, or it is a change that does not matter here.
func TestKeyStoreFlips(t *testing.T) {
	s := newSpecimen(t)
	dir := s.lay(s.files, s.state)
	want := rows(t, s.rows)
	path := filepath.Join(dir, stateFile)
	counts := map[string]int{}
	for _, at := range positions(3, len(s.state)) {
		s.must(os.WriteFile(path, flip(s.state, at), 0o600))
		what, ok := s.judgeState(dir, at, want)
		counts[what]++
		if !ok {
			t.Errorf("key store byte %d: %s", at, what)
		}
	}
	for _, what := range slices.Sorted(maps.Keys(counts)) {
		t.Logf("%6d %s", counts[what], what)
	}
}

// judgeState looks at a key store in which a bit was flipped.
func (s *specimen) judgeState(dir string, at int, want map[string]string) (what string, ok bool) {
	disk, err := keys.OpenBolt(filepath.Join(dir, stateFile), true)
	if err != nil {
		return refusal("opening", err), errors.Is(err, keys.ErrStoreDamaged)
	}
	mem, err := keys.Load(disk)
	if err := errors.Join(err, disk.Close()); err != nil {
		return refusal("reading", err), errors.Is(err, keys.ErrStoreDamaged)
	}
	have := rows(s.t, mem)
	if maps.Equal(have, want) {
		return "harmless: free or unused bytes of a page, every row reads as before", true
	}
	rep, err := Verify(context.Background(), VerifyOptions{Dir: dir, KeyDir: s.cfg.KeyDir, Key: s.vkey})
	if err != nil {
		return "verification given up: " + err.Error(), false
	}
	switch code := rep.ExitCode(); {
	case code == ledger.ExitKeyless || code == ledger.ExitDamaged:
		return fmt.Sprintf("found, exit code %d", code), true
	case code != 0 || int(rep.Records) != len(s.content):
		return fmt.Sprintf("exit code %d, %d records: %v", code, rep.Records, rep.Findings), false
	}
	diff := changes(want, have)
	for _, h := range harmlessState {
		if !slices.ContainsFunc(diff, func(c change) bool { return !h.match(at, c) }) {
			return "harmless: " + h.why, true
		}
	}
	return fmt.Sprintf("not found: %+q", diff), false
}

// refusal is a class of errors if they are of the right kind, else the error.
func refusal(when string, err error) string {
	if errors.Is(err, keys.ErrStoreDamaged) {
		return "refused on " + when
	}
	return "refused on " + when + ": " + err.Error()
}
