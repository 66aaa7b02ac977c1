package book

import (
	"context"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
)

// TestStoredBytes keeps the promise of cheap storage: the whole folder after
// sealing, with commitments, directories, tiles, manifests and the key store. The
// key store costs each person once, about 770 bytes, however few records there
// are: it is the larger half of a small book of 10,000 people. So the short form
// judges 200 people only, and the long form fills five segments, 33 records a
// person.
func TestStoredBytes(t *testing.T) {
	cases := []struct {
		name    string
		people  func(*rand.Rand) int
		records int
		limit   float64 // bytes a record
	}{
		{"200 people", func(rng *rand.Rand) int { return rng.IntN(200) }, 30_000, 70},
	}
	if os.Getenv("GATEBOOK_SOAK") != "" {
		cases[0].records = 3 * 65_536
		cases = append(cases, cases[0])
		cases[1].name, cases[1].people = "10,000 people, Zipf", zipf(rand.New(rand.NewPCG(3, 4)))
		cases[1].records, cases[1].limit = 5*65_536, 90
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			bk, conf := fullBook(t, 0)
			addRecordsOf(t, bk, c.records, c.people)
			if err := bk.Close(context.Background()); err != nil {
				t.Fatal(err)
			}
			rep, err := Verify(context.Background(), VerifyOptions{Dir: conf.Dir, KeyDir: conf.KeyDir, Key: bk.Key()})
			if err != nil || rep.ExitCode() != 0 {
				t.Fatal(err, rep)
			}
			sizes := map[string]int64{}
			whole := int64(0)
			err = filepath.WalkDir(conf.Dir, func(path string, d fs.DirEntry, err error) error {
				if err != nil || d.IsDir() {
					return err
				}
				info, err := d.Info()
				if err != nil {
					return err
				}
				size := info.Size()
				if st, ok := info.Sys().(*syscall.Stat_t); ok {
					size = max(size, st.Blocks*512) // what it takes on the disk
				}
				part, _, _ := strings.Cut(strings.TrimPrefix(path, conf.Dir+"/"), "/")
				sizes[part] += size
				whole += size
				return nil
			})
			if err != nil {
				t.Fatal(err)
			}
			per := float64(whole) / float64(rep.Records)
			t.Logf("%.1f B a record of %d; in bytes: %v", per, rep.Records, sizes)
			if per > c.limit {
				t.Errorf("a record takes %.1f B: at most %g wanted", per, c.limit)
			}
		})
	}
}
