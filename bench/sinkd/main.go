// Sinkd answers like a Splunk event collector, an Elasticsearch data stream and a
// Datadog intake that take everything, and keeps nothing but how many records
// came: the least work that lets delivery go on, for measuring the other end of it. At
// another address it is a sink that is away: it takes connections and never answers.
package main

import (
	"bufio"
	"bytes"
	"compress/gzip"
	"flag"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"strings"
	"sync/atomic"
)

func main() {
	addr := flag.String("listen", "127.0.0.1:9950", "address on loopback")
	silent := flag.String("silent", "", "address on loopback where connections are accepted, requests read and nothing answered; empty: none")
	flag.Parse()
	if *silent != "" {
		l, err := net.Listen("tcp", *silent)
		if err != nil {
			log.Fatal(err)
		}
		go func() { log.Fatal(listen(l)) }()
	}
	l, err := net.Listen("tcp", *addr)
	if err != nil {
		log.Fatal(err)
	}
	log.Fatal(http.Serve(l, newSinks()))
}

// listen accepts connections, reads what comes and never answers.
func listen(l net.Listener) error {
	for {
		c, err := l.Accept()
		if err != nil {
			return err
		}
		go func() {
			defer c.Close()
			_, _ = io.Copy(io.Discard, c)
		}()
	}
}

// newSinks counts lines of events and items of arrays and bulks.
func newSinks() http.Handler {
	var splunk, elastic, datadog atomic.Int64
	mux := http.NewServeMux()
	mux.HandleFunc("POST /services/collector/event", func(w http.ResponseWriter, r *http.Request) {
		b, ok := body(w, r)
		if !ok {
			return
		}
		splunk.Add(int64(bytes.Count(b, []byte("\n"))))
		fmt.Fprint(w, `{"text":"Success","code":0}`)
	})
	mux.HandleFunc("POST /api/v2/logs", func(w http.ResponseWriter, r *http.Request) {
		b, ok := body(w, r)
		if !ok {
			return
		}
		datadog.Add(int64(bytes.Count(b, []byte(`"ddsource":`))))
		w.WriteHeader(http.StatusAccepted)
		fmt.Fprint(w, `{}`)
	})
	mux.HandleFunc("GET /{$}", func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("X-Elastic-Product", "Elasticsearch")
		fmt.Fprint(w, `{"version":{"number":"9.1.0","build_flavor":"default"},"tagline":"You Know, for Search"}`)
	})
	mux.HandleFunc("POST /{stream}/_bulk", func(w http.ResponseWriter, r *http.Request) {
		b, ok := body(w, r)
		if !ok {
			return
		}
		out := bytes.NewBufferString(`{"took":1,"errors":false,"items":[`)
		n := 0
		sc := bufio.NewScanner(bytes.NewReader(b))
		sc.Buffer(nil, 16<<20)
		for sc.Scan() {
			_, rest, ok := bytes.Cut(sc.Bytes(), []byte(`"_id":"`))
			id, _, _ := strings.Cut(string(rest), `"`)
			if !ok || !sc.Scan() {
				http.Error(w, "not a bulk", http.StatusBadRequest)
				return
			}
			if n++; n > 1 {
				out.WriteByte(',')
			}
			fmt.Fprintf(out, `{"create":{"_index":".ds-%[1]s-000001","_id":"%[2]s","_version":1,"result":"created","status":201}}`, r.PathValue("stream"), id)
		}
		elastic.Add(int64(n))
		out.WriteString(`]}`)
		w.Header().Set("X-Elastic-Product", "Elasticsearch")
		w.Header().Set("Content-Type", "application/json")
		_, _ = w.Write(out.Bytes())
	})
	mux.HandleFunc("GET /counts", func(w http.ResponseWriter, _ *http.Request) {
		fmt.Fprintf(w, "splunk %d elasticsearch %d datadog %d\n", splunk.Load(), elastic.Load(), datadog.Load())
	})
	return mux
}

func body(w http.ResponseWriter, r *http.Request) ([]byte, bool) {
	in := io.Reader(r.Body)
	if r.Header.Get("Content-Encoding") == "gzip" {
		z, err := gzip.NewReader(r.Body)
		if err != nil {
			http.Error(w, err.Error(), http.StatusBadRequest)
			return nil, false
		}
		in = z
	}
	b, err := io.ReadAll(in)
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
	}
	return b, err == nil
}
