// Report writes down what the benchmark measured: lines of results, and from
// them the tables of RESULTS.md and the plot.
//
//	report machine ...   the first line of results: where, when and what
//	report stored ...    a line on the size of a book
//	report micro ...     lines from the output of Go benchmarks
//	report packages      the packages whose benchmarks belong to the table
//	report pattern PKG   which of its benchmarks
//	report write ...     RESULTS.md between its markers, the plot, and the ratios
package main

import (
	"bufio"
	"encoding/json"
	"flag"
	"fmt"
	"io"
	"io/fs"
	"log"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"strconv"
	"strings"
	"time"
)

func main() {
	log.SetFlags(0)
	if len(os.Args) < 2 {
		log.Fatal("usage: report machine|stored|micro|packages|pattern|write")
	}
	var err error
	switch args := os.Args[2:]; os.Args[1] {
	case "machine":
		err = machineMain(args)
	case "stored":
		err = storedMain(args)
	case "micro":
		err = microMain(args)
	case "packages":
		for _, b := range existing {
			fmt.Println(b.pkg)
		}
	case "pattern":
		for _, b := range existing {
			if len(args) == 1 && b.pkg == args[0] {
				fmt.Println(b.pattern)
			}
		}
	case "write":
		err = writeMain(args)
	default:
		err = fmt.Errorf("unknown command %q", os.Args[1])
	}
	if err != nil {
		log.Fatal(err)
	}
}

// existing are benchmarks of the product's packages that belong to the table.
var existing = []struct{ pkg, pattern string }{
	{"internal/book/record", "^Benchmark(AppendFrame|AppendPersonal)$"},
	{"internal/book/redact", "^BenchmarkApply$"},
	{"internal/gate", "^BenchmarkServe$"},
	{"internal/gate/authn", "^Benchmark(CacheHit|Verify)$"},
	{"internal/gate/authz", "^BenchmarkDecide$/^indexed$/^20$"},
	{"internal/gate/ratelimit", "^BenchmarkTake$"},
	{"internal/gate/upstream", "^BenchmarkRoundTrip$"},
}

// Kinds of lines besides runs, which have none.
const (
	kindMachine = "machine"
	kindStored  = "stored"
	kindMicro   = "micro"
)

type machine struct {
	Kind     string  `json:"kind"`
	Date     string  `json:"date"`
	CPU      string  `json:"cpu"`
	Cores    int     `json:"cores"`
	Kernel   string  `json:"kernel"`
	OS       string  `json:"os"`
	Go       string  `json:"go"`
	Gatebook string  `json:"gatebook"`
	Nginx    string  `json:"nginx"`
	HAProxy  string  `json:"haproxy"`
	Load     float64 `json:"load_before"` // 1 minute, before anything was built
	Rounds   int     `json:"rounds"`
	Secs     float64 `json:"secs"`
	Conns    int     `json:"conns"`
	Rate     float64 `json:"rate"`
	Alg      string  `json:"alg"`
	Command  string  `json:"command"`
}

func machineMain(args []string) error {
	m := machine{Kind: kindMachine, Date: time.Now().UTC().Format("2006-01-02 15:04 MST"), Cores: runtime.NumCPU(), Go: runtime.Version()}
	f := flag.NewFlagSet("machine", flag.ExitOnError)
	f.IntVar(&m.Rounds, "rounds", 0, "rounds")
	f.Float64Var(&m.Secs, "secs", 0, "seconds of each run")
	f.IntVar(&m.Conns, "conns", 0, "connections")
	f.Float64Var(&m.Rate, "rate", 0, "requests a second in the open loop")
	f.StringVar(&m.Alg, "alg", "", "signature algorithm of the tokens")
	f.Float64Var(&m.Load, "load", 0, "load average before")
	f.StringVar(&m.Command, "command", "", "command line")
	gatebook := f.String("gatebook", "gatebook", "binary")
	if err := f.Parse(args); err != nil {
		return err
	}
	m.CPU, m.OS = field("/proc/cpuinfo", "model name", ":"), strings.Trim(field("/etc/os-release", "PRETTY_NAME", "="), `"`)
	m.Kernel = said("uname", "-r")
	m.Gatebook, m.Nginx, m.HAProxy = said(*gatebook, "version"), said("nginx", "-v"), said("haproxy", "-v")
	return json.NewEncoder(os.Stdout).Encode(m)
}

