package verify_test

import (
	"fmt"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"testing"

	"millrace/pipeline"
	"millrace/pipeline/cli"
	"millrace/pipeline/harness"
	"millrace/pipeline/processor/processortest"
)

// The arguments are the URL of the service and more stages.
const servicesTopology = `
name: t
topics: {in: {partitions: 2, types: [Click], envelope: none}, out: {partitions: 2}, dead: {partitions: 1}}
pipelines:
  p:
    from: in
    to: out
    dead_letter: dead
    stages:
      - filter: {keep: "n %% 3 != 0"}
      - http: {method: POST, url: "'%s/' + string(n)", body: "id", add: {status: {type: int, value: response.status}}, cache: {entries: 0}}
      - enrich: {set: {n: "n * 10"}}
%s`

// answers is a service that refuses 7, does not know 8, and answers 202 otherwise.
func answers(t *testing.T) (url string, calls *atomic.Int64) {
	calls = &atomic.Int64{}
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		calls.Add(1)
		switch r.URL.Path {
		case "/7":
			w.WriteHeader(http.StatusForbidden)
		case "/8":
			w.WriteHeader(http.StatusNotFound)
		default:
			w.WriteHeader(http.StatusAccepted)
		}
	}))
	t.Cleanup(srv.Close)
	return srv.URL, calls
}

func TestVerifyAndDryRunCallNoService(t *testing.T) {
	url, calls := answers(t)
	text := fmt.Sprintf(servicesTopology, url, "")
	b := processortest.NewBench(t, text)
	stop := b.Start("0")
	b.Clicks(30)
	b.CaughtUp()
	stop()
	file := b.File(text)
	if n := calls.Swap(0); n != 20 {
		t.Fatalf("the worker sent %d requests", n)
	}

	code, out := b.Processor(file, "verify")
	if code != cli.ExitOK || calls.Load() != 0 {
		t.Errorf("exit code %d, %d requests", code, calls.Load())
	}
	harness.WantLines(t, out, "30 events in = 0 out + 10 filtered + no dead letters + 20 that a service decides", "events that reached a stage http: 20", "the output is as expected")
	code, out = b.Processor(file, "dry-run")
	if code != cli.ExitOK || calls.Load() != 0 || !strings.Contains(out, "20 events passed a stage http unchanged, because no service was called") {
		t.Errorf("dry-run: exit code %d, %d requests: %s", code, calls.Load(), out)
	}

	code, out = b.Processor(file, "verify", "--call-services")
	if code != cli.ExitOK || calls.Swap(0) != 20 {
		t.Errorf("with --call-services: exit code %d", code)
	}
	harness.WantLines(t, out, "30 events in = 18 out + 10 filtered + 2 dead letters")
	if _, out = b.Processor(file, "dry-run", "--call-services"); calls.Load() != 20 {
		t.Errorf("dry-run --call-services sent %d requests: %s", calls.Load(), out)
	}

	// What does not depend on the service is still compared.
	rewrite(b, "out", func(all []pipeline.Record) []pipeline.Record { return append(all, all[0]) })
	code, out = b.Processor(file, "verify")
	if code != cli.ExitFailure {
		t.Errorf("exit code %d with a record that is there twice", code)
	}
	harness.WantLines(t, out, "1 duplicated")
}

// A record that the answer of a service brought to another topic, or let pass, is not
// one too many.
func TestVerifyAcceptsWhatAServiceDecided(t *testing.T) {
	url, calls := answers(t)
	text := fmt.Sprintf(servicesTopology, url, `      - filter: {name: accepted, keep: "status == 202 && n < 200"}
      - rekey: {key: "string(status)"}
`)
	b := processortest.NewBench(t, text)
	stop := b.Start("0")
	b.Clicks(30)
	b.CaughtUp()
	stop()
	calls.Store(0)
	code, out := b.Processor(b.File(text), "verify")
	if code != cli.ExitOK || calls.Load() != 0 {
		t.Errorf("exit code %d, %d requests: %s", code, calls.Load(), out)
	}
}
