package chain

import (
	"errors"
	"fmt"
	"io"
	"maps"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"millrace/pipeline/cli"
	"millrace/pipeline/deadletter"
	"millrace/pipeline/processor/trace"
	"millrace/pipeline/server"
	"millrace/pipeline/topology"
)

// TapPath is the HTTP path of [Taps].
const TapPath = "/v1/tap"

// TapRate is the default maximum number of events per second for a client.
const TapRate = 10.0

const (
	maxTaps    = 8    // clients at the same time
	maxTapRate = 1000 // events per second and client
	tapBuffer  = 1024 // lines in the queue of a client
	tapPing    = 15 * time.Second
)

// Taps shows events to HTTP clients. A session reads watching once per event, so an event
// costs almost nothing while no client is connected. A slow client never delays a
// pipeline: the lines that do not fit into its queue are dropped and counted.
//
// Taps is safe for concurrent use: sessions read watching, and HTTP requests change it.
type Taps struct {
	pipelines []*topology.Pipeline
	mask      []string // for all clients; see [trace.Line.Mask]
	now       func() time.Time
	dropped   prometheus.Counter

	mu       sync.Mutex                   // held while watching changes
	watching atomic.Pointer[[]*tapClient] // nil: no clients; the slice never changes
}

// NewTaps returns a Taps for pipelines. mask hides values from all clients.
func NewTaps(reg prometheus.Registerer, pipelines []*topology.Pipeline, mask []string, now func() time.Time) *Taps {
	t := &Taps{pipelines: pipelines, mask: mask, now: now, dropped: prometheus.NewCounter(prometheus.CounterOpts{
		Name: "millrace_tap_dropped_total", Help: "Lines that were not sent to tap clients because the client was too slow.",
	})}
	reg.MustRegister(t.dropped)
	return t
}

// tapClient is an HTTP client that watches events.
type tapClient struct {
	pipelines, stages, types []string // nil: all
	key                      *string  // nil: all
	mask                     []string
	rate                     float64 // maximum number of events per second
	limit                    int     // number of events; 0: no limit

	lines   chan []byte
	ended   chan struct{} // closed after the last event, if there is a limit
	dropped atomic.Int64  // lines that were dropped since the last one that was sent

	mu     sync.Mutex // guards the fields below
	tokens float64    // of the token bucket that enforces rate
	filled time.Time  // time of the last refill
	taken  int        // events
	open   int        // events that are still in the chain
}

// take decides whether the client receives an event. If so, the caller must call done
// after the last line of the event.
func (c *tapClient) take(now time.Time) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.limit > 0 && c.taken >= c.limit {
		return false
	}
	c.tokens = min(max(1, c.rate), c.tokens+now.Sub(c.filled).Seconds()*c.rate)
	c.filled = now
	if c.tokens < 1 {
		return false
	}
	c.tokens--
	c.taken++
	c.open++
	return true
}

// done ends an event.
func (c *tapClient) done() {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.open--; c.open == 0 && c.limit > 0 && c.taken == c.limit {
		close(c.ended)
	}
}

// send queues a line, or drops it if the queue is full.
func (c *tapClient) send(l trace.Line, dropped prometheus.Counter) {
	behind := c.dropped.Load()
	l.Dropped = behind
	l.Mask(c.mask)
	select {
	case c.lines <- []byte(cli.CompactJSON(l)):
		c.dropped.Add(-behind)
	default:
		c.dropped.Add(1)
		dropped.Inc()
	}
}