// field is the value of the first line of a file that begins with a name.
func field(file, name, sep string) string {
	b, err := os.ReadFile(file)
	if err != nil {
		return "unknown"
	}
	for line := range strings.Lines(string(b)) {
		if k, v, ok := strings.Cut(line, sep); ok && strings.TrimSpace(k) == name {
			return strings.TrimSpace(v)
		}
	}
	return "unknown"
}

// said is the first line that a command prints.
func said(name string, args ...string) string {
	b, err := exec.Command(name, args...).CombinedOutput()
	if err != nil {
		return "unknown"
	}
	line, _, _ := strings.Cut(string(b), "\n")
	return strings.TrimSpace(line)
}

type stored struct {
	Kind    string `json:"kind"`
	Level   string `json:"level"`
	Bytes   int64  `json:"bytes"` // of the whole data folder after a clean stop
	Records int64  `json:"records"`
}

var opened = regexp.MustCompile(`(\d+) records opened`)

func storedMain(args []string) error {
	s := stored{Kind: kindStored}
	f := flag.NewFlagSet("stored", flag.ExitOnError)
	f.StringVar(&s.Level, "level", "", "level")
	data := f.String("data", "", "folder of the book")
	verified := f.String("verified", "", "what verify printed about it")
	if err := f.Parse(args); err != nil {
		return err
	}
	b, err := os.ReadFile(*verified)
	if err != nil {
		return err
	}
	m := opened.FindSubmatch(b)
	if m == nil {
		return fmt.Errorf("%s does not say how many records were opened: %s", *verified, b)
	}
	if s.Records, err = strconv.ParseInt(string(m[1]), 10, 64); err != nil {
		return err
	}
	err = filepath.WalkDir(*data, func(_ string, d fs.DirEntry, err error) error {
		if err != nil || !d.Type().IsRegular() {
			return err
		}
		info, err := d.Info()
		if err == nil {
			s.Bytes += info.Size()
		}
		return err
	})
	if err != nil {
		return err
	}
	return json.NewEncoder(os.Stdout).Encode(s)
}

type micro struct {
	Kind    string             `json:"kind"`
	Round   int                `json:"round"`
	Package string             `json:"package"`
	Name    string             `json:"name"`
	Values  map[string]float64 `json:"values"` // by unit
}

func microMain(args []string) error {
	f := flag.NewFlagSet("micro", flag.ExitOnError)
	round := f.Int("round", 0, "round")
	if err := f.Parse(args); err != nil {
		return err
	}
	ms, err := parseMicro(os.Stdin, *round)
	if err != nil {
		return err
	}
	enc := json.NewEncoder(os.Stdout)
	for _, m := range ms {
		if err := enc.Encode(m); err != nil {
			return err
		}
	}
	return nil
}

// parseMicro reads the output of go test -bench.
func parseMicro(r io.Reader, round int) ([]micro, error) {
	var out []micro
	pkg := ""
	sc := bufio.NewScanner(r)
	for sc.Scan() {
		if p, ok := strings.CutPrefix(sc.Text(), "pkg: "); ok {
			pkg = strings.TrimPrefix(p, "github.com/gatebook/gatebook/")
			continue
		}
		f := strings.Fields(sc.Text())
		if len(f) < 4 || !strings.HasPrefix(f[0], "Benchmark") {
			continue
		}
		m := micro{kindMicro, round, pkg, strings.TrimPrefix(f[0], "Benchmark"), map[string]float64{}}
		for i := 2; i+1 < len(f); i += 2 {
			v, err := strconv.ParseFloat(f[i], 64)
			if err != nil {
				return nil, fmt.Errorf("%q: %w", sc.Text(), err)
			}
			m.Values[f[i+1]] = v
		}
		out = append(out, m)
	}
	if err := sc.Err(); err != nil {
		return nil, err
	}
	if len(out) == 0 {
		return nil, fmt.Errorf("no benchmark in the output of %q", pkg)
	}
	return out, nil
}