// client returns the client of a query. The error joins all faults of the query.
func (t *Taps) client(q url.Values) (*tapClient, error) {
	c := &tapClient{mask: t.mask, rate: TapRate, filled: t.now(), lines: make(chan []byte, tapBuffer), ended: make(chan struct{})}
	pipelines, stages, types := t.names()
	var faults []error
	known := func(what string, given, names []string) []string {
		for _, name := range given {
			if !slices.Contains(names, name) {
				faults = append(faults, errors.New(cli.UnknownName(what, name, names)))
			}
		}
		return given
	}
	for _, name := range slices.Sorted(maps.Keys(q)) {
		values := q[name]
		var err error
		switch name {
		case "pipeline":
			c.pipelines = known(name, values, pipelines)
		case "stage":
			c.stages = known(name, values, stages)
		case "type":
			c.types = known(name, values, types)
		case "key":
			c.key = &values[0]
		case "mask":
			c.mask = append(slices.Clone(c.mask), values...)
		case "rate":
			if c.rate, err = strconv.ParseFloat(values[0], 64); err != nil || !(c.rate > 0 && c.rate <= maxTapRate) {
				faults = append(faults, fmt.Errorf("rate=%s is not a number of events per second above 0 and at most %d", values[0], maxTapRate))
			}
		case "limit":
			if c.limit, err = strconv.Atoi(values[0]); err != nil || c.limit < 0 {
				faults = append(faults, fmt.Errorf("limit=%s is not a number of events", values[0]))
			}
		default:
			faults = append(faults, errors.New(cli.UnknownName("parameter", name, []string{"pipeline", "stage", "type", "key", "rate", "limit", "mask"})))
		}
	}
	c.tokens = max(1, c.rate)
	return c, errors.Join(faults...)
}

// names returns the valid values of the parameters pipeline, stage and type.
func (t *Taps) names() (pipelines, stages, types []string) {
	stages = []string{deadletter.StageDecode, deadletter.StageEncode, trace.StageTombstone}
	for _, pl := range t.pipelines {
		pipelines = append(pipelines, pl.Name)
		for _, s := range pl.Stages {
			stages = append(stages, s.Name)
		}
		for _, sections := range pl.Sections {
			for _, s := range sections {
				types = append(types, s.Schema.ShortName())
			}
		}
	}
	return pipelines, stages, types
}

// join adds a client until leave is called. It returns false if there are too many.
func (t *Taps) join(c *tapClient) (leave func(), ok bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	var all []*tapClient
	if have := t.watching.Load(); have != nil {
		all = slices.Clone(*have)
	}
	if len(all) >= maxTaps {
		return nil, false
	}
	all = append(all, c)
	t.watching.Store(&all)
	return func() { t.leave(c) }, true
}

func (t *Taps) leave(c *tapClient) {
	t.mu.Lock()
	defer t.mu.Unlock()
	rest := slices.DeleteFunc(slices.Clone(*t.watching.Load()), func(other *tapClient) bool { return other == c })
	if len(rest) == 0 {
		t.watching.Store(nil)
		return
	}
	t.watching.Store(&rest)
}

// ServeHTTP implements [http.Handler]: GET /v1/tap shows events before and after each
// stage, as JSON lines ([trace.Line]) or, if the client accepts text/event-stream, as
// server-sent events. It shows an event when a session handles it, so it shows the events
// of an aborted batch again.
func (t *Taps) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	c, err := t.client(r.URL.Query())
	if err != nil {
		server.WriteProblem(w, http.StatusBadRequest, "%v", err)
		return
	}
	leave, ok := t.join(c)
	if !ok {
		server.WriteProblem(w, http.StatusServiceUnavailable, "too many clients: at most %d can watch at the same time", maxTaps)
		return
	}
	defer leave()
	before, after, kind, ping := "", "\n", "application/x-ndjson", "\n"
	if strings.Contains(r.Header.Get("Accept"), "text/event-stream") {
		before, after, kind, ping = "data: ", "\n\n", "text/event-stream", ": nothing\n\n"
	}
	w.Header().Set("Content-Type", kind)
	w.Header().Set("Cache-Control", "no-store")
	out := http.NewResponseController(w)
	write := func(parts ...string) bool {
		for _, p := range parts {
			if _, err := io.WriteString(w, p); err != nil {
				return false // the client is gone
			}
		}
		return true
	}
	pings := time.NewTicker(tapPing)
	defer pings.Stop()
	for ok := true; ok; {
		if len(c.lines) == 0 && out.Flush() != nil {
			return
		}
		select {
		case line := <-c.lines:
			ok = write(before, string(line), after)
		case <-pings.C:
			ok = write(ping)
		case <-r.Context().Done():
			return
		case <-c.ended:
			for len(c.lines) > 0 && ok {
				ok = write(before, string(<-c.lines), after)
			}
			if n := c.dropped.Load(); n > 0 {
				write(before, fmt.Sprintf(`{"dropped":%d}`, n), after)
			}
			return
		}
	}
}
